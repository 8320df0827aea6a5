"""`methods`: every way of merging, its paper, what it needs, what it costs."""

from __future__ import annotations

from soupkit.events import Report, Table, Text
from soupkit.jsons import Json
from soupkit.merge.methods import MergeMethod, all_methods
from soupkit.recipe.env import Methods
from soupkit.world import World

COLUMNS = ("method", "paper", "data", "base", "checkpoints", "peak memory")
CHUNKS = "a few chunks"
DIRECTIONS = "planned: `--max-memory`"
NO_DATA = "no (`--bn refresh`: yes)"
ARXIV = "https://arxiv.org/abs/"
SOUPS = (
    ("uniform", "Wortsman et al. 2022", f"{ARXIV}2203.05482", NO_DATA, "1 or more", CHUNKS),
    ("weighted", "", "", "no", "1 or more", CHUNKS),
    (
        "interpolate",
        "Wortsman et al. 2022 (WiSE-FT)",
        f"{ARXIV}2109.01903",
        "to choose the point",
        "2",
        CHUNKS,
    ),
    (
        "greedy",
        "Wortsman et al. 2022, Recipe 1",
        f"{ARXIV}2203.05482",
        "held-out",
        "1 or more",
        "a model and its copy",
    ),
    ("learned", "Wortsman et al. 2022, §3", f"{ARXIV}2203.05482", "held-out", "1 or more", DIRECTIONS),
    ("mehl", "Li et al. 2024", f"{ARXIV}2407.03641", "held-out", "2 or more", DIRECTIONS),
    ("twa", "Li et al. 2023", f"{ARXIV}2205.13104", "train or held-out", "of a training", DIRECTIONS),
    (
        "evolve",
        "Hansen 2016 (CMA-ES)",
        f"{ARXIV}1604.00772",
        "any score",
        "1 or more",
        "a model and its copy",
    ),
    ("swa", "Izmailov et al. 2018", f"{ARXIV}1803.05407", NO_DATA, "1 or more", CHUNKS),
    ("ema", "Polyak & Juditsky 1992", "", NO_DATA, "1 or more", CHUNKS),
    ("posthoc-ema", "Karras et al. 2024", f"{ARXIV}2312.02696", NO_DATA, "of a training", CHUNKS),
    (
        "trajectory",
        "Tian et al. 2025 (WSM)",
        f"{ARXIV}2507.17634",
        "to choose of several",
        "of a training",
        "a few chunks, one more for each output",
    ),
)
CAPTION = (
    "data: what selects or weighs; statistics are files of yours. A chunk is 131,072 elements per thread, a "
    "piece 32,768 per ingredient and thread. Each has its own soupkit merge METHOD --help"
)


def methods(recipe: Methods, _world: World, report: Report) -> Json:
    """List the methods of `soupkit merge`."""
    soups = [
        ((name, paper, data, "none", number, memory), link)
        for name, paper, link, data, number, memory in SOUPS
    ]
    rows = [*soups, *((_row(method), method.link) for method in all_methods().values())]
    plain = tuple(row for row, _ in rows)
    report(
        Text(_markdown(rows)) if recipe.markdown else Table("soupkit merge METHOD", COLUMNS, plain, CAPTION)
    )
    return {"methods": [{**dict(zip(COLUMNS, row, strict=True)), "link": link} for row, link in rows]}


def _row(method: MergeMethod) -> tuple[str, ...]:
    least, most = method.inputs
    number = str(least) if most == least else f"{least} to {most}" if most else f"{least} or more"
    data = "statistics" if method.asks & {"statistics", "grams"} else "no"
    return (method.name, method.paper, data, method.base, number, method.memory)


def _markdown(rows: list[tuple[tuple[str, ...], str]]) -> str:
    lines = [COLUMNS, ("---",) * len(COLUMNS)]
    for (name, paper, *rest), link in rows:
        lines.append((f"`{name}`", f"[{paper}]({link})" if link else paper, *rest))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
