"""Images, classes, and the models that tell them apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from soupkit.asked import Begins, ReadsData, Runs
from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.config.classifier import SECTION
from soupkit.checkpoint.layout import companions
from soupkit.checkpoint.source import Source
from soupkit.errors import TaskError
from soupkit.identity import digest, files_identity, versions
from soupkit.jsons import Json
from soupkit.recipe.train import Finetune
from soupkit.task.activations import kept_by_one_more
from soupkit.task.epochs import Place
from soupkit.task.images.batches import finisher, loader, train_transform
from soupkit.task.images.classifier import ClipClassifier, UnderHead
from soupkit.task.images.data import ROLES, Splits, open_data
from soupkit.task.images.examples import DEFAULT_LIMIT, ImageBatch, ImageExamples, shown_to
from soupkit.task.images.heads import Tensors, begun, judged, zero_shot
from soupkit.task.images.metrics import METRICS
from soupkit.task.images.models import build, image_settings, write_config
from soupkit.task.images.transforms import ImageSettings, for_characters
from soupkit.task.images.zero_shot import ZeroShotClassifier
from soupkit.task.spec import ModelSpec, describe
from soupkit.task.task import Batch, Role, Trainee
from soupkit.world import ALONE, World


class ImageTask(Trainee):
    """Image classification: a timm model, or CLIP with a head of class names."""

    metrics = METRICS
    criterion = "nll"

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
        self._examples = {
            role: ImageExamples(splits.part(role), settings, workers=workers, max_bytes=max_bytes)
            for role in ROLES
        }

    @property
    def saved(self) -> torch.nn.Module:
        """The model, or the CLIP model that its classifier wraps."""
        return saved(self.model)

    @property
    def head(self) -> ZeroShotClassifier | None:
        """A CLIP model's classifier makes its head of the text tower."""
        return self.model if isinstance(self.model, ZeroShotClassifier) else None

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Those that have a say: of a CLIP classifier not what is left of the text tower."""
        resting = self.model.form.resting if isinstance(self.model, ClipClassifier) else ()
        return {
            name: each for name, each in super().parameters().items() if name.split(".")[0] not in resting
        }

    def split(self, role: Role) -> ImageExamples:
        """The examples of one part of the data."""
        return self._examples[role]

    def outputs(self, batch: Batch) -> torch.Tensor:
        """Logits [n, C]."""
        return shown_to(self.model, self.device)(batch)

    def loss(self, batch: Batch, temperature: torch.Tensor | None = None) -> torch.Tensor:
        """The cross-entropy of β · logits and the class (or the classes' shares, which sum to one).

        −Σ_c t_c log softmax(β · logits)_c, in float32 whatever the logits' precision.
        """
        assert isinstance(batch, ImageBatch)
        logits = self.outputs(batch)
        scaled = logits if temperature is None else logits * temperature.to(logits)
        return torch.nn.functional.cross_entropy(scaled, batch.targets.to(logits.device), reduction="sum")

    def training(self, how: Finetune, *, first: int = 0) -> Iterator[tuple[Place, ImageBatch]]:
        """Augmented and mixed images, channels last, and the shares of the classes in them."""
        part, pin_memory = self.splits.train, self.device.type == "cuda"
        finish = finisher(self.settings, how, num_classes=self.splits.num_classes, device=self.device)
        transform = train_transform(self.settings, how, characters=self.splits.characters)
        read = loader(part, transform, how, pin_memory=pin_memory, first=first)
        return ((place, finish(place, pixels, classes)) for place, pixels, classes in read)

    def example_bytes(self) -> int:
        """Measured, on one image more than one."""
        one = torch.zeros(1, *self.settings.input_size, device=self.device)
        return kept_by_one_more(self.model, self.model, one)

    def fingerprint(self) -> str:
        """Model and the files that configure it, data and their split, transform, prompts, device,
        libraries."""
        directory = self.spec.directory
        beside = [] if directory is None else companions(directory)
        return digest(
            self.spec.to_json(),
            files_identity((path.name, path) for path in beside),
            self.splits.identity(),
            self.settings.to_json(),
            _made_by(self.model),
            self.device.type,
            versions(),
        )

    @property
    def name(self) -> str:
        """The library's name of the model, and the library."""
        return f"{self.spec.library}:{self.spec.name}"

    @property
    def file_name(self) -> str:
        """As timm and open_clip name it."""
        return "open_clip_model.safetensors" if self.spec.library == "open_clip" else "model.safetensors"

    @property
    def notes(self) -> Json:
        """The data with the sizes of its splits, and how images are shown."""
        return {"data": self.splits.description, "images": self.settings.to_json()}

    def write_config(self, directory: Path) -> None:
        """config.json of timm, open_clip_config.json of open_clip."""
        names = self.splits.class_names
        write_config(self.spec, self.saved, directory, class_names=names, settings=self.settings)

    def reopened(self, directory: Path, how: Finetune, world: World) -> ImageTask:
        """Built anew, as the configuration beside the weights says."""
        again = replace(how, base=str(directory), model=None, head=None)
        return open_task(Checkpoint(directory), again, world, splits=self.splits)


def saved(model: torch.nn.Module) -> torch.nn.Module:
    """The part of a model whose weights make the checkpoint: of CLIP under a head of others, CLIP."""
    return model.clip if isinstance(model, ZeroShotClassifier | UnderHead) else model


def _made_by(model: torch.nn.Module) -> list[str] | str | None:
    """What makes a head that is none of the weights."""
    if isinstance(model, UnderHead):
        return model.fingerprint
    return model.prompts if isinstance(model, ZeroShotClassifier) else None


def build_classifier(spec: ModelSpec, splits: Splits, recipe: Runs) -> torch.nn.Module:
    """A timm model with a head for the data's classes, a CLIP classifier, or CLIP under one of class names.

    That last one is made once, by the text tower of the base: it stays as it is, and the text tower with it.
    """
    if spec.library == "timm":
        return build(spec, num_classes=len(splits.class_names))
    return build(spec) if SECTION in spec.config else zero_shot(spec, class_names_of(splits, recipe), recipe)


def begin(
    base: Source | None, spec: ModelSpec, splits: Splits, recipe: Begins, *, device: torch.device
) -> tuple[ModelSpec, torch.nn.Module, Tensors]:
    """What a training begins with: its description, the model, and a head not the base's; see `begun`."""
    spec, head = begun(base, spec, class_names_of(splits, recipe), recipe, device=device)
    return spec, build_classifier(spec, splits, recipe), head


def open_task(checkpoint: Source, recipe: Runs, world: World, *, splits: Splits | None = None) -> ImageTask:
    """Build the model that `checkpoint` is of, open the data, and load the weights. Raises TaskError with a
    hint.

    splits: those of an earlier task, to use its data again.
    """
    if recipe.data is None and splits is None:
        raise TaskError("scoring needs data", hint="give --data, or a scorer of your own: --score-command")
    spec = describe(checkpoint, recipe.model)
    splits = splits or open_data(recipe)
    task = task_of(_classifier(spec, splits, recipe), spec, splits, recipe, world)
    task.load(checkpoint)
    return task


def task_of(
    model: torch.nn.Module, spec: ModelSpec, splits: Splits, recipe: ReadsData, world: World
) -> ImageTask:
    """The task of a model on some data, which shows images as the model wants to see them."""
    settings = image_settings(saved(model), spec)
    return ImageTask(
        model,
        spec,
        splits,
        for_characters(settings) if splits.characters else settings,
        device=world.torch_device(),
        batch_size=recipe.batch_size,
        workers=recipe.workers,
        world=world,
    )


def _classifier(spec: ModelSpec, splits: Splits, recipe: Runs) -> torch.nn.Module:
    class_names = class_names_of(splits, recipe)
    if spec.library == "open_clip":
        return judged(spec, class_names, recipe)
    if recipe.head:
        raise TaskError(f"--head is for open_clip models; timm's {spec.name} has a head of its own")
    unsaid = not spec.config and "num_classes" not in spec.kwargs
    model = build(spec, num_classes=len(class_names) if unsaid else None)
    num_classes = getattr(model, "num_classes", len(class_names))
    if num_classes != len(class_names):
        raise TaskError(
            f"{spec.name} tells {num_classes} classes apart, the data has {len(class_names)}",
            hint="score it on the data that it was trained for, or fine-tune it: soupkit finetune --base …",
        )
    return model


def class_names_of(splits: Splits, recipe: Runs) -> tuple[str, ...]:
    """The names of the data's classes, or those that the recipe gives them. Raises TaskError."""
    names = recipe.class_names or splits.class_names
    if len(names) != len(splits.class_names):
        raise TaskError(f"{len(names)} class names for data of {len(splits.class_names)} classes")
    return names
