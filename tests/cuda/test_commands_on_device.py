"""Whole commands on a device: the numbers of the CPU, in the memory that they plan, and nothing half
written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda.conftest import Gpu
from safetensors.numpy import load_file, save_file
from task.small import saved

from soupkit.cli.app import run_command_line
from soupkit.soup.plan import WORKSPACES

MODEL = "timm:test_resnet,num_classes=10,img_size=16"
FEW = ("--num-train", "32", "--num-held-out", "24", "--num-test", "16", "--batch-size", "16")
DATA = ("--data", "digits", *FEW)
TRAINING = ("--epochs", "1", "--lr", "1e-4", "--amp", "off")
CYCLES = ("--epochs", "2", "--cycle", "2", "--lr-1", "1e-4", "--lr-2", "1e-5", "--amp", "off")
LEARNING = ("--epochs", "1", "--bn", "average", "--no-plots")
LOSSES = re.compile("(nll|loss)[^/]*/([^/]+/)?(value|[0-9]+)$")
QUICK = {
    "evaluate": ("evaluate", "m0", "m1"),
    "greedy": ("merge", "greedy", "m0", "m1", "m2", "--out", "OUT"),
    "refresh": ("merge", "interpolate", "m0", "m1", "--at", "0.5", "--bn", "refresh", "--out", "OUT"),
    "curve": ("curve", "fit", "m0", "m1", *TRAINING, "--out", "OUT"),
    "fge": ("fge", "m0", *CYCLES, "--out", "OUT"),
}
"""What also runs on the stand-in, in about a second each."""
SLOW = ("fge", "curve", "refresh")
"""On the stand-in."""
LONG = {
    "learned": ("merge", "learned", "m0", "m1", *LEARNING, "--out", "OUT"),
    "mehl": ("merge", "mehl", "m0", "m1", "m2", *LEARNING, "--out", "OUT"),
    "twa": ("merge", "twa", "m0", "m1", *LEARNING, "--out", "OUT"),
    "finetune": (
        "finetune",
        "--base",
        "m0",
        *TRAINING,
        "--ema-decay",
        "0.5",
        "--average-async",
        "--out",
        "OUT",
    ),
    "population": (
        *("train-population", "--base", "m0", *TRAINING, "--num-members", "2", "--average-every", "1"),
        *("--out", "OUT"),
    ),
    "replaced": (
        *("train-population", "--base", "m0", *TRAINING, "--num-members", "2", "--method", "papa-all"),
        *("--merge-every", "1", "--align", "--repair", "forward", "--out", "OUT"),
    ),
    "repair": ("merge", "uniform", "m0", "m1", "--align", "--repair", "forward", "--out", "OUT"),
    "align": ("align", "m0", "m1", "--by", "both", "--out", "OUT"),
    "barrier": ("barrier", "m0", "m1", "--num-points", "3", "--out", "OUT"),
    "plane": ("plane", "m0", "m1", "m2", "--num-points", "2", "--out", "OUT"),
    "ensemble": ("ensemble", "m0", "m1", "m2"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """m0, m1, m2: random weights, and noise on them."""
    folder = tmp_path_factory.mktemp("models")
    saved(folder / "m0", MODEL)
    tensors = load_file(folder / "m0/model.safetensors")
    for seed in (1, 2):
        random, own = np.random.default_rng(seed), folder / f"m{seed}"
        own.mkdir()
        noisy = {
            name: value + np.float32(0.05) * random.standard_normal(value.shape, np.float32) * value.std()
            if value.dtype == np.float32
            else value
            for name, value in tensors.items()
        }
        save_file(noisy, own / "model.safetensors")
        (own / "config.json").write_text((folder / "m0/config.json").read_text())
    return folder


def command(models: Path, words: tuple[str, ...], out: Path, device: str) -> list[str]:
    made = [
        str(models / word) if word in ("m0", "m1", "m2") else str(out) if word == "OUT" else word
        for word in words
    ]
    return [*made, *DATA, "--device", device, "--json", "--quiet"]


def numbers(values: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every NLL and every loss that a result tells, by its place."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from numbers(value, f"{path}/{key}")
    elif isinstance(values, list):
        for number, value in enumerate(values):
            yield from numbers(value, f"{path}/{number}")
    elif isinstance(values, float) and LOSSES.search(path):
        yield path, values


def same_on(gpu: Gpu, models: Path, words: tuple[str, ...], folder: Path, told: Any) -> None:
    """Losses on the device are those on the CPU to 1e-3: float32 sums in another order (1e-6 a layer), after
    a few updates of 1e-4."""
    found = []
    for device in ("cpu", gpu.name):
        assert run_command_line(command(models, words, folder / device.replace(":", ""), device)) == 0
        found.append(dict(numbers(json.loads(told.readouterr().out))))
    here, there = found
    assert here.keys() == there.keys()
    assert here or words[0] == "align"
    for name, value in here.items():
        assert there[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in QUICK]
)
def test_a_command_tells_the_numbers_of_the_cpu(
    gpu: Gpu, models: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    same_on(gpu, models, QUICK[name], tmp_path, capsys)


@pytest.mark.parametrize("name", LONG)
def test_a_long_command_tells_the_numbers_of_the_cpu(
    real_gpu: Gpu, models: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    same_on(real_gpu, models, LONG[name], tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["int8", pytest.param("float32", marks=pytest.mark.cuda)])
def test_a_learned_soup_takes_no_more_than_it_plans(
    gpu: Gpu, models: Path, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stand-in has no workspaces of libraries, so they may not make up for another part there."""
    if form == "float32" and gpu.stand_in is not None:
        pytest.skip("one form shows what a stand-in can")
    gpu.forget_peak()
    words = ("merge", "mehl", "m0", "m1", "m2", *LEARNING, "--resident", form, "--no-test", "--out", "OUT")
    assert run_command_line(command(models, words, tmp_path / "out", gpu.name)) == 0
    plan = json.loads(capsys.readouterr().out)["notes"]["memory"]
    promised = plan["total"] - (WORKSPACES if gpu.stand_in else 0)
    directions = next(size for part, size in plan["bytes"].items() if part.startswith("directions"))
    assert directions < gpu.peak() <= promised


@pytest.mark.parametrize("name", ["evaluate", "greedy", "learned", "curve", "fge", "finetune"])
@pytest.mark.parametrize("num_models", [0, 1], ids=["no model fits", "no pass fits"])
def test_memory_that_runs_out_leaves_nothing_half_written(
    gpu: Gpu, models: Path, tmp_path: Path, name: str, num_models: int, capsys: pytest.CaptureFixture[str]
) -> None:
    if num_models and gpu.stand_in is None:
        pytest.skip("a device gives memory in blocks of 2 MB and more, into which a pass fits")
    size = (models / "m0/model.safetensors").stat().st_size
    words = (QUICK | LONG)[name]
    with gpu.with_only(size * num_models + (1 << 16)):
        code = run_command_line(command(models, words, tmp_path / "out", gpu.name))
    told = capsys.readouterr().err
    assert code in (1, 2), told
    if code == 2:  # a plan refuses before anything is taken
        assert "max_memory is" in told
        assert "--max-memory" in told
    else:
        assert "error: memory ran out: CUDA out of memory. Tried to allocate" in told
        assert "hint: take less at a time: --batch-size 8, or" in told
        assert "--device cpu" in told
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".safetensors"]
