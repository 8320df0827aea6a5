"""Recipes of the soups that are searched for with gradients or by black-box search: learned, mehl, twa,
evolve."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

from soupkit.errors import RecipeError
from soupkit.recipe.fields import argument, option
from soupkit.recipe.merge import REFS
from soupkit.recipe.shared import (
    BLOCKS,
    BatchNormOptions,
    DataOptions,
    DropOptions,
    ModelOptions,
    OutputOptions,
    RememberOptions,
    ScoreOptions,
    WeightOptions,
    check_blocks,
)


@dataclass(frozen=True, kw_only=True)
class MemoryOptions:
    """What may stay in memory."""

    max_memory: str | None = option(
        None,
        help="peak of each process, such as 8GiB; default: 80 % of what is free. --dry-run prints the plan",
    )
    resident: Literal["auto", "float32", "bfloat16", "int8", "disk"] = option(
        "auto",
        help="how the checkpoints' differences to the centre are kept; auto takes the most exact form that "
        "fits; disk keeps none and reads every checkpoint twice per step",
    )
    pass_size: int = option(0, help="examples per forward and backward pass; 0: as many as memory allows")


@dataclass(frozen=True, kw_only=True)
class LearnOptions:
    """How coefficients are learned; defaults differ by method."""

    weight_decay: float = option(0.0, help="decay of the coordinates per step, times the learning rate")
    clip_grad: float = option(
        0.0,
        help="clip the norm of the coordinates' gradient (mehl --step distance: the model's, as "
        "published); 0 does not",
    )
    folds: int = option(
        0,
        help="choose the number of epochs by cross-fitting: learn on all but one of this many folds, score "
        "the fold after each epoch, then learn on everything for the best number; 0 learns for all epochs",
    )
    patience: int = option(
        0, help="with --folds, end a fold after this many epochs without a better score; 0 does not"
    )
    metric: str = option(
        "top1",
        help="what --folds and the comparison with the uniform soup call better: top1, top5, nll or ece",
    )
    force: bool = option(
        False, help="write what was learned even where it is worse than the uniform soup on held-out data"
    )
    seed: int = option(0, help="seed of the order of examples, models and folds")
    plots: bool = option(True, help="draw coefficients and learning curve beside the soup")
    test: bool = option(True, help="report the written soup on the test split too")
    resume: bool = option(
        True, help="go on where a killed run of the same command stopped; --no-resume starts anew"
    )


@dataclass(frozen=True, kw_only=True)
class LearnedBatchNormOptions(BatchNormOptions):
    """Batch-norm statistics lie outside the span of the weights."""

    bn: Literal["average", "refresh", "keep", "batch"] = option(  # type: ignore[assignment]
        "refresh",
        help="batch-norm statistics while learning and in the soup: re-estimated on training data (as each "
        "epoch begins, and at the end), the ingredients' mean, or the first ingredient's; batch: those of "
        "each batch while learning, as in training, and re-estimated in the soup",
    )


@dataclass(frozen=True, kw_only=True)
class LearnedSoup(
    OutputOptions,
    LearnOptions,
    MemoryOptions,
    DropOptions,
    WeightOptions,
    LearnedBatchNormOptions,
    DataOptions,
    ModelOptions,
):
    """What all soups that are learned by gradients have in common."""


@dataclass(frozen=True, kw_only=True)
class MergeLearned(LearnedSoup):
    """Learn the coefficients of a soup on held-out data by gradient descent.

    Coefficients are a softmax over the checkpoints, for the whole model or for each block.

    Example: soupkit merge learned runs/sweep --data digits --blocks tensor --out soups/learned
    """

    refs: tuple[str, ...] = argument(help=REFS)
    blocks: str = option("global", help=BLOCKS)
    constraint: Literal["softmax", "none"] = option(
        "softmax", help="coefficients in the convex hull, or of any sign and sum"
    )
    temperature: bool = option(True, help="also learn a temperature on the logits, in the loss only")
    epochs: int = option(5, help="epochs over the held-out data")
    lr: float = option(0.05, help="learning rate of AdamW")
    batch_size: int = option(256, help="examples per step, and per forward pass of scoring")

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, kw_only=True)
class MergeMehl(LearnedSoup):
    """Learn a soup in the hyper-plane of the checkpoints, a model batch at a time (MEHL-Soup+).

    Coefficients of each block sum to one and may be negative. --step distance --model-batch 18 --clip-grad 1
    is the published setting; --blocks global is MEHL-Soup without the plus.

    Example: soupkit merge mehl runs/sweep --data digits --max-memory 8GiB --out soups/mehl
    """

    refs: tuple[str, ...] = argument(help=REFS)
    blocks: str = option("tensor", help=BLOCKS)
    model_batch: int = option(
        0, help="checkpoints whose directions are in memory together; 0: as many as fit"
    )
    models_epochs: int = option(1, help="passes over the checkpoints, each in a new order")
    step: Literal["block", "distance"] = option(
        "block",
        help="unit of the coordinates: the block's typical distance between models, or an absolute "
        "distance of 1",
    )
    nonnegative: bool = option(False, help="stay within the convex hull: no negative coefficient")
    epochs: int = option(5, help="epochs over the held-out data, for each model batch")
    lr: float = option(0.2, help="learning rate of AdamW, after the warmup, in units of --step")
    warmup: float = option(
        0.2, help="share of the steps of a model batch with a rising learning rate; then a cosine"
    )

    def __post_init__(self) -> None:
        _check(self)
        _require(self.model_batch == 0 or self.model_batch >= 2, "model_batch", self.model_batch, "2 or more")
        _require(self.models_epochs >= 1, "models_epochs", self.models_epochs, "at least 1")
        _require(0 <= self.warmup < 1, "warmup", self.warmup, "a share below 1")


@dataclass(frozen=True, kw_only=True)
class MergeTwa(LearnedSoup):
    """Go on training in the span of a training run's checkpoints (trainable weight averaging).

    Checkpoints are taken as given, what a glob or folder holds in natural order (epoch-2 before epoch-10); a
    Hub repository's revisions may be given as a range: 'org/name@step{1000..9000..1000}'.

    Example: soupkit merge twa 'runs/base/epoch-*' --data digits --out soups/twa
    """

    refs: tuple[str, ...] = argument(help=REFS)
    blocks: str = option("global", help=BLOCKS)
    every: int = option(1, help="take every N-th checkpoint, from the last one backwards")
    start: str = option(
        "average", help="where training goes on: average, or the number of a checkpoint (-1: the last)"
    )
    fit: Literal["train", "held_out"] = option("train", help="the examples to learn from (TWA-t, TWA-v)")
    augment: bool = option(True, help="with --fit train: random crops and flips, as in training")
    crop_scale: tuple[float, ...] = option((0.7, 1.0), help="area of the random resized crop, from,to")
    hflip: float | None = option(
        None, help="probability of a horizontal flip; default 0.5, and 0 for characters"
    )
    epochs: int = option(10, help="epochs")
    bn: Literal["auto", "average", "refresh", "keep", "batch"] = option(  # type: ignore[assignment]
        "auto",
        help="batch-norm statistics, as for mehl; auto: batch, as published, where the model has batch norm",
    )
    step: Literal["auto", "block", "distance"] = option(
        "auto",
        help="unit of the coordinates: the checkpoints' typical distance from their mean, or an absolute "
        "distance of 1, as published; auto: distance where --lr is given, else block",
    )
    lr: float | None = option(
        None,
        help="learning rate of SGD, in units of --step; default 2 (distance, as published) or 0.1 (block)",
    )
    momentum: float = option(0.9, help="momentum")
    weight_decay: float = option(1e-5, help="weight decay, of the weights themselves")
    schedule: Literal["step", "constant", "linear"] = option(
        "step",
        help="learning rate: a tenth from half and again from three quarters of the epochs; constant; "
        "linear to 0",
    )

    def __post_init__(self) -> None:
        _check(self)
        _require(self.every >= 1, "every", self.every, "at least 1")
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "0 or more and less than 1")
        low, high = self.crop_scale if len(self.crop_scale) == 2 else (0.0, 0.0)
        _require(
            0 < low <= high <= 1, "crop_scale", self.crop_scale, "two shares of the area, 0 < from <= to <= 1"
        )
        _require(self.hflip is None or 0 <= self.hflip <= 1, "hflip", self.hflip, "a probability")
        number = self.start.removeprefix("-").isdigit()
        _require(
            self.start == "average" or number, "start", self.start, "average or the number of a checkpoint"
        )
        if self.folds and self.fit == "train":
            raise RecipeError("folds are of held-out data", hint="--fit held_out, or leave --folds out")


LearnedRecipe = MergeLearned | MergeMehl | MergeTwa


@dataclass(frozen=True, kw_only=True)
class MergeEvolve(
    OutputOptions,
    DropOptions,
    WeightOptions,
    BatchNormOptions,
    DataOptions,
    ModelOptions,
    ScoreOptions,
    RememberOptions,
):
    """Search the coefficients of a soup by scores alone, with CMA-ES; no gradients, so any scorer will do.

    Example: soupkit merge evolve runs/sweep --score-command 'python score.py {checkpoint}' --out
    soups/evolved
    """

    refs: tuple[str, ...] = argument(help=REFS)
    blocks: str = option("global", help=BLOCKS)
    constraint: Literal["softmax", "sum", "none"] = option(
        "softmax",
        help="coefficients in the convex hull, summing to one with any sign, or of any sign and sum",
    )
    evaluations: int = option(
        200,
        help="soups to score in the search, the uniform one included; what is written is scored once more",
    )
    population: int = option(0, help="soups per generation; 0: 4 + 3 ln(number of coefficients)")
    sigma: float = option(
        0.5, help="initial step, in logits (softmax) or in units of 1 / number of checkpoints"
    )
    seed: int = option(0, help="seed of the search")
    test: bool = option(True, help="report the written soup on the test split too")

    def __post_init__(self) -> None:
        check_blocks(self.blocks)
        _require(self.evaluations >= 1, "evaluations", self.evaluations, "at least 1")
        _require(self.population == 0 or self.population >= 2, "population", self.population, "2 or more")
        _require(0 < self.sigma < inf, "sigma", self.sigma, "above 0")
        _require(self.drop_top >= 0, "drop_top", self.drop_top, "0 or more")


BLOCK_RATE, PUBLISHED_RATE = 0.1, 2.0
"""Learning rates of `merge twa` in its two units."""


def _check(recipe: MergeLearned | MergeMehl | MergeTwa) -> None:
    check_blocks(recipe.blocks)
    _require(recipe.epochs >= 1, "epochs", recipe.epochs, "at least 1")
    _require(recipe.lr is None or 0 < recipe.lr < inf, "lr", recipe.lr, "above 0")
    _require(0 <= recipe.weight_decay < inf, "weight_decay", recipe.weight_decay, "0 or more")
    _require(0 <= recipe.clip_grad < inf, "clip_grad", recipe.clip_grad, "0 or more")
    _require(recipe.folds == 0 or recipe.folds >= 2, "folds", recipe.folds, "0, or 2 or more")
    _require(recipe.patience >= 0, "patience", recipe.patience, "0 or more")
    _require(recipe.batch_size >= 1, "batch_size", recipe.batch_size, "at least 1")
    _require(recipe.pass_size >= 0, "pass_size", recipe.pass_size, "0 or more")
    _require(recipe.drop_top >= 0, "drop_top", recipe.drop_top, "0 or more")
    _require(recipe.seed >= 0, "seed", recipe.seed, "0 or more")


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise RecipeError(f"{name} is {value}, expected {expected}")
