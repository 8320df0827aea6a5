"""A task: what weights are loaded into, what judges them, and what they learn from."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

from soupkit.jsons import Json
from soupkit.recipe.train import Finetune
from soupkit.task.epochs import Place
from soupkit.task.score import Metric, Predictions, Score, scores_of
from soupkit.task.weights import arrays, load_weights
from soupkit.world import World

Role = Literal["train", "held_out", "test"]
FIRST_BATCH = 32
MOST_TOGETHER = 256
"""Inputs of a head that pass through its makers together, at most."""


class Batch(Protocol):
    """Some examples, as the task that made them understands them: nobody else looks into one."""

    def __len__(self) -> int:
        """How many examples there are."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What it is made of, each [n, …]."""

    def of(self, *tensors: Tensor) -> Self:
        """A batch of other such tensors: of some of the examples, or of several batches side by side."""


class Examples(Protocol):
    """The examples of a split as evaluation shows them."""

    @property
    def targets(self) -> np.ndarray:
        """What is right, [N, …]."""

    @property
    def num_bytes(self) -> int:
        """What of them stays in memory once all were shown."""

    def __len__(self) -> int:
        """N."""

    def batches(self, *, batch_size: int, indices: np.ndarray | None = None) -> Iterator[Batch]:
        """Batches in the order of `indices` (all, in order, when None)."""

    def chunks(self, chunks: Sequence[np.ndarray]) -> Iterator[Batch]:
        """One batch per array of indices. Work stops when the caller stops asking."""


@dataclass(frozen=True)
class Pass:
    """What a head asks of memory: `num` inputs, bytes that each keeps for backward, bytes of what is
    `made`."""

    num: int
    each: int
    made: int


class Head(Protocol):
    """A part that other weights make, once for all examples: the classes of CLIP, out of its text tower."""

    def makers(self) -> set[str]:
        """The checkpoint's names of the weights that make it."""

    def forget(self) -> None:
        """The weights changed: it is made anew when it is needed."""

    def opened(self, at_once: int, world: World) -> AbstractContextManager[object]:
        """Inside, a loss is differentiated to the head; on leaving, from there through the makers, for all
        ranks.

        at_once: how many inputs pass through them together. Every rank takes its share of them.
        """

    def passed(self) -> Pass:
        """What one differentiation asks of memory. Cost: two small forward passes."""


