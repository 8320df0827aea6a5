"""`methods`: every way of merging, its paper, what it needs, what it costs."""

from __future__ import annotations

from typing import Any

from soupkit.events import Cell, Report, Table
from soupkit.merge.methods import METHODS, MergeMethod
from soupkit.recipe.env import Methods
from soupkit.world import World

COLUMNS = ("method", "paper", "data", "base", "checkpoints", "peak memory")
CHUNKS = "chunks of 131,072 elements per thread"
DIRECTIONS = "--max-memory: a model, its gradient, differences as float32, bfloat16, int8, or none"
SOUPS: tuple[tuple[Cell, ...], ...] = (
    ("uniform", "Wortsman et al. 2022", "no; --bn refresh: yes", "none", "1 or more", CHUNKS),
    ("weighted", "", "no", "none", "1 or more", CHUNKS),
    (
        "interpolate",
        "Wortsman et al. 2022 (WiSE-FT)",
        "to choose the point",
        "none",
        "2",
        f"{CHUNKS}; a model with data",
    ),
    ("greedy", "Wortsman et al. 2022, Recipe 1", "held-out", "none", "1 or more", "one model and its copy"),
    ("learned", "Wortsman et al. 2022, §3", "held-out", "none", "1 or more", DIRECTIONS),
    ("mehl", "Li et al. 2024 (MEHL-Soup+)", "held-out", "none", "2 or more", DIRECTIONS),
    ("twa", "Li et al. 2023", "train or held-out", "none", "checkpoints of a training", DIRECTIONS),
    ("evolve", "Hansen 2016 (CMA-ES)", "held-out, or --score-command", "none", "1 or more", "one model and its copy"),
    ("swa", "Izmailov et al. 2018", "no; --bn refresh: yes", "none", "1 or more", CHUNKS),
    ("ema", "Polyak & Juditsky 1992", "no; --bn refresh: yes", "none", "1 or more", CHUNKS),
    ("posthoc-ema", "Karras et al. 2024", "no; --bn refresh: yes", "none", "snapshots of a training", CHUNKS),
)


def methods(_recipe: Methods, _world: World, report: Report) -> dict[str, Any]:
    """List the methods of `soupkit merge`."""
    rows = (*SOUPS, *(_row(method) for method in METHODS.values()))
    caption = (
        "data: what selects or weighs; statistics are files of yours. Each has its own soupkit merge METHOD --help"
    )
    report(Table("soupkit merge METHOD", COLUMNS, rows, caption))
    return {"methods": [dict(zip(COLUMNS, row, strict=True)) for row in rows]}


def _row(method: MergeMethod) -> tuple[Cell, ...]:
    least, most = method.inputs
    number = str(least) if most == least else f"{least} to {most}" if most else f"{least} or more"
    data = "statistics" if method.statistics else "no"
    return (method.name, method.paper, data, method.base, number, method.memory)
