"""What the recipes of methods share: a recipe of its own declares each method, and adding one needs no table.

`methods/NAME.py` holds those that merge weights, `task_vectors/NAME.py` those that merge differences from a
base. The class MergeName is the command `merge name`; its fields are the options, with their limits; and
FAMILY says where `soupkit/merge/families` has a function `name`, which takes the fields of the same names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from soupkit.recipe.fields import argument, check_limits, option
from soupkit.recipe.merge import REFS
from soupkit.recipe.presets import settings_of
from soupkit.recipe.shared import OutputOptions, WeightOptions


@dataclass(frozen=True, kw_only=True)
class TensorOptions:
    """What may differ from tensor to tensor, and between the shapes of the checkpoints."""

    set: tuple[str, ...] = option(
        (),
        help="options per tensor, 'PATTERN: {option: VALUE}' such as 'layers.*.mlp: {weight: [0.2, 0.8]}'; a "
        "list is a gradient over the layers, {0: VALUE} speaks of the first checkpoint; repeat for more, "
        "later ones win",
    )
    embedding: Literal["error", "pad", "intersect"] = option(
        "error", help="vocabularies of different sizes: refuse, extend to the largest, or cut to the smallest"
    )


@dataclass(frozen=True, kw_only=True)
class MethodRecipe(OutputOptions, WeightOptions, TensorOptions):
    """A merge by a method, METHOD, which needs a function per tensor.

    INPUTS: how many checkpoints it takes at least and at most (None: any number), the base apart. PIECES:
    what the function is given at a time: as many elements as fit in cache, whole rows, or the tensor.
    """

    METHOD: ClassVar[str]
    FAMILY: ClassVar[str]
    INPUTS: ClassVar[tuple[int, int | None]] = (1, None)
    PIECES: ClassVar[Literal["stratum", "row", "tensor"]] = "stratum"

    refs: tuple[str, ...] = argument(
        help=REFS + ", LoRA adapters (PEFT directories, alone or as MODEL+ADAPTER)"
    )
    layers: tuple[str, ...] = option(
        (),
        help="START:STOP of the layers to merge, which become a model of that depth; one for all "
        "checkpoints, or one "
        "for each and then the base's; several with commas between them are stacked; default: all layers",
    )
    stack: str | None = option(
        None, help="what the layers' names begin with; default: where most layers are numbered"
    )
    config_from: str | None = option(
        None,
        help="the checkpoint whose configuration, tokenizer and other files go along; default: the first",
    )

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        cls.METHOD = re.sub(r"(?<=.)([A-Z])", r"-\1", cls.__name__.removeprefix("Merge")).lower()

    def __post_init__(self) -> None:
        check_limits(self)


@dataclass(frozen=True, kw_only=True)
class BaseOptions(MethodRecipe):
    """A merge of task vectors: weights minus base."""

    base: str = option(help="the checkpoint that the others were fine-tuned from")
    lambda_: float = option(1.0, help="factor of the merged task vector")
    preset: str | None = option(
        None,
        help="lines:ALPHA,BETA: lambda grows linearly from ALPHA in the first layer to ALPHA + BETA in the "
        "last (LiNeS); --set goes over it",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        settings_of(self.preset)


@dataclass(frozen=True, kw_only=True)
class SumOptions(BaseOptions):
    """Task vectors with weights."""

    weight: tuple[float, ...] = option((1.0,), help="one weight, or one per checkpoint")
    normalize: bool = option(False, help="divide by the sum of the weights")


@dataclass(frozen=True, kw_only=True)
class ElectionOptions(BaseOptions):
    """Task vectors with weights and a sign election."""

    weight: tuple[float, ...] = option((1.0,), help="one weight, or one per checkpoint")
    normalize: bool = option(
        True, help="average the entries that agree, by weight; without it they are added"
    )


@dataclass(frozen=True, kw_only=True)
class SpectralOptions(BaseOptions):
    """Task matrices by their singular vectors."""

    FAMILY = "spectral"
    INPUTS = (1, None)
    PIECES = "tensor"

    max_side: int = option(
        16384, help="matrices with a longer side, such as vocabularies, are merged entry by entry", low=1
    )


@dataclass(frozen=True, kw_only=True)
class ChangeOptions(BaseOptions):
    """Entries by which tasks changed them."""

    FAMILY = "ownership"

    epsilon: float = option(1e-5, help="an entry is changed when it differs from the base by more", low=0)


@dataclass(frozen=True, kw_only=True)
class RandomOptions:
    """Entries are dropped at random."""

    seed: int = option(0, help="the same seed drops the same entries, whatever the threads and shards", low=0)
    rescale: bool = option(True, help="divide what is kept by its probability")


def task_option() -> Any:
    """Which task a method recovers out of what all of them became."""
    return option(help="position of the checkpoint to recover, from 0", low=0)


def density_option(default: float) -> Any:
    """The fraction that is kept of each task vector's entries, as every method that trims or drops has it."""
    kept = "fraction of the entries to keep, one or one per checkpoint"
    return option((default,), help=kept, low=0, high=1, above=True)


def epsilon_option() -> Any:
    """How far DELLA's probabilities lie apart."""
    spread = "spread of the probabilities: density ± epsilon / 2, by magnitude"
    return option((0.2,), help=spread, low=0, high=1)


def gamma_option() -> Any:
    """The fraction that breadcrumbs takes for outliers."""
    return option((0.01,), help="fraction of the largest entries to drop", low=0, high=1)
