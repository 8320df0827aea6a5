"""Recipes of the commands that look at checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from soupkit.recipe.fields import argument, option
from soupkit.recipe.shared import OutputOptions


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Show what a checkpoint holds, from its headers only.

    Example: soupkit inspect runs/sweep/run-000
    """

    refs: tuple[str, ...] = argument(help="checkpoints")
    tensors: bool = option(False, help="list every tensor")


@dataclass(frozen=True, kw_only=True)
class Diff:
    """Compare two checkpoints: keys, shapes, dtypes, distance and cosine of every tensor.

    Example: soupkit diff base fine-tuned
    """

    a: str = argument(help="a checkpoint")
    b: str = argument(help="another")
    limit: int = option(20, help="rows to print, most different first; 0 prints all")
    threads: int = option(0, help="worker threads; 0 takes every core")


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Hash the weights of an output again and compare them with its manifest.

    Example: soupkit verify soups/uniform
    """

    directory: Path = argument(help="an output of soupkit")
    inputs: bool = option(False, help="hash the ingredients as well")
    strict: bool = option(False, help="a file that the manifest does not know is an error, not a warning")
    threads: int = option(0, help="worker threads; 0 takes every core")


@dataclass(frozen=True, kw_only=True)
class Reproduce(OutputOptions):
    """Build the weights of an output again from its manifest and check that they are the same bits.

    Example: soupkit reproduce soups/greedy --out /tmp/again
    """

    directory: Path = argument(help="an output of soupkit")
    threads: int = option(0, help="worker threads; 0 takes every core")
    non_finite: Literal["error", "keep"] = option(
        "keep", help="refuse a result with NaN or infinity, or keep it"
    )
