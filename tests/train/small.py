"""A small model, and recipes that train in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.hashing import content_hash
from soupkit.recipe.train import Finetune, FinetuneSweep
from soupkit.task.images.data import Splits
from soupkit.task.images.task import ImageTask
from soupkit.task.images.transforms import ImageSettings
from soupkit.task.spec import ModelSpec
from soupkit.train.sweep import LOCK_NAME

SETTINGS = ImageSettings((3, 16, 16), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0, "squash")


class SmallModel(torch.nn.Module):
    """Convolution, batch norm, dropout, head: everything that randomness and modes act on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 16, 4, stride=4)
        self.norm = torch.nn.BatchNorm2d(16)
        self.drop = torch.nn.Dropout(0.1)
        self.head = torch.nn.Linear(256, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(torch.relu(self.norm(self.conv(images))).flatten(1)))


def small_model(seed: int = 0) -> SmallModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SmallModel()


def task_of(model: torch.nn.Module, splits: Splits) -> ImageTask:
    return ImageTask(model, ModelSpec("timm", "small"), splits, SETTINGS, device=torch.device("cpu"))


def finetune_recipe(**values: Any) -> Finetune:
    defaults = {
        "out": Path("out"),
        "model": "timm:test_resnet,img_size=32",
        "data": "digits",
        "num_train": 200,
    }
    defaults |= {"num_held_out": 100, "num_test": 100, "batch_size": 32, "epochs": 2, "lr": 3e-3}
    return Finetune(**(defaults | values))


def sweep_recipe(base: Path, out: Path, **values: Any) -> FinetuneSweep:
    defaults = {"num_runs": 3, "data": "digits", "num_train": 96, "num_held_out": 120, "num_test": 110}
    defaults |= {
        "batch_size": 32,
        "epochs": "1",
        "lr": "log(1e-3,1e-2)",
        "mixup": "choice(0,0.3)",
        "device": "cpu",
    }
    defaults |= {"plots": False}
    return FinetuneSweep(base=str(base), out=out, **(defaults | values))


def contents(out: Path) -> dict[str, str]:
    return {path.name: content_hash(Checkpoint(path)) for path in sorted(out.glob("run-*"))}


def touched(out: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(out.glob("run-*/*"))}


def litter(out: Path) -> list[str]:
    return [path.name for path in out.iterdir() if path.name.startswith(".") and path.name != LOCK_NAME]
