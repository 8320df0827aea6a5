"""Sections about what a search did: greedy's trials, and the coefficients of a linear soup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from soupkit.jsons import JsonView
from soupkit.report.html import Html, joined, name, table, tag, with_error
from soupkit.report.html_charts import Axis, axis, bar, chart, cross, dot, strip
from soupkit.report.sections_subject import (
    Score,
    Subject,
    mapping,
    number,
    score,
    sequence,
    short,
    told_apart,
    words,
)

MOST_COLUMNS = 8


def trace_section(subject: Subject) -> Html | None:
    """Greedy's trials in order: who was tried, what the soup scored with it, and whether it stayed."""
    steps = [step for step in sequence(subject.record.get("trace")) if _is_trial(step)]
    if not steps:
        return None
    singles = {
        key: found for key, item in mapping(subject.notes.get("singles")).items() if (found := score(item))
    }
    unnamed = "score" if subject.recipe.get("score_command") else "top1"
    metric = str(subject.recipe.get("metric") or unnamed)
    picked = sum(bool(step["accepted"]) for step in steps)
    lead = tag(
        "p",
        f"{picked} of {len(steps)} checkpoints stayed. They were tried in the order of their own scores; "
        "held-out data decided.",
    )
    return joined((lead, _trace_chart(steps, singles, metric), _trace_table(steps, singles, metric)))


def _is_trial(step: object) -> bool:
    return isinstance(step, Mapping) and isinstance(step.get("ingredient"), str) and "accepted" in step


def _trace_table(steps: Sequence[JsonView], singles: Mapping[str, Score], metric: str) -> Html:
    rows = []
    names = told_apart([step["ingredient"] for step in steps])
    for position, (step, shown) in enumerate(zip(steps, names, strict=True), start=1):
        alone, value = singles.get(step["ingredient"]), number(step.get("value"))
        own = with_error(alone.value, alone.error) if alone else None
        rows.append((position, name(shown), _verdict(step, first=position == 1), value, own))
    columns = (
        "trial",
        "checkpoint",
        "verdict",
        f"{words(metric)} of the soup with it",
        f"{words(metric)} alone",
    )
    return table("Trials, in the order in which they were made", columns, rows)


def _verdict(step: JsonView, *, first: bool) -> str:
    if step.get("stopped"):
        seen = number(step.get("num_evaluated"))
        return "rejected" + (f" after {seen:,.0f} examples" if seen is not None else " early")
    return ("the first" if first else "stayed") if step["accepted"] else "rejected"