class Task(Protocol):
    """A model, the examples it is judged on, and how.

    An implementation derives from this and gives what has no body here. The ranks of `world` share the
    examples of every prediction; each gets all of it, so all must ask for it. criterion: the metric that is
    the mean of the loss.
    """

    model: nn.Module
    device: torch.device
    world: World
    batch_size: int
    metrics: Mapping[str, Metric]
    criterion: str

    def split(self, role: Role) -> Examples:
        """The examples that fit, select or report. Training examples are shown as evaluation does."""

    def outputs(self, batch: Batch) -> Tensor:
        """What the model says of a batch, [n, …] in float32 or more, differentiable."""

    def loss(self, batch: Batch, temperature: Tensor | None = None) -> Tensor:
        """What training makes small, summed over a batch: a scalar in float32 or more, differentiable.

        temperature: a scalar that multiplies the outputs, and gets a gradient. (A sum, since adding up losses
        of single examples would change the last bits of what is recorded; those of examples are a metric's
        `terms`.)
        """

    def training(self, how: Finetune, *, first: int = 0) -> Iterator[tuple[Place, Batch]]:
        """What weights learn from: the batches of all epochs, on `device`, each with its place.

        The same for the same seed, wherever it begins. first: the batch to begin with, counted over all
        epochs; those before it are not read.
        """

    def example_bytes(self) -> int:
        """What one example of a forward pass keeps for the backward pass."""

    def fingerprint(self) -> str:
        """Identifies, by content, all but the weights that a score depends on. Reads the data's files."""

    @property
    def saved(self) -> nn.Module:
        """The part of the model whose weights make the checkpoint."""

    @property
    def head(self) -> Head | None:
        """What other weights make once for all examples; None in most models."""

    @property
    def train(self) -> Examples:
        """What weights are fitted to."""
        return self.split("train")

    @property
    def held_out(self) -> Examples:
        """What selects."""
        return self.split("held_out")

    @property
    def test(self) -> Examples:
        """What reports."""
        return self.split("test")

    def load(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Load weights. Raises TaskError, and then changed nothing."""
        load_weights(self.saved, tensors)
        if self.head is not None:
            self.head.forget()

    def tensors(self) -> dict[str, np.ndarray]:
        """The weights under their checkpoint's names; views of the model's memory on the CPU."""
        return arrays(self.saved)

    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters under their checkpoint's names, each under all of its names."""
        return dict(self.saved.named_parameters(remove_duplicate=False))

    def saved_name(self, name: str) -> str:
        """The checkpoint's name of a tensor of `model`."""
        prefix = next(name for name, module in self.model.named_modules() if module is self.saved)
        return name.removeprefix(f"{prefix}.") if prefix else name

    def around(self, model: nn.Module) -> Self:
        """The same task with another model of the same kind."""
        other = copy.copy(self)
        other.model = model
        return other

    def twin(self) -> Self:
        """The same task with a model of its own, to load other weights into."""
        return self.around(copy.deepcopy(self.model))

    @torch.inference_mode()
    def predict(self, examples: Examples, *, indices: np.ndarray | None = None) -> Predictions:
        """Outputs float32[N, …] and targets of the examples `indices` (all, in order, when None)."""
        indices = np.arange(len(examples)) if indices is None else indices
        share = self.world.share(len(indices))
        batches = examples.batches(batch_size=self.batch_size, indices=indices[share.start : share.stop])
        parts = self.world.gather([self.outputs(batch).cpu().numpy() for batch in batches])
        outputs = np.concatenate([each for part in parts for each in part])
        return Predictions(outputs, examples.targets[indices])

    def score(self, examples: Examples, metric: str, *, indices: np.ndarray | None = None) -> Score:
        """One metric of the loaded weights."""
        predictions = self.predict(examples, indices=indices)
        return self.metrics[metric].of(predictions.outputs, predictions.targets)

    def scores(self, examples: Examples) -> dict[str, Score]:
        """Every metric that applies."""
        return scores_of(self.predict(examples), self.metrics)

    @torch.inference_mode()
    def trial(
        self,
        examples: Examples,
        *,
        metric: str,
        order: np.ndarray | None = None,
        needed_right: int | None = None,
    ) -> Score:
        """Score the loaded weights, or find out that they cannot have `needed_right` right: what is sooner.

        A metric that counts ends once more than N − needed_right examples are wrong: exact, since no rest of
        the examples could change the verdict. With `order` (the doubtful examples first) that comes early.
        Batches grow from 32 to batch_size in a fixed way, so a trial that is not stopped computes the same
        with and without.
        """
        order = np.arange(len(examples)) if order is None else order
        judge, chunks = self.metrics[metric], _growing(order, self.batch_size)
        allowed = None if needed_right is None or not judge.counts else len(order) - needed_right
        done: list[np.ndarray] = []
        num_seen = num_wrong = 0
        shares = [self.world.share(len(chunk)) for chunk in chunks]
        own = [chunk[share.start : share.stop] for chunk, share in zip(chunks, shares, strict=True)]
        batches = examples.chunks([part for part in own if len(part)])
        for chunk, part in zip(chunks, own, strict=True):
            parts = self.world.gather(self.outputs(next(batches)).cpu().numpy() if len(part) else None)
            done.append(np.concatenate([part for part in parts if part is not None]))
            num_seen += len(chunk)
            if allowed is None:
                continue
            num_wrong += len(chunk) - int(judge.terms(done[-1], examples.targets[chunk]).sum())
            if num_wrong > allowed:
                return _stopped(metric, num_wrong=num_wrong, num_seen=num_seen, num_examples=len(order))
        back = np.argsort(order)
        return judge.of(np.concatenate(done)[back], examples.targets[order[back]])


class Trainee(Task, Protocol):
    """A task whose model is written as a checkpoint that says what it is, and is read again."""

    @property
    def name(self) -> str:
        """What the model is called."""

    @property
    def file_name(self) -> str:
        """What its weights' file is called, where the library that loads them looks for it."""

    @property
    def notes(self) -> Json:
        """What a manifest says of the examples and of how they are shown."""

    def write_config(self, directory: Path) -> None:
        """Write what the weights' library reads beside them."""

    def reopened(self, directory: Path, how: Finetune, world: World) -> Task:
        """The same data with the model that a written checkpoint says it is, and its weights."""


def _growing(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut into 32, 64, 128, … up to batch_size: small while an early stop is likely."""
    chunks, start, size = [], 0, min(FIRST_BATCH, batch_size)
    while start < len(order):
        chunks.append(order[start : start + size])
        start, size = start + size, min(2 * size, batch_size)
    return chunks


def _stopped(metric: str, *, num_wrong: int, num_seen: int, num_examples: int) -> Score:
    return Score(
        metric,
        value=(num_examples - num_wrong) / num_examples,
        standard_error=None,
        num_examples=num_examples,
        num_right=num_seen - num_wrong,
        num_evaluated=num_seen,
        stopped=True,
    )
