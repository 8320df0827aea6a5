"""Recipes of `soupkit merge …`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from soupkit.errors import RecipeError
from soupkit.recipe.align import AlignOptions
from soupkit.recipe.fields import argument, option
from soupkit.recipe.shared import (
    MISMATCH,
    BatchNormOptions,
    DataOptions,
    DropOptions,
    HubOptions,
    ModelOptions,
    OutputOptions,
    RememberOptions,
    ScoreOptions,
    WeightOptions,
    check_blocks,
)

REFS = (
    "checkpoints: directories, .safetensors files, globs, sweep directories, "
    "org/name[@revision][:subfolder] (Hub)"
)


@dataclass(frozen=True, kw_only=True)
class MergeUniform(
    OutputOptions, WeightOptions, HubOptions, AlignOptions, BatchNormOptions, DataOptions, ModelOptions
):
    """Average the weights of checkpoints: the uniform soup.

    Example: soupkit merge uniform runs/sweep --out soups/uniform
    """

    refs: tuple[str, ...] = argument(help=REFS)
    top: int | None = option(None, help="average only the best N, by --by, as their manifests record it")
    by: str = option("held_out.top1", help="the metric for --top: split.metric")
    direction: Literal["auto", "max", "min"] = option("auto", help="which way is better for --by")

    def __post_init__(self) -> None:
        if self.top is not None and self.top < 1:
            raise RecipeError(f"top is {self.top}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class MergeWeighted(
    OutputOptions, WeightOptions, HubOptions, AlignOptions, BatchNormOptions, DataOptions, ModelOptions
):
    """Combine checkpoints with given coefficients.

    Example: soupkit merge weighted a b c --coefficients 0.5,0.3,0.2 --out soups/weighted
    """

    refs: tuple[str, ...] = argument(help=REFS)
    coefficients: tuple[float, ...] = option(help="one number per checkpoint, in order: 0.5,0.3,0.2")
    normalize: bool = option(False, help="divide the coefficients by their sum")
    set: tuple[str, ...] = option(
        (),
        help="coefficients per tensor, 'PATTERN: {coefficient: VALUE}' such as 'mlp: {coefficient: {0: "
        "[0, 1]}}'; "
        "a list is a gradient over the layers, {0: VALUE} speaks of the first checkpoint; repeat for more",
    )

    def __post_init__(self) -> None:
        if self.set and self.bn == "keep":
            raise RecipeError(
                "--bn keep and --set both say what batch-norm statistics become", hint="use one of them"
            )
        if self.normalize and sum(self.coefficients) == 0:
            raise RecipeError(
                "coefficients sum to zero and cannot be normalized", hint="leave --normalize out"
            )


@dataclass(frozen=True, kw_only=True)
class MergeInterpolate(
    OutputOptions,
    WeightOptions,
    HubOptions,
    AlignOptions,
    BatchNormOptions,
    DataOptions,
    ModelOptions,
    ScoreOptions,
):
    """Interpolate from one checkpoint to another: (1 − at)·A + at·B (WiSE-FT).

    Several points need either data, and then the best on held-out is written, or --write all.

    Example: soupkit merge interpolate zero-shot fine-tuned --at 0,0.25,0.5,0.75,1 --data digits --out
    soups/wise
    """

    refs: tuple[str, ...] = argument(help="the two checkpoints A and B")
    at: tuple[float, ...] = option((0.5,), help="points between A (0) and B (1); beyond them it extrapolates")
    write: Literal["best", "all"] = option(
        "best", help="write the best point on held-out data, or every point as OUT/at-0.25"
    )

    def __post_init__(self) -> None:
        if self.stream and (self.data or self.score_command):
            raise RecipeError(
                "stream reads ingredients once, scoring reads them often", hint="leave --stream out"
            )
        if not self.at:
            raise RecipeError("at is empty", hint="give points such as --at 0,0.5,1")
        if len(set(self.at)) < len(self.at):
            raise RecipeError(f"at names a point twice: {', '.join(map(str, self.at))}")


@dataclass(frozen=True, kw_only=True)
class MergeGreedy(
    OutputOptions,
    DropOptions,
    WeightOptions,
    AlignOptions,
    BatchNormOptions,
    DataOptions,
    ModelOptions,
    ScoreOptions,
    RememberOptions,
):
    """Rank checkpoints on held-out data, then add each in turn while the soup does not get worse.

    Scores are remembered under the weights, the coefficients, the content of data and model, the metric and
    the versions of the libraries; those of --score-command under the content of the files that it names.

    Example: soupkit merge greedy runs/sweep --data digits --out soups/greedy
    """

    refs: tuple[str, ...] = argument(help=REFS)
    accept: Literal["ge", "gt"] = option(
        "ge",
        help="accept an ingredient when the held-out score is at least (ge, as published) or above "
        "(gt) the best",
    )
    blocks: str = option(
        "global",
        help="add to the whole soup, or block by block: layer, tensor, or a number of parameters; a "
        "trial each",
    )
    early_stop: bool = option(
        True, help="end a trial once it can no longer be accepted; the picks stay the same"
    )
    test: bool = option(True, help="report the written soup on the test split too")

    def __post_init__(self) -> None:
        check_blocks(self.blocks)
        if self.blocks != "global" and self.bn == "keep":
            raise RecipeError(
                "--bn keep has no one model to keep from when blocks differ", hint="--bn refresh"
            )


@dataclass(frozen=True, kw_only=True)
class MergeMergekit(OutputOptions):
    """Do what a mergekit YAML file describes, for the methods that soupkit has too.

    Example: soupkit merge mergekit config.yaml --out soups/like-mergekit
    """

    file: Path = argument(help="a mergekit configuration: YAML")
    models: Path | None = option(None, help="folder that relative model names are in; default: where you are")
    seed: int = option(0, help="for dare and della; mergekit's own draws cannot be repeated")
    mismatch: Literal["error", "warn"] = option("error", help=MISMATCH)
    max_shard_size: str = option("50GB", help="start a new shard when a file would grow beyond this")
    threads: int = option(0, help="worker threads; 0 takes every core")
