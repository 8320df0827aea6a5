"""Recipes of `soupkit align`, `soupkit repair` and `soupkit barrier`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from soupkit.errors import RecipeError
from soupkit.recipe.fields import argument, option
from soupkit.recipe.shared import MISMATCH, DataOptions, ModelOptions, OutputOptions, WeightOptions

REFS = "checkpoints of one architecture: directories, globs, sweep directories, org/name[@revision] (Hub)"


@dataclass(frozen=True, kw_only=True)
class AlignOptions:
    """What may be done to networks that do not share a common start, before and after they are merged."""

    align: bool = option(
        False, help="permute the units of every checkpoint to match the first's before merging"
    )
    align_by: Literal["weights", "activations", "both"] = option(
        "weights",
        help="with --align: compare units by weights, or by what they do on training images (--data)",
    )
    repair: Literal["off", "forward", "scale", "closed", "bn"] = option(
        "off",
        help="afterwards give units the ingredients' statistics (see soupkit repair), if held-out loss falls",
    )


@dataclass(frozen=True, kw_only=True)
class MatchOptions:
    """How units are matched."""

    by: Literal["weights", "activations", "both"] = option(
        "weights", help="compare units by their weights, or by what they do on training images (--data)"
    )
    rotate: bool = option(
        False,
        help="of pre-norm ViT and CLIP also turn residual streams and heads; norms are folded into layers",
    )
    restarts: int = option(0, help="more searches, from random permutations; the best of all is kept")
    pin: tuple[str, ...] = option(
        (), help="leave this group, family or tensor as it is; repeat for more; * and ? work"
    )
    seed: int = option(0, help="seed of the order in which groups are matched")
    mismatch: Literal["error", "warn"] = option("error", help=MISMATCH)

    def __post_init__(self) -> None:
        if self.restarts < 0:
            raise RecipeError(f"restarts is {self.restarts}, expected 0 or more")
        if self.seed < 0:
            raise RecipeError(f"seed is {self.seed}, expected 0 or more")
        if self.rotate and self.by != "weights":
            raise RecipeError(
                f"--rotate goes by weights, not by {self.by}", hint="leave --by or --rotate out"
            )


@dataclass(frozen=True, kw_only=True)
class Align(OutputOptions, MatchOptions, WeightOptions, DataOptions, ModelOptions):
    """Permute the units of networks so that they match another's; each still computes the same function.

    Every permutation is checked on the network before anything is written. OUT/NAME holds each checkpoint,
    OUT stands for all of them in later commands.

    Example: soupkit align runs/seed-0 runs/seed-1 --to runs/seed-0 --out runs/aligned
    """

    refs: tuple[str, ...] = argument(help=REFS)
    to: str | None = option(
        None, help="the checkpoint to match; default: the first of two, of more the one most like the others"
    )
    universe: Literal["merge-many", "frank-wolfe"] = option(
        "merge-many", help="how three or more are matched to one another; frank-wolfe (C2M3) is slower"
    )
    num_batches: int = option(10, help="training batches for --by activations or both")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by != "weights" and not self.data:
            raise RecipeError(
                f"--by {self.by} needs --data", hint="name unlabelled images, or match by weights"
            )
        if self.num_batches < 1:
            raise RecipeError(f"num_batches is {self.num_batches}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class Repair(OutputOptions, WeightOptions, DataOptions, ModelOptions):
    """Give a soup's units the statistics that its ingredients' have (REPAIR); the architecture stays as it
    is.

    The ingredients are those that the soup's manifest records, permuted as they were. The repaired weights
    are kept when they have a lower held-out loss than the soup; otherwise OUT holds the soup as it was.

    Example: soupkit repair soups/uniform --data digits --out soups/repaired
    """

    soup: str = argument(help="a soup written by soupkit")
    kind: Literal["forward", "scale", "closed", "bn"] = option(
        "forward",
        help="what is corrected: mean and variance as measured, the variance alone, both as predicted from "
        "the ingredients, or batch-norm statistics only",
    )
    num_batches: int = option(20, help="training batches to measure with")
    force: bool = option(False, help="keep the repaired weights even when their held-out loss is not lower")

    def __post_init__(self) -> None:
        if not self.data:
            raise RecipeError(
                "repair needs --data", hint="name the training data; labels are used on held-out only"
            )
        if self.num_batches < 1:
            raise RecipeError(f"num_batches is {self.num_batches}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class Barrier(MatchOptions, DataOptions, ModelOptions):
    """Score the straight line between two checkpoints: as they are, aligned, and aligned and repaired.

    Example: soupkit barrier runs/seed-0 runs/seed-1 --data digits --out runs/barrier
    """

    refs: tuple[str, ...] = argument(help="the two checkpoints")
    num_points: int = option(25, help="points on the line, both ends among them")
    split: Literal["train", "held_out", "test"] = option("test", help="which examples are scored")
    repair: Literal["forward", "scale", "closed", "bn", "off"] = option(
        "forward", help="how the repaired line is repaired; off leaves it out"
    )
    num_batches: int = option(20, help="training batches to measure statistics with")
    bn: Literal["average", "refresh"] = option(
        "average", help="batch-norm statistics of the lines that are not repaired: averaged, or re-estimated"
    )
    out: Path | None = option(
        None, help="directory for barrier.json, barrier.csv, barrier.png and the manifest"
    )
    overwrite: bool = option(False, help="replace an earlier output of soupkit in --out")
    threads: int = option(0, help="threads of torch on the CPU; 0 takes every core")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data:
            raise RecipeError("barrier needs --data", hint="name the data to score on")
        if self.num_points < 3:
            raise RecipeError(f"num_points is {self.num_points}, expected at least 3")
        if self.num_batches < 1:
            raise RecipeError(f"num_batches is {self.num_batches}, expected at least 1")
