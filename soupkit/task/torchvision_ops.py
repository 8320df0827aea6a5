"""Import this before timm or open_clip: it lets torchvision load beside a torch that it was not built for.

torchvision registers meta kernels for `torchvision::nms` and `::qnms` while it is imported. These need the
operators' schemas, which its compiled extension defines. When that extension cannot load (a CUDA build beside
a CPU torch, say), `import torchvision` raises `operator torchvision::nms does not exist`, although nothing
here ever calls them. So the two schemas, without kernels, are defined here, and only then: an extension that
loads defines its own.
"""

from __future__ import annotations

import sys
from importlib import machinery, util
from pathlib import Path

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_definitions: list[torch.library.Library] = []  # a Library takes its definitions back when it is collected


def extension_path() -> Path | None:
    """Where torchvision's compiled extension lies; None without torchvision or without an extension."""
    package = util.find_spec("torchvision")
    if package is None or not package.submodule_search_locations:
        return None
    suffixes = (machinery.ExtensionFileLoader, machinery.EXTENSION_SUFFIXES)
    for location in package.submodule_search_locations:
        found = machinery.FileFinder(location, suffixes).find_spec("_C")
        if found is not None and found.origin is not None:
            return Path(found.origin)
    return None


def extension_loads() -> bool:
    """Whether torchvision's extension can be loaded into this process; it then is, as torchvision itself
    does."""
    path = extension_path()
    if path is None:
        return False
    try:
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    except (ImportError, OSError):
        return False
    return True


def define_missing_operators() -> bool:
    """Define what a torchvision without its extension needs to be imported; returns whether that was
    necessary."""
    if "torchvision" in sys.modules or util.find_spec("torchvision") is None or extension_loads():
        return False
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(name + _SCHEMA)  # type: ignore[no-untyped-call]
    _definitions.append(library)
    return True


define_missing_operators()
