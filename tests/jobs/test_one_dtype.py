"""A score command sees single checkpoints, trials and what is written in one dtype: the one that is
written."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.cli.app import run_command_line

Save = Callable[..., Path]
SCORER = (
    r"""grep -aoE '"(F32|BF16|F16)"' "$1"/model.safetensors | sort -u | tr -d '\n' >> seen; """
    "echo >> seen; echo 1"
)
KINDS = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16}


@pytest.mark.parametrize(
    ("stored", "options", "expected"),
    [
        (("F32", "F32", "F32"), ("--dtype", "bfloat16"), "BF16"),
        (("BF16", "BF16", "BF16"), ("--dtype", "float32"), "F32"),
        (("F16", "F32", "F16"), (), "F32"),
        (("F16", "BF16", "BF16"), (), "F32"),
        (("F16", "F16", "F16"), (), "F16"),
    ],
)
@pytest.mark.parametrize("command", ["greedy", "interpolate", "evolve"])
def test_one_dtype(
    command: str, stored: tuple[str, ...], options: tuple[str, ...], expected: str, save: Save,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    stored = stored[:2] if command == "interpolate" else stored
    names = [str(save(f"m{k}", {"w": np.full(8, k, KINDS[kind])})) for k, kind in enumerate(stored)]
    more = {"greedy": (), "interpolate": ("--at", "0,0.5,1"), "evolve": ("--evaluations", "3")}[command]
    scorer = shlex.join(["sh", "-c", SCORER, "sh"]) + " {checkpoint}"
    words = [
        "merge",
        command,
        *names,
        "--score-command",
        scorer,
        *options,
        *more,
        "--out",
        "out",
        "--json",
        "--quiet",
    ]
    assert run_command_line(words) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert {slot.dtype for slot in Checkpoint(Path("out")).slots.values()} == {expected}
    seen = Path("seen").read_text().split()
    assert len(seen) >= 3, result
    assert set(seen) == {f'"{expected}"'}
