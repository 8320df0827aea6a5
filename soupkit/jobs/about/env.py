"""`env`: where soupkit runs, for bug reports."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata

from soupkit import __version__
from soupkit.events import Report, Table
from soupkit.jsons import Json
from soupkit.recipe.env import Env
from soupkit.world import World, available_cores, cache_folder

PACKAGES = (
    *(
        "torch",
        "torchvision",
        "timm",
        "open_clip_torch",
        "numpy",
        "ml_dtypes",
        "scipy",
        "scikit-learn",
        "safetensors",
    ),
    *("huggingface_hub", "hf-xet", "transformers", "typer", "rich", "xxhash", "PyYAML", "matplotlib"),
)
VARIABLES = (
    *("SOUPKIT_CACHE", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE"),
    *("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HTTPS_PROXY", "NO_COLOR"),
)
"""Never a token; of proxies only that there is one."""


def env(_recipe: Env, _world: World, report: Report) -> Json:
    """Versions, platform, devices, folders and the environment variables that matter; no token, no user's
    name."""
    values = {
        "soupkit": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "processor": f"{platform.machine()}, {available_cores()} of {os.cpu_count()} cores",
        "byte order": sys.byteorder,
        "devices": list(_devices()),
        "cache": _cache(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "variables": {name: _shown(name) for name in VARIABLES if name in os.environ},
    }
    report(Table("", ("", ""), tuple(_rows(values))))
    return values


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> Iterator[str]:
    """What torch sees, or why it sees nothing."""
    try:
        import torch
    except Exception as error:  # a broken installation is what bug reports are about
        yield f"torch cannot be imported: {type(error).__name__}: {error}"
        return
    yield f"cpu ({torch.get_num_threads()} threads)"
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        yield f"cuda:{index} {found.name}, {found.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"


def _cache() -> dict[str, str]:
    from huggingface_hub import constants

    folders = {"scores": str(cache_folder()), "Hub": str(constants.HF_HUB_CACHE)}
    return {name: f"{folder} ({_free(folder)})" for name, folder in folders.items()}


def _free(folder: str) -> str:
    while not os.path.exists(folder):  # noqa: PTH110  (a string that may be anything)
        folder = os.path.dirname(folder)  # noqa: PTH120
    return f"{shutil.disk_usage(folder).free / 1e9:.1f} GB free"


def _shown(name: str) -> str:
    return "set" if name.endswith("PROXY") else os.environ[name]


def _rows(values: Json) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from ((f"{key}: {name}", str(item)) for name, item in value.items())
        elif isinstance(value, list):
            yield from ((key, str(item)) for item in value)
        else:
            yield key, str(value)
