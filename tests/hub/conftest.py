"""A Hub on loopback for every test, a cache of its own, and no waiting between tries."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hub.server import Hub

from soupkit.checkpoint.tensors import write_tensors

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Of every client: nothing on loopback speaks TLS, and reading the system's certificates takes 50 ms a
client."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The Hub that huggingface_hub speaks to. Its constants were read from the environment when it was
    imported."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    with Hub() as server:
        close_session()
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "hf-cache"),
            "HF_TOKEN_PATH": str(tmp_path / "no-token"),
            "HF_STORED_TOKENS_PATH": str(tmp_path / "no-tokens"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr("ssl.create_default_context", lambda *_arguments, **_options: NO_TLS)
        monkeypatch.setattr("soupkit.checkpoint.hub.errors._wait", lambda _error, _number: 0.0)
        monkeypatch.setattr("time.sleep", lambda _seconds: None)  # huggingface_hub's own tries
        yield server
        close_session()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """What a test starts ends with it."""
    before = set(threading.enumerate())
    yield
    left = {
        thread for thread in set(threading.enumerate()) - before if thread.name[:4] not in ("hub_", "tqdm")
    }
    for thread in left:
        thread.join(10)
    assert not [thread for thread in left if thread.is_alive()]


def tensors(seed: int = 0, *, size: int = 64) -> dict[str, np.ndarray]:
    """A small model's weights."""
    draw = np.random.default_rng(seed)
    return {
        "layer.weight": draw.standard_normal((size, 16), np.float32),
        "layer.bias": draw.standard_normal(size, np.float32),
        "steps": np.array(seed, np.int64),
    }


def checkpoint(directory: Path, seed: int = 0, *, size: int = 64) -> Path:
    """A checkpoint directory with a configuration and a tokenizer."""
    directory.mkdir(parents=True)
    write_tensors(directory, tensors(seed, size=size))
    (directory / "config.json").write_text('{"architecture": "toy"}')
    (directory / "vocab.txt").write_text("a\nb\n")
    (directory / "training_args.bin").write_bytes(b"not needed")
    (directory / "README.md").write_text("---\nlicense: mit\n---\n# toy\n")
    return directory
