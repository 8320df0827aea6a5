"""Recipe of `soupkit report`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from soupkit.recipe.fields import argument, option


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write one HTML page about an output: scores, what went in, coefficients, plots, how to make it again.

    The page needs no network and no other file, and runs no script. It takes any output of soupkit, a folder
    of outputs (what `soupkit run` made), a checkpoint without a manifest, or a file with what --json printed.

    Example: soupkit report soups/greedy
    Example: soupkit report runs/digits-soup --out digits.html
    """

    path: Path = argument(
        help="an output of soupkit, a folder of outputs, a checkpoint directory, or a JSON file"
    )
    out: Path | None = option(None, help="the page; default: beside PATH, with its name and .html")
    overwrite: bool = option(False, help="replace an earlier page of soupkit")
