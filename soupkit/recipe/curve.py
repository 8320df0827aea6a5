"""Recipes of curves, planes and the ensembles that are collected along the way."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from soupkit.asked import Recipe
from soupkit.errors import RecipeError
from soupkit.recipe.fields import argument, option
from soupkit.recipe.merge import REFS
from soupkit.recipe.shared import (
    MISMATCH,
    DataOptions,
    ModelOptions,
    OutputOptions,
    RememberOptions,
    WeightOptions,
)
from soupkit.recipe.train import Finetune

CURVE = "a directory that `soupkit curve fit` wrote"


@dataclass(frozen=True, kw_only=True)
class DescentOptions:
    """How weights are trained when the command brings a learning rate of its own."""

    optimizer: str = option(
        "momentum",
        help="any optimizer of timm's factory: momentum (SGD, as published), sgd (Nesterov's), adamw, …",
    )
    momentum: float = option(0.9, help="momentum, where the optimizer has one")
    clip_grad: float = option(0.0, help="clip the gradient's norm; 0 does not")
    label_smoothing: float = option(0.0, help="label smoothing")
    crop_scale: tuple[float, ...] = option((0.7, 1.0), help="area of the random resized crop, from,to")
    hflip: float | None = option(
        None, help="probability of a horizontal flip; default 0.5, and 0 for characters"
    )
    amp: Literal["auto", "off", "bfloat16"] = option("auto", help="mixed precision; auto: bfloat16 on CUDA")
    seed: int = option(0, help="seed of data order, augmentation and sampled points")
    threads: int = option(0, help="threads of torch on the CPU; 0 takes every core")


def as_finetune(recipe: Recipe, *, base: str, **values: object) -> Finetune:
    """What batches, optimizer and model are made from: the same options, as one fine-tune's.

    Raises RecipeError for what a fine-tune would refuse too.
    """
    own = {field.name for field in dataclasses.fields(Finetune)}
    shared = {
        field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe) if field.name in own
    }
    if shared.get("head") is not None:
        raise RecipeError(
            "head: these checkpoints are trained on under the heads that they have", hint="leave --head out"
        )
    return Finetune(
        **(shared | {"base": base, "schedule": "constant", "warmup_epochs": 0.0, "min_lr": 0.0} | values)
    )


@dataclass(frozen=True, kw_only=True)
class CurveFit(OutputOptions, DescentOptions, DataOptions, ModelOptions):
    """Train a curve of low loss from checkpoint A to checkpoint B (Garipov et al. 2018).

    Each update takes one random point of the curve. The bends are written as checkpoints, OUT/bend-0 …; any
    point of the curve is a mixture of them. A killed fit continues.

    Example: soupkit curve fit runs/a runs/b --data digits --epochs 30 --lr 0.03 --out curves/bezier
    """

    refs: tuple[str, ...] = argument(help="the two checkpoints A and B")
    kind: Literal["bezier", "polychain"] = option("bezier", help="the form of the curve")
    num_bends: int = option(3, help="bends, both ends included; 2 is a straight line")
    fix_start: bool = option(True, help="keep A where it is")
    fix_end: bool = option(True, help="keep B where it is")
    align: bool = option(
        False, help="first permute the units of B to match A's: the same function, nearer by"
    )
    epochs: int = option(
        100, help="epochs: constant learning rate for half of them, then down to a hundredth at 90 %"
    )
    lr: float = option(0.03, help="learning rate")
    weight_decay: float = option(5e-4, help="L2 penalty at the sampled point, ½ · weight_decay · ‖w(t)‖²")
    bn_batches: int = option(20, help="training batches for the batch-norm statistics of a written bend")
    save_every: int = option(
        1, help="epochs between saved states, from which a killed fit continues; 0: none"
    )
    mismatch: Literal["error", "warn"] = option("error", help=MISMATCH)
    resume: bool = option(True, help="continue a killed fit; --no-resume starts anew")

    def __post_init__(self) -> None:
        if self.save_every < 0:
            raise RecipeError(f"save_every is {self.save_every}, expected 0 or more")
        if self.num_bends < 2:
            raise RecipeError(f"num_bends is {self.num_bends}, expected at least 2")
        if self.num_bends == 2 and self.fix_start and self.fix_end:
            raise RecipeError(
                "nothing to train: two bends, and both are fixed", hint="--num-bends 3, or --no-fix-end"
            )
        as_finetune(self, base=self.refs[0] if self.refs else "")


@dataclass(frozen=True, kw_only=True)
class PointBatchNorm:
    """Batch-norm statistics of a point between checkpoints; a point that is one checkpoint keeps its own."""

    bn: Literal["refresh", "average"] = option(
        "refresh", help="batch-norm statistics of a mixture: re-estimated on training data, or averaged"
    )
    bn_batches: int = option(20, help="training batches for --bn refresh")


@dataclass(frozen=True, kw_only=True)
class CurvePoint(OutputOptions, WeightOptions, PointBatchNorm, DataOptions, ModelOptions):
    """Write one point of a curve as a checkpoint.

    Example: soupkit curve point curves/bezier --at 0.3 --data digits --out soups/point
    """

    curve: str = argument(help=CURVE)
    at: float = option(help="t, from 0 (the start) to 1 (the end)")

    def __post_init__(self) -> None:
        if not 0 <= self.at <= 1:
            raise RecipeError(f"at is {self.at}, expected 0 to 1: beyond its ends a curve means nothing")


@dataclass(frozen=True, kw_only=True)
class PointsOptions:
    """How many points are scored, on what, and how many at a time."""

    train: bool = option(True, help="score the training examples too")
    jobs: int = option(0, help="points at a time, each in its own process with one thread; 0: one per core")
    mismatch: Literal["error", "warn"] = option("error", help=MISMATCH)


@dataclass(frozen=True, kw_only=True)
class CurveEvaluate(OutputOptions, PointsOptions, PointBatchNorm, DataOptions, ModelOptions, RememberOptions):
    """Score points along a curve: loss, NLL and error on train, held-out and test, their extremes, the
    length.

    Points are remembered: a killed evaluation continues, and more points cost only the new ones.

    Example: soupkit curve evaluate curves/bezier --data digits --num-points 61 --out curves/bezier-scores
    """

    curve: str = argument(help=CURVE)
    num_points: int = option(61, help="points, both ends included")
    weight_decay: float | None = option(None, help="for the loss; default: that of the fit")

    def __post_init__(self) -> None:
        if self.num_points < 2:
            raise RecipeError(f"num_points is {self.num_points}, expected at least 2")


@dataclass(frozen=True, kw_only=True)
class Chain(OutputOptions, PointsOptions, PointBatchNorm, DataOptions, ModelOptions, RememberOptions):
    """Score points along straight lines from checkpoint to checkpoint: where the loss is high between them.

    Example: soupkit chain runs/a runs/b runs/c --data digits --out chains/abc
    """

    refs: tuple[str, ...] = argument(help=REFS)
    num_points: int = option(21, help="points per line, both ends included")
    weight_decay: float = option(
        0.0, help="L2 penalty that the loss adds to the NLL: ½ · weight_decay · ‖w‖²"
    )

    def __post_init__(self) -> None:
        if self.num_points < 2:
            raise RecipeError(f"num_points is {self.num_points}, expected at least 2")


@dataclass(frozen=True, kw_only=True)
class Plane(OutputOptions, PointsOptions, PointBatchNorm, DataOptions, ModelOptions, RememberOptions):
    """Score a grid on the plane through three checkpoints, or through a curve of three bends, and draw its
    contours.

    Example: soupkit plane runs/a runs/b runs/c --data digits --out planes/abc
    Example: soupkit plane curves/bezier --data digits --project soups/greedy --out planes/bezier
    """

    refs: tuple[str, ...] = argument(help="three checkpoints, or the directory of a curve with three bends")
    project: tuple[str, ...] = option((), help="further checkpoints, drawn where they project onto the plane")
    num_points: int = option(21, help="points along each side of the grid")
    margin: float = option(
        0.2, help="how far the grid reaches beyond the checkpoints, a share of each extent"
    )
    weight_decay: float = option(
        0.0, help="L2 penalty that the loss adds to the NLL: ½ · weight_decay · ‖w‖²"
    )
    loss_cap: float = option(5.0, help="the highest contour of the loss")
    error_cap: float = option(40.0, help="the highest contour of the error, in percent")

    def __post_init__(self) -> None:
        if self.num_points < 2:
            raise RecipeError(f"num_points is {self.num_points}, expected at least 2")
        if self.margin < 0:
            raise RecipeError(f"margin is {self.margin}, expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class Fge(OutputOptions, DescentOptions, DataOptions, ModelOptions):
    """Collect an ensemble within one training run by a cyclical learning rate (Fast Geometric Ensembling).

    The members are written as checkpoints, OUT/snapshot-000 …, so `merge` and `ensemble` take OUT as it is.

    Example: soupkit fge runs/base --data digits --epochs 20 --cycle 4 --lr-1 0.05 --lr-2 0.01 --out runs/fge
    """

    base: str = argument(
        help="checkpoint to start from: the published setting trains it for 80 % of a budget"
    )
    schedule: Literal["fge", "snapshot", "swa"] = option(
        "fge",
        help="fge: up and down, kept in the middle of a cycle; snapshot: cosine with restarts; swa: straight "
        "down; these are kept at the end of a cycle",
    )
    cycle: int = option(4, help="epochs per cycle; for fge an even number")
    lr_1: float = option(0.05, help="the most that the learning rate gets")
    lr_2: float = option(0.01, help="the least that the learning rate gets")
    epochs: int = option(20, help="epochs")
    weight_decay: float = option(5e-4, help="weight decay")

    def __post_init__(self) -> None:
        if self.cycle < 1 or (self.schedule == "fge" and self.cycle % 2):
            expected = "an even number of epochs" if self.schedule == "fge" else "at least 1"
            raise RecipeError(f"cycle is {self.cycle}, expected {expected}")
        if not self.lr_1 >= self.lr_2 >= 0:
            raise RecipeError(f"lr_1 is {self.lr_1} and lr_2 is {self.lr_2}, expected lr_1 >= lr_2 >= 0")
        first = self.cycle // 2 if self.schedule == "fge" else self.cycle
        if self.epochs < first:
            raise RecipeError(f"epochs is {self.epochs}, the first member comes after {first}")
        as_finetune(self, base=self.base, lr=self.lr_1)


@dataclass(frozen=True, kw_only=True)
class Ensemble(DataOptions, ModelOptions, RememberOptions):
    """Average the predictions of checkpoints: the number that every soup of them is compared with.

    Predictions are remembered by the weights, the data and the model, so each checkpoint is run once.

    Example: soupkit ensemble runs/sweep --data digits --out scores/ensemble
    """

    refs: tuple[str, ...] = argument(help=REFS)
    out: Path | None = option(None, help="directory for scores.json and the manifest")
    overwrite: bool = option(False, help="replace an earlier output of soupkit in --out")
    mismatch: Literal["error", "warn"] = option("error", help=MISMATCH)
