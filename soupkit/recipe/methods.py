"""Recipes of the merges that work on one tensor at a time and need no data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from soupkit.recipe.fields import argument, option
from soupkit.recipe.merge import REFS
from soupkit.recipe.shared import OutputOptions, WeightOptions


@dataclass(frozen=True, kw_only=True)
class TensorOptions:
    """What may differ from tensor to tensor, and between the shapes of the checkpoints."""

    set: tuple[str, ...] = option(
        (),
        help="options per tensor, 'PATTERN: {option: VALUE}' such as 'layers.*.mlp: {weight: [0.2, 0.8]}'; a list is a "
        "gradient over the layers, {0: VALUE} speaks of the first checkpoint; repeat for more, later ones win",
    )
    embedding: Literal["error", "pad", "intersect"] = option(
        "error", help="vocabularies of different sizes: refuse, extend to the largest, or cut to the smallest"
    )


@dataclass(frozen=True, kw_only=True)
class MethodRecipe(OutputOptions, WeightOptions, TensorOptions):
    """A merge by a method of the table; METHOD is its name there."""

    METHOD: ClassVar[str]

    refs: tuple[str, ...] = argument(help=REFS + ", LoRA adapters (PEFT directories)")


@dataclass(frozen=True, kw_only=True)
class OnBase(MethodRecipe):
    """A merge of task vectors: weights minus base."""

    base: str = option(help="the checkpoint that the others were fine-tuned from")
    lambda_: float = option(1.0, help="factor of the merged task vector")


@dataclass(frozen=True, kw_only=True)
class Weighted(OnBase):
    """Task vectors with weights."""

    weight: tuple[float, ...] = option((1.0,), help="one weight, or one per checkpoint")
    normalize: bool = option(False, help="divide by the sum of the weights")


@dataclass(frozen=True, kw_only=True)
class Elected(OnBase):
    """Task vectors with weights and a sign election."""

    weight: tuple[float, ...] = option((1.0,), help="one weight, or one per checkpoint")
    normalize: bool = option(True, help="average the entries that agree, by weight; without it they are added")


@dataclass(frozen=True, kw_only=True)
class RandomOptions:
    """Entries are dropped at random."""

    seed: int = option(0, help="the same seed drops the same entries, whatever the threads and shards")
    rescale: bool = option(True, help="divide what is kept by its probability")


@dataclass(frozen=True, kw_only=True)
class MergeSlerp(MethodRecipe):
    """Interpolate two checkpoints on the sphere: from A (t = 0) to B (t = 1).

    Example: soupkit merge slerp a b --t 0.3 --out soups/slerp
    """

    METHOD = "slerp"

    t: float = option(0.5, help="0 is the first checkpoint, 1 the second")
    rows: bool = option(False, help="rotate every row (output unit) by itself, instead of every tensor")


@dataclass(frozen=True, kw_only=True)
class MergeNuslerp(MethodRecipe):
    """Interpolate two checkpoints, or their task vectors, on the sphere by weights.

    Example: soupkit merge nuslerp a b --weight 0.7,0.3 --base base --out soups/nuslerp
    """

    METHOD = "nuslerp"

    base: str | None = option(None, help="interpolate the differences from this checkpoint")
    weight: tuple[float, ...] = option((1.0,), help="two weights; t is the second's share")
    rows: bool = option(False, help="rotate every row (output unit) by itself, instead of every tensor")


@dataclass(frozen=True, kw_only=True)
class MergeMultislerp(MethodRecipe):
    """Average the directions of checkpoints, or of task vectors, and their lengths.

    Example: soupkit merge multislerp a b c --weight 0.5,0.3,0.2 --out soups/multislerp
    """

    METHOD = "multislerp"

    base: str | None = option(None, help="average the differences from this checkpoint")
    weight: tuple[float, ...] = option((1.0,), help="one weight, or one per checkpoint")


@dataclass(frozen=True, kw_only=True)
class MergeKarcher(MethodRecipe):
    """Average checkpoints, or task vectors, on the sphere: the Karcher mean of their directions.

    Example: soupkit merge karcher a b c --out soups/karcher
    """

    METHOD = "karcher"

    base: str | None = option(None, help="average the differences from this checkpoint")
    weight: tuple[float, ...] = option((1.0,), help="one weight, or one per checkpoint")
    iterations: int = option(50, help="most steps of the fixed-point iteration")
    tolerance: float = option(1e-9, help="stop when a step is shorter than this many radians")


@dataclass(frozen=True, kw_only=True)
class MergeTaskArithmetic(Weighted):
    """Add weighted task vectors to a base.

    Example: soupkit merge task-arithmetic a b --base base --weight 0.4 --out soups/tasks
    """

    METHOD = "task-arithmetic"


@dataclass(frozen=True, kw_only=True)
class MergeTies(Elected):
    """Trim task vectors to their largest entries, elect signs, average what agrees.

    Example: soupkit merge ties a b c --base base --density 0.2 --out soups/ties
    """

    METHOD = "ties"

    density: tuple[float, ...] = option((0.2,), help="fraction of the entries to keep, one or one per checkpoint")


@dataclass(frozen=True, kw_only=True)
class MergeDareLinear(RandomOptions, Weighted):
    """Drop entries of task vectors at random, rescale the rest, add them up.

    Example: soupkit merge dare-linear a b --base base --density 0.5 --weight 0.5 --seed 1 --out soups/dare
    """

    METHOD = "dare-linear"

    density: tuple[float, ...] = option((0.5,), help="fraction of the entries to keep, one or one per checkpoint")


@dataclass(frozen=True, kw_only=True)
class MergeDareTies(RandomOptions, Elected):
    """Drop entries of task vectors at random, rescale the rest, elect signs, combine what agrees.

    Example: soupkit merge dare-ties a b --base base --density 0.5 --seed 1 --out soups/dare-ties
    """

    METHOD = "dare-ties"

    density: tuple[float, ...] = option((0.5,), help="fraction of the entries to keep, one or one per checkpoint")


@dataclass(frozen=True, kw_only=True)
class MergeDellaLinear(RandomOptions, Weighted):
    """Drop small entries of task vectors more often than large ones, rescale the rest, add them up.

    Example: soupkit merge della-linear a b --base base --density 0.5 --epsilon 0.2 --out soups/della
    """

    METHOD = "della-linear"

    density: tuple[float, ...] = option((0.5,), help="fraction of the entries to keep, one or one per checkpoint")
    epsilon: tuple[float, ...] = option((0.2,), help="spread of the probabilities: density ± epsilon / 2, by magnitude")


@dataclass(frozen=True, kw_only=True)
class MergeDellaTies(RandomOptions, Elected):
    """Drop small entries of task vectors more often than large ones, rescale, elect signs, combine what agrees.

    Example: soupkit merge della-ties a b --base base --density 0.5 --epsilon 0.2 --out soups/della-ties
    """

    METHOD = "della-ties"

    density: tuple[float, ...] = option((0.5,), help="fraction of the entries to keep, one or one per checkpoint")
    epsilon: tuple[float, ...] = option((0.2,), help="spread of the probabilities: density ± epsilon / 2, by magnitude")


@dataclass(frozen=True, kw_only=True)
class MergeBreadcrumbs(Weighted):
    """Drop the largest and the smallest entries of task vectors, add up the rest.

    Example: soupkit merge breadcrumbs a b --base base --density 0.9 --gamma 0.01 --out soups/breadcrumbs
    """

    METHOD = "breadcrumbs"

    density: tuple[float, ...] = option((0.9,), help="fraction of the entries to keep, one or one per checkpoint")
    gamma: tuple[float, ...] = option((0.01,), help="fraction of the largest entries to drop")


@dataclass(frozen=True, kw_only=True)
class MergeBreadcrumbsTies(Elected):
    """Drop the largest and the smallest entries of task vectors, elect signs, combine what agrees.

    Example: soupkit merge breadcrumbs-ties a b --base base --density 0.9 --gamma 0.01 --out soups/breadcrumbs-ties
    """

    METHOD = "breadcrumbs-ties"

    density: tuple[float, ...] = option((0.9,), help="fraction of the entries to keep, one or one per checkpoint")
    gamma: tuple[float, ...] = option((0.01,), help="fraction of the largest entries to drop")


@dataclass(frozen=True, kw_only=True)
class MergeModelStock(OnBase):
    """Go from a base towards the average as far as the angles between the fine-tuned checkpoints say.

    Example: soupkit merge model-stock a b --base base --out soups/stock
    """

    METHOD = "model-stock"

    rows: bool = option(False, help="by filter (output unit) instead of by tensor")


@dataclass(frozen=True, kw_only=True)
class MergeSce(OnBase):
    """Select what varies most between task vectors, weigh by energy, erase minority signs.

    Example: soupkit merge sce a b c --base base --density 0.1 --out soups/sce
    """

    METHOD = "sce"

    density: float = option(1.0, help="fraction of the entries to keep, by variance over the checkpoints")
    normalize: bool = option(True, help="average the entries that agree, by weight; without it they are added")


@dataclass(frozen=True, kw_only=True)
class MergeConsensus(Weighted):
    """Add weighted task vectors where several tasks need the entry (consensus task arithmetic).

    Example: soupkit merge consensus a b c --base base --weight 0.3 --out soups/consensus
    """

    METHOD = "consensus"

    threshold: float = option(0.4, help="a task needs an entry when its own is this many times the others' sum")
    agree: int = option(2, help="how many tasks must need an entry")


@dataclass(frozen=True, kw_only=True)
class MergeTallMask(OnBase):
    """Recover one task out of the sum of all by its TALL mask.

    Example: soupkit merge tall-mask a b c --base base --task 0 --out soups/task-0
    """

    METHOD = "tall-mask"

    task: int = option(help="position of the checkpoint to recover, from 0")
    threshold: float = option(0.4, help="a task needs an entry when its own is this many times the others' sum")


@dataclass(frozen=True, kw_only=True)
class MergeNearswap(OnBase):
    """Move a base towards another checkpoint, each entry by at most t.

    Example: soupkit merge nearswap b --base a --t 0.001 --out soups/nearswap
    """

    METHOD = "nearswap"

    t: float = option(help="the longest step of an entry, in units of the weights")


@dataclass(frozen=True, kw_only=True)
class MergeFusion(MethodRecipe):
    """Take the important differences of B into A, importance by change and divergence (Arcee Fusion).

    Example: soupkit merge fusion a b --out soups/fusion
    """

    METHOD = "fusion"

    fence: float = option(1.5, help="important is what lies above median + fence · interquartile range")


@dataclass(frozen=True, kw_only=True)
class MergeFisher(MethodRecipe):
    """Average checkpoints entry by entry, weighted by their Fisher information.

    Example: soupkit merge fisher a b --statistics a-fisher.safetensors --statistics b-fisher.safetensors --out soups/f
    """

    METHOD = "fisher"

    statistics: tuple[str, ...] = option(
        help="per checkpoint, the diagonal Fisher information: same names and shapes; repeat in the same order"
    )
    weight: tuple[float, ...] = option((1.0,), help="one weight, or one per checkpoint")
    floor: float = option(1e-6, help="least Fisher information of an entry")


@dataclass(frozen=True, kw_only=True)
class MergeRegmean(MethodRecipe):
    """Combine linear layers so that their outputs on each model's own inputs change least (RegMean).

    Example: soupkit merge regmean a b --statistics a-grams.safetensors --statistics b-grams.safetensors --out soups/r
    """

    METHOD = "regmean"

    statistics: tuple[str, ...] = option(
        help="per checkpoint, XᵀX of the inputs of linear layers, under the names of their weights; repeat in order"
    )
    weight: tuple[float, ...] = option((1.0,), help="one weight, or one per checkpoint")
    shrink: float = option(0.9, help="factor of the off-diagonal entries of XᵀX")
