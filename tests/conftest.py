"""What every test may use: checkpoints on disk, and a cache folder of its own."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from soupkit.checkpoint.tensors import TensorFiles, plan_files, write_tensors
from soupkit.commands import Command

Save = Callable[..., Path]

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")  # how busy the machine is decides nothing


@pytest.fixture(autouse=True, scope="session")
def interrupts() -> None:
    """Children of a run that a shell put into the background would inherit that Ctrl-C is ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


NUMBERS = count()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's remembered scores. Most need no cache: its folder is made by who
    does."""
    monkeypatch.setenv("SOUPKIT_CACHE", str(tmp_path_factory.getbasetemp() / "caches" / str(next(NUMBERS))))


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """save(name, tensors, **options) → a checkpoint directory; max_shard_bytes=… makes shards."""

    def save_checkpoint(
        name: str, tensors: Mapping[str, Any], *, max_shard_bytes: int = 0, **options: Any
    ) -> Path:
        directory = tmp_path / name
        directory.mkdir(parents=True)
        if not max_shard_bytes:
            write_tensors(directory, tensors, **options)
            return directory
        from soupkit.checkpoint.source import slots_of

        with TensorFiles(directory, plan_files(slots_of(tensors), max_shard_bytes=max_shard_bytes)) as files:
            for key, value in tensors.items():
                files.write(key, 0, np.ascontiguousarray(value).reshape(-1))
        return directory

    return save_checkpoint


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The recipes of the command lines that are run from now on; no job does anything."""
    recipes: list[Any] = []

    def job(recipe: Any, _world: Any, _report: Any) -> dict[str, Any]:
        recipes.append(recipe)
        return {}

    monkeypatch.setattr(Command, "load_job", lambda _self: job)
    return recipes
