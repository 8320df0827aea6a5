"""A task of ten lines: any model, rows of inputs and targets, a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.recipe.train import Finetune
from soupkit.task.epochs import Epochs, Place
from soupkit.task.score import Metric
from soupkit.task.task import Batch, Role, Task, Trainee
from soupkit.world import ALONE, World

TOLERANCE = 0.5


@dataclass(frozen=True)
class Rows:
    """A batch, and examples too."""

    inputs: Tensor
    labels: Tensor
    num_bytes: int = 0

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def targets(self) -> np.ndarray:
        return self.labels.numpy()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.inputs, self.labels

    def of(self, *tensors: Tensor) -> Rows:
        return Rows(*tensors)

    def batches(self, *, batch_size: int, indices: np.ndarray | None = None) -> Iterator[Rows]:
        wanted = np.arange(len(self)) if indices is None else indices
        return self.chunks([wanted[i : i + batch_size] for i in range(0, len(wanted), batch_size)])

    def chunks(self, chunks: Sequence[np.ndarray]) -> Iterator[Rows]:
        return (Rows(self.inputs[chunk], self.labels[chunk]) for chunk in chunks if len(chunk))


def squares(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs - labels).square().sum()


def _error(outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.square(outputs.astype(np.float64) - targets).reshape(len(targets), -1).sum(1, keepdims=True)


def _margins(outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return (TOLERANCE**2 - _error(outputs, targets)[:, 0]).astype(np.float32)


class Fake(Task):
    """metrics: the squared error of regression, and how many examples it is small for."""

    head, world, device, batch_size, criterion = None, ALONE, torch.device("cpu"), 32, "mse"
    metrics: ClassVar[Any] = {
        "mse": Metric("mse", "min", _error),
        "close": Metric(
            "close", "max", lambda o, t: (_error(o, t) < TOLERANCE**2).astype(float), margins=_margins
        ),
    }

    def __init__(
        self, model: nn.Module, rows: Rows | None = None, loss: Callable[[Tensor, Tensor], Tensor] = squares
    ) -> None:
        self.model, self.rows, self.summed = model, rows, loss

    @property
    def saved(self) -> nn.Module:
        return self.model

    def split(self, _role: Role) -> Rows:
        assert self.rows is not None
        return self.rows

    def outputs(self, batch: Batch) -> Tensor:
        assert isinstance(batch, Rows)
        outputs: Tensor = self.model(batch.inputs)
        return outputs

    def loss(self, batch: Batch, temperature: Tensor | None = None) -> Tensor:
        assert isinstance(batch, Rows)
        outputs = self.outputs(batch)
        return self.summed(
            outputs if temperature is None else outputs * temperature.to(outputs), batch.labels
        )

    def training(self, how: Finetune, *, first: int = 0) -> Iterator[tuple[Place, Rows]]:
        places = Epochs(len(self.train), how, first=first)
        return zip(places, self.train.chunks([np.array(place.indices) for place in places]), strict=True)

    def example_bytes(self) -> int:
        return 0

    def fingerprint(self) -> str:
        return "fake"


class Written(Fake, Trainee):
    """And what is written of it: the weights, and a word beside them."""

    name, file_name = "fake:line", "line.safetensors"
    notes: ClassVar[Any] = {"data": "rows"}

    def write_config(self, directory: Path) -> None:
        (directory / "line.txt").write_text("a line")

    def reopened(self, directory: Path, _how: Finetune, _world: World) -> Task:
        assert (directory / "line.txt").read_text() == "a line"
        twin = self.twin()
        twin.load(Checkpoint(directory))
        return twin
