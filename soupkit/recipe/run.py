"""Recipes of the commands that run recipes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from soupkit.errors import RecipeError
from soupkit.recipe.fields import argument, option


@dataclass(frozen=True, kw_only=True)
class Run:
    """Run a recipe file, step by step; steps that are complete and unchanged are skipped.

    Example: soupkit run recipes/digits-soup.yaml --set out=/tmp/digits --set sweep.num_runs=16
    """

    file: Path = argument(help="a recipe: YAML")
    set: tuple[str, ...] = option((), help="variable=value or step.key=value; repeat for more")
    dry_run: bool = option(False, help="check every step and print what would run")
    force: bool = option(False, help="run every step again")


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Fine-tune a sweep on real handwritten digits, make soups of it, and score them on data nobody chose
    with.

    Example: soupkit demo --out soupkit-demo --seeds 3
    """

    out: Path = option(Path("soupkit-demo"), help="directory for everything that the demo makes")
    seeds: int = option(1, help="repeat with this many seeds and report mean and standard error")
    seed: int = option(0, help="first seed")
    num_runs: int = option(12, help="models in the sweep")
    jobs: int = option(0, help="models trained at a time; 0: one per core")
    force: bool = option(False, help="run every step again")

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise RecipeError(f"seeds is {self.seeds}, expected at least 1")
        if self.num_runs < 2:
            raise RecipeError(f"num_runs is {self.num_runs}, a soup needs at least 2")