def _trace_chart(steps: Sequence[JsonView], singles: Mapping[str, Score], metric: str) -> Html | None:
    """The checkpoints alone, the soup stepping up, and crosses for what was rejected, at the foot if it ended
    early."""
    values = [number(step.get("value")) for step in steps]
    alone = [singles.get(step["ingredient"]) for step in steps]
    known = [value for value in values if value is not None] + [each.value for each in alone if each]
    if len(steps) < 2 or not known:
        return None
    horizontal, vertical = Axis(0.5, len(steps) + 0.5, max(1, len(steps) // 10)), axis(known)
    marks = [
        tag(
            "g",
            *(dot(x, each.value, horizontal, vertical) for x, each in enumerate(alone, 1) if each),
            class_="line faint",
        )
    ]
    marks.append(_staircase(steps, values, horizontal, vertical))
    for x, (step, value) in enumerate(zip(steps, values, strict=True), start=1):
        if not step["accepted"]:
            title = f"{step['ingredient']}: {_verdict(step, first=False)}"
            marks.append(
                cross(x, vertical.low if value is None else value, horizontal, vertical, title=title)
            )
    legend = tag(
        "ul",
        tag("li", "the soup", class_="s0"),
        tag("li", "a checkpoint alone", class_="faint"),
        tag("li", "× rejected (at the foot: before its score was complete)", class_="none"),
        class_="legend",
    )
    summary = f"The soup went from {min(known):.4g} at the lowest single to {max(known):.4g} at the most"
    caption = f"Held-out {words(metric)} over the trials"
    return chart(caption, horizontal, vertical, *marks, xlabel="trial", summary=summary, legend=legend)


def _staircase(
    steps: Sequence[JsonView], values: Sequence[float | None], horizontal: Axis, vertical: Axis
) -> Html:
    """The score of the soup as it stood after each trial."""
    path, dots, last = [], [], None
    for x, (step, value) in enumerate(zip(steps, values, strict=True), start=1):
        if step["accepted"] and value is not None:
            if last is not None:
                path.append((float(x), last))
            last = value
            dots.append(dot(x, value, horizontal, vertical, title=step["ingredient"]))
        if last is not None:
            path.append((float(x), last))
    points = " ".join(f"{horizontal.at(x)},{100 - vertical.at(y):.2f}" for x, y in path)
    line = tag(
        "svg",
        tag("polyline", points=points),
        viewBox="0 0 100 100",
        preserveAspectRatio="none",
        width="100%",
        height="100%",
    )
    return tag("g", line, *dots, class_="line s0")


def coefficient_section(subject: Subject) -> Html | None:
    """The coefficients of a mixture: a bar per checkpoint, or, where they differ over blocks, a strip of a
    heat map."""
    mixture = mapping(subject.record.get("mixture"))
    matrix = _matrix(mixture)
    if not matrix:
        return None
    names = [str(each) for each in sequence(mixture.get("ingredients"))] or [
        str(each.get("reference")) for each in subject.inputs
    ]
    labels = [names[row] if row < len(names) else f"number {row}" for row in range(len(matrix))]
    labels = told_apart(labels)
    return (
        _blocks(labels, matrix, mixture)
        if len(matrix[0]) > 1
        else _column(labels, [row[0] for row in matrix])
    )


def _matrix(mixture: JsonView) -> list[list[float]]:
    """The effective coefficients, K rows of B numbers; empty when they are none."""
    rows = [[number(value) for value in sequence(row)] for row in sequence(mixture.get("coefficients"))]
    divisor = number(mixture.get("divisor", 1.0))
    if not divisor or not rows or not rows[0] or any(len(row) != len(rows[0]) or None in row for row in rows):
        return []
    return [[(value or 0.0) / divisor for value in row] for row in rows]


def _column(labels: Sequence[str], values: Sequence[float]) -> Html:
    scale = axis([0.0, *values])
    rows = [(name(label), value, bar(value, scale)) for label, value in zip(labels, values, strict=True)]
    used = sum(value != 0 for value in values)
    caption = f"{used} of {len(values)} checkpoints count; the coefficients sum to {sum(values):.4g}"
    return table(caption, ("checkpoint", "coefficient", "from zero"), rows)


def _blocks(labels: Sequence[str], matrix: Sequence[Sequence[float]], mixture: JsonView) -> Html:
    """Blocks from left to right in the order of the tensors."""
    most = max(abs(value) for row in matrix for value in row)
    rows = []
    for label, row in zip(labels, matrix, strict=True):
        low, mean, high = min(row), sum(row) / len(row), max(row)
        alt = f"coefficients of {len(row)} blocks, from {low:.4g} to {high:.4g}"
        rows.append((name(label), strip(row, most=most, label=alt), mean, f"{low:.3g} … {high:.3g}"))
    caption = (
        f"Coefficients of {len(matrix)} checkpoints in {len(matrix[0])} blocks: blue above zero, orange "
        f"below, full colour at {most:.3g}"
    )
    columns = ("checkpoint", "block by block", "mean", "range")
    pieces = [table(caption, columns, rows)]
    if len(matrix[0]) <= MOST_COLUMNS:
        heads = _block_names(mixture, len(matrix[0]))
        numbers = [(name(label), *row) for label, row in zip(labels, matrix, strict=True)]
        pieces.append(table("The same as numbers", ("checkpoint", *heads), numbers))
    return joined(pieces)


def _block_names(mixture: JsonView, num_blocks: int) -> list[Html | str]:
    """A block by its first tensor."""
    first: dict[int | None, str] = {}
    for tensor, block in mapping(mixture.get("blocks")).items():
        first.setdefault(block if isinstance(block, int) else None, tensor)
    return [
        name(f"{short(first[block])} …") if block in first else f"block {block}"
        for block in range(num_blocks)
    ]
