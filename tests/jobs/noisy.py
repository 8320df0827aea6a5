"""Fine-tunes as soups need them, quickly: one short training run, and noisy copies of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.tensors import write_tensors
from soupkit.cli.app import run_command_line

MODEL = ("finetune", "--model", "timm:test_resnet,num_classes=10,img_size=16", "--data", "digits")
SIZES = (
    "--num-train",
    "300",
    "--num-held-out",
    "200",
    "--num-test",
    "100",
    "--batch-size",
    "30",
    "--lr",
    "3e-3",
)


def noisy_models(folder: Path, *options: str, noises: Sequence[float]) -> list[Path]:
    """FOLDER/m0, trained on digits, and m1, …: noise of so many standard deviations in its matrices and
    kernels."""
    assert run_command_line([*MODEL, *SIZES, *options, "--out", str(folder / "m0"), "--quiet"]) == 0
    tensors = dict(Checkpoint(folder / "m0"))
    for k, noise in enumerate(noises, 1):
        random = np.random.default_rng(k)
        (folder / f"m{k}").mkdir()
        noisy = {
            name: value + (noise * value.std() * random.standard_normal(value.shape)).astype(value.dtype)
            if name.endswith("weight") and value.ndim > 1
            else value
            for name, value in tensors.items()
        }
        write_tensors(folder / f"m{k}", noisy)
        (folder / f"m{k}" / "config.json").write_text((folder / "m0" / "config.json").read_text())
    return [folder / f"m{k}" for k in range(len(noises) + 1)]
