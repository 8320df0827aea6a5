"""Recipes of the merges of task vectors: weights minus base."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.errors import RecipeError
from soupkit.recipe.fields import option
from soupkit.recipe.methods import MethodRecipe


@dataclass(frozen=True, kw_only=True)
class BaseOptions(MethodRecipe):
    """A merge of task vectors: weights minus base."""

    base: str = option(help="the checkpoint that the others were fine-tuned from")
    lambda_: float = option(1.0, help="factor of the merged task vector")


@dataclass(frozen=True, kw_only=True)
class SumOptions(BaseOptions):
    """Task vectors with weights."""

    weight: tuple[float, ...] = option((1.0,), help="one weight, or one per checkpoint")
    normalize: bool = option(False, help="divide by the sum of the weights")


@dataclass(frozen=True, kw_only=True)
class ElectionOptions(BaseOptions):
    """Task vectors with weights and a sign election."""

    weight: tuple[float, ...] = option((1.0,), help="one weight, or one per checkpoint")
    normalize: bool = option(True, help="average the entries that agree, by weight; without it they are added")


@dataclass(frozen=True, kw_only=True)
class RandomOptions:
    """Entries are dropped at random."""

    seed: int = option(0, help="the same seed drops the same entries, whatever the threads and shards")
    rescale: bool = option(True, help="divide what is kept by its probability")

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise RecipeError(f"seed is {self.seed}, expected at least 0")


@dataclass(frozen=True, kw_only=True)
class MergeTaskArithmetic(SumOptions):
    """Add weighted task vectors to a base.

    Example: soupkit merge task-arithmetic a b --base base --weight 0.4 --out soups/tasks
    """

    METHOD = "task-arithmetic"


@dataclass(frozen=True, kw_only=True)
class MergeTies(ElectionOptions):
    """Trim task vectors to their largest entries, elect signs, average what agrees.

    Example: soupkit merge ties a b c --base base --density 0.2 --out soups/ties
    """

    METHOD = "ties"

    density: tuple[float, ...] = option((0.2,), help="fraction of the entries to keep, one or one per checkpoint")


@dataclass(frozen=True, kw_only=True)
class MergeDareLinear(RandomOptions, SumOptions):
    """Drop entries of task vectors at random, rescale the rest, add them up.

    Example: soupkit merge dare-linear a b --base base --density 0.5 --weight 0.5 --seed 1 --out soups/dare
    """

    METHOD = "dare-linear"

    density: tuple[float, ...] = option((0.5,), help="fraction of the entries to keep, one or one per checkpoint")


@dataclass(frozen=True, kw_only=True)
class MergeDareTies(RandomOptions, ElectionOptions):
    """Drop entries of task vectors at random, rescale the rest, elect signs, combine what agrees.

    Example: soupkit merge dare-ties a b --base base --density 0.5 --seed 1 --out soups/dare-ties
    """

    METHOD = "dare-ties"

    density: tuple[float, ...] = option((0.5,), help="fraction of the entries to keep, one or one per checkpoint")


@dataclass(frozen=True, kw_only=True)
class MergeDellaLinear(RandomOptions, SumOptions):
    """Drop small entries of task vectors more often than large ones, rescale the rest, add them up.

    Example: soupkit merge della-linear a b --base base --density 0.5 --epsilon 0.2 --out soups/della
    """

    METHOD = "della-linear"

    density: tuple[float, ...] = option((0.5,), help="fraction of the entries to keep, one or one per checkpoint")
    epsilon: tuple[float, ...] = option((0.2,), help="spread of the probabilities: density ± epsilon / 2, by magnitude")


@dataclass(frozen=True, kw_only=True)
class MergeDellaTies(RandomOptions, ElectionOptions):
    """Drop small entries of task vectors more often than large ones, rescale, elect signs, combine what agrees.

    Example: soupkit merge della-ties a b --base base --density 0.5 --epsilon 0.2 --out soups/della-ties
    """

    METHOD = "della-ties"

    density: tuple[float, ...] = option((0.5,), help="fraction of the entries to keep, one or one per checkpoint")
    epsilon: tuple[float, ...] = option((0.2,), help="spread of the probabilities: density ± epsilon / 2, by magnitude")


@dataclass(frozen=True, kw_only=True)
class MergeBreadcrumbs(SumOptions):
    """Drop the largest and the smallest entries of task vectors, add up the rest.

    Example: soupkit merge breadcrumbs a b --base base --density 0.9 --gamma 0.01 --out soups/breadcrumbs
    """

    METHOD = "breadcrumbs"

    density: tuple[float, ...] = option((0.9,), help="fraction of the entries to keep, one or one per checkpoint")
    gamma: tuple[float, ...] = option((0.01,), help="fraction of the largest entries to drop")


@dataclass(frozen=True, kw_only=True)
class MergeBreadcrumbsTies(ElectionOptions):
    """Drop the largest and the smallest entries of task vectors, elect signs, combine what agrees.

    Example: soupkit merge breadcrumbs-ties a b --base base --density 0.9 --gamma 0.01 --out soups/breadcrumbs-ties
    """

    METHOD = "breadcrumbs-ties"

    density: tuple[float, ...] = option((0.9,), help="fraction of the entries to keep, one or one per checkpoint")
    gamma: tuple[float, ...] = option((0.01,), help="fraction of the largest entries to drop")


@dataclass(frozen=True, kw_only=True)
class MergeModelStock(BaseOptions):
    """Go from a base towards the average as far as the angles between the fine-tuned checkpoints say.

    Example: soupkit merge model-stock a b --base base --out soups/stock
    """

    METHOD = "model-stock"

    rows: bool = option(False, help="by filter (output unit) instead of by tensor")


@dataclass(frozen=True, kw_only=True)
class MergeSce(BaseOptions):
    """Select what varies most between task vectors, weigh by energy, erase minority signs.

    Example: soupkit merge sce a b c --base base --density 0.1 --out soups/sce
    """

    METHOD = "sce"

    density: float = option(1.0, help="fraction of the entries to keep, by variance over the checkpoints")
    normalize: bool = option(True, help="average the entries that agree, by weight; without it they are added")


@dataclass(frozen=True, kw_only=True)
class MergeConsensus(SumOptions):
    """Add weighted task vectors where several tasks need the entry (consensus task arithmetic).

    Example: soupkit merge consensus a b c --base base --weight 0.3 --out soups/consensus
    """

    METHOD = "consensus"

    threshold: float = option(0.4, help="a task needs an entry when its own is this many times the others' sum")
    agree: int = option(2, help="how many tasks must need an entry")


@dataclass(frozen=True, kw_only=True)
class MergeTallMask(BaseOptions):
    """Recover one task out of the sum of all by its TALL mask.

    Example: soupkit merge tall-mask a b c --base base --task 0 --out soups/task-0
    """

    METHOD = "tall-mask"

    task: int = option(help="position of the checkpoint to recover, from 0")
    threshold: float = option(0.4, help="a task needs an entry when its own is this many times the others' sum")


@dataclass(frozen=True, kw_only=True)
class MergeNearswap(BaseOptions):
    """Move a base towards another checkpoint, each entry by at most t.

    Example: soupkit merge nearswap b --base a --t 0.001 --out soups/nearswap
    """

    METHOD = "nearswap"

    t: float = option(help="the longest step of an entry, in units of the weights")
