"""A task: a model, the examples it is judged on, and how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from soupkit.checkpoint.layout import companions
from soupkit.errors import TaskError
from soupkit.identity import digest, files_identity, versions
from soupkit.task.data import DataRecipe, Splits, open_data
from soupkit.task.examples import DEFAULT_LIMIT, Examples
from soupkit.task.images import ImageSettings, for_characters
from soupkit.task.models import ModelSpec, build, build_tokenizer, describe, image_settings
from soupkit.task.score import COUNT_METRICS, Predictions, Score, num_ahead, score_predictions
from soupkit.task.weights import arrays, load_weights
from soupkit.task.zero_shot import ZeroShotClassifier
from soupkit.world import ALONE, World

if TYPE_CHECKING:
    from soupkit.checkpoint.checkpoint import Checkpoint

FIRST_BATCH = 32


class TaskRecipe(DataRecipe, Protocol):
    """The fields of `DataOptions` and `ModelOptions` that a task reads."""

    @property
    def model(self) -> str | None: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def workers(self) -> int: ...
    @property
    def templates(self) -> tuple[str, ...]: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...


class Task:
    """What weights are loaded into, and the examples that judge them.

    The ranks of `world` share the examples of every prediction; each gets all of it, so all must ask for it.
    `train` shows training examples as evaluation does, for batch-norm statistics.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        spec: ModelSpec,
        splits: Splits,
        settings: ImageSettings,
        *,
        device: torch.device,
        batch_size: int = 128,
        workers: int = 0,
        max_bytes: int = DEFAULT_LIMIT,
        world: World = ALONE,
    ) -> None:
        self.model = model.to(device).eval()
        self.spec = spec
        self.splits = splits
        self.settings = settings
        self.device = device
        self.world = world
        self.batch_size = batch_size
        self.train, self.held_out, self.test = (
            Examples(part, settings, workers=workers, max_bytes=max_bytes)
            for part in (splits.train, splits.held_out, splits.test)
        )

    def load(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Load weights; the zero-shot head of a CLIP model is made anew. Raises TaskError, and then changed nothing."""
        if isinstance(self.model, ZeroShotClassifier):
            load_weights(self.model.clip, tensors)
            self.model.rebuild_head()
        else:
            load_weights(self.model, tensors)

    @property
    def saved(self) -> torch.nn.Module:
        """The part of the model whose weights make the checkpoint."""
        return self.model.clip if isinstance(self.model, ZeroShotClassifier) else self.model

    def saved_name(self, name: str) -> str:
        """The checkpoint's name of a tensor of `model`: a CLIP model is wrapped by its classifier."""
        return name.removeprefix("clip.") if isinstance(self.model, ZeroShotClassifier) else name

    def tensors(self) -> dict[str, np.ndarray]:
        """The weights under their checkpoint's names; views of the model's memory on the CPU."""
        return arrays(self.saved)

    @torch.inference_mode()
    def predict(self, examples: Examples, *, indices: np.ndarray | None = None) -> Predictions:
        """Logits float32[N, C] and classes of the examples `indices` (all, in order, when None)."""
        indices = np.arange(len(examples)) if indices is None else indices
        share = self.world.share(len(indices))
        batches = examples.batches(batch_size=self.batch_size, indices=indices[share.start : share.stop])
        parts = self.world.gather([self._logits(images) for images, _ in batches])
        return Predictions(np.concatenate([logits for part in parts for logits in part]), examples.targets[indices])

    @torch.inference_mode()
    def trial(
        self, examples: Examples, *, metric: str, order: np.ndarray | None = None, needed_right: int | None = None
    ) -> Score:
        """Score the loaded weights, or find out that they cannot have `needed_right` right, whichever is sooner.

        A metric that counts ends once more than N − needed_right examples are wrong: exact, since no rest of the
        examples could change the verdict. With `order` (the doubtful examples first) that comes early. Batches grow
        from 32 to batch_size in a fixed way, so a trial that is not stopped computes the same with and without.
        """
        order = np.arange(len(examples)) if order is None else order
        chunks = _growing(order, self.batch_size)
        allowed = None if needed_right is None or metric not in COUNT_METRICS else len(order) - needed_right
        done: list[np.ndarray] = []
        num_seen = num_wrong = 0
        shares = [self.world.share(len(chunk)) for chunk in chunks]
        own = [chunk[share.start : share.stop] for chunk, share in zip(chunks, shares, strict=True)]
        batches = examples.chunks([part for part in own if len(part)])
        for chunk, part in zip(chunks, own, strict=True):
            parts = self.world.gather(self._logits(next(batches)[0]) if len(part) else None)
            done.append(np.concatenate([part for part in parts if part is not None]))
            num_seen += len(chunk)
            if allowed is None:
                continue
            num_wrong += int((num_ahead(done[-1], examples.targets[chunk]) >= COUNT_METRICS[metric]).sum())
            if num_wrong > allowed:
                return _stopped(metric, num_wrong=num_wrong, num_seen=num_seen, num_examples=len(order))
        logits = np.concatenate(done)
        back = np.argsort(order)
        return score_predictions(Predictions(logits[back], examples.targets[order[back]]), metric)

    def fingerprint(self) -> str:
        """Identifies everything but the weights that a score depends on, by content. Reads the data's files.

        The model and the files that configure it, the data and its split, transform, prompts, device, libraries.
        """
        directory = self.spec.directory
        beside = [] if directory is None else companions(directory)
        return digest(
            self.spec.to_json(),
            files_identity((path.name, path) for path in beside),
            self.splits.identity(),
            self.settings.to_json(),
            self.model.prompts if isinstance(self.model, ZeroShotClassifier) else None,
            self.device.type,
            versions(),
        )

    def _logits(self, images: torch.Tensor) -> np.ndarray:
        logits: np.ndarray = self.model(images.to(self.device)).float().cpu().numpy()
        return logits


def open_task(checkpoint: Checkpoint, recipe: TaskRecipe, world: World, *, splits: Splits | None = None) -> Task:
    """Build the model that `checkpoint` is of, open the data, and load the weights. Raises TaskError with a hint.

    splits: those of an earlier task, to use its data again.
    """
    if recipe.data is None and splits is None:
        raise TaskError("scoring needs data", hint="give --data, or a scorer of your own: --score-command")
    spec = describe(checkpoint, recipe.model)
    splits = splits or open_data(recipe)
    device = world.torch_device()
    model = _classifier(spec, splits, recipe)
    settings = image_settings(model.clip if isinstance(model, ZeroShotClassifier) else model, spec)
    if splits.characters:
        settings = for_characters(settings)
    task = Task(
        model, spec, splits, settings, device=device, batch_size=recipe.batch_size, workers=recipe.workers, world=world
    )
    task.load(checkpoint)
    return task


def _classifier(spec: ModelSpec, splits: Splits, recipe: TaskRecipe) -> torch.nn.Module:
    class_names = recipe.class_names or splits.class_names
    if len(class_names) != len(splits.class_names):
        raise TaskError(f"{len(class_names)} class names for data of {len(splits.class_names)} classes")
    if spec.library == "open_clip":
        tokenize = build_tokenizer(spec)
        return ZeroShotClassifier(build(spec), tokenize, class_names=class_names, templates=recipe.templates)
    unsaid = not spec.config and "num_classes" not in spec.kwargs
    model = build(spec, num_classes=len(class_names) if unsaid else None)
    num_classes = getattr(model, "num_classes", len(class_names))
    if num_classes != len(class_names):
        raise TaskError(
            f"{spec.name} tells {num_classes} classes apart, the data has {len(class_names)}",
            hint="score it on the data that it was trained for, or fine-tune it: soupkit finetune --base …",
        )
    return model


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
