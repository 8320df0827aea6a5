"""A device that is not there is refused by every command that can be given one, before it does anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cuda.stand_in import StandIn

from soupkit.cli.app import run_command_line
from soupkit.commands import COMMANDS
from soupkit.errors import RecipeError, TaskError
from soupkit.events import silent
from soupkit.exhausted import explained
from soupkit.world import world_of

WITH_DEVICE = [
    name
    for name, command in COMMANDS.items()
    if "device" in {field.name for field in fields(command.recipe_type())}
]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What ran: nothing should."""
    found: list[str] = []

    def job(recipe: Any, _world: Any, _report: Any) -> dict[str, Any]:
        found.append(recipe.device)
        return {}

    monkeypatch.setattr("soupkit.commands._load", lambda _place: job)
    return found


@pytest.fixture(params=[False, True], ids=["no GPU", "one GPU"])
def one_gpu(request: pytest.FixtureRequest) -> Iterator[bool]:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    if not request.param:
        yield False
        return
    with StandIn():
        yield True


def test_commands_that_run_models_have_a_device() -> None:
    assert {"evaluate", "merge greedy", "finetune", "train-population", "curve fit", "align"} <= set(
        WITH_DEVICE
    )


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "cuda:x", "cuda:", "gpu", "", "cpu:1", "mps"])
def test_every_command_refuses_what_is_not_there(one_gpu: bool, started: list[str], device: str) -> None:
    for name in WITH_DEVICE:
        recipe: Any = SimpleNamespace(device=device)
        if one_gpu and device == "cuda":
            COMMANDS[name].run(recipe, world_of(recipe), silent)
            continue
        with pytest.raises(RecipeError, match=r"device (is )?'") as error:
            COMMANDS[name].run(recipe, world_of(recipe), silent)
        assert "--device" in str(error.value.hint)
    assert started == (["cuda"] * len(WITH_DEVICE) if one_gpu and device == "cuda" else [])


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_what_is_there_is_taken(started: list[str], device: str) -> None:
    recipe: Any = SimpleNamespace(device=device)
    COMMANDS["evaluate"].run(recipe, world_of(recipe), silent)
    assert started == [device]


def test_the_command_line_ends_with_the_code_for_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["evaluate", "nowhere", "--data", "digits", "--device", "cuda:7"]) == 2
    told = capsys.readouterr().err
    assert "no GPU 7" in told
    assert "hint: --device cpu" in told


@pytest.mark.parametrize(
    ("error", "hints", "others"),
    [
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. Including non-PyTorch memory, 1."),
            ("--batch-size 64", "--max-memory", "--model-batch", "--device cpu"),
            ("--jobs", "--threads", "--amp"),
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), ("--device cpu",), ()),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            ("--batch-size 64",),
            ("cpu",),
        ),
        (MemoryError(), ("--batch-size 64", "--threads 1"), ("--device",)),
    ],
)
def test_memory_that_runs_out_is_told_with_what_takes_less(
    error: Exception, hints: tuple[str, ...], others: tuple[str, ...]
) -> None:
    recipe = SimpleNamespace(batch_size=128, max_memory=None, model_batch=0, jobs=1, threads=0, device="cuda")
    with pytest.raises(TaskError, match="memory ran out: ") as told, explained(recipe):
        raise error
    assert "non-PyTorch" not in told.value.message
    assert all(hint in str(told.value.hint) for hint in hints)
    assert not any(other in str(told.value.hint) for other in others)


def test_the_script_for_gpu_machines_says_that_this_is_none() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    script = Path(__file__).with_name("run.sh")
    ended = subprocess.run(
        [script], env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.match(r"no CUDA device: torch \S+ in \S+ sees none\. Without one, ", ended.stderr)


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), explained(object()):
        raise RuntimeError("shapes differ")
    with pytest.raises(TaskError) as told, explained(object()):
        raise MemoryError
    assert told.value.hint == "free some memory, and try again"
