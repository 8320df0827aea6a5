"""Sections about how good it is: scores, leaderboards, comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from soupkit.jsons import Json, JsonView
from soupkit.metrics import rank_key
from soupkit.report.html import Html, joined, table, with_error
from soupkit.report.html_charts import Axis, axis, intervals
from soupkit.report.sections_subject import (
    Keys,
    Score,
    Subject,
    direction,
    label,
    leaves,
    mapping,
    number,
    scores,
    sequence,
    short,
    words,
)
from soupkit.report.tables import marks

MOST_ROWS = 500
T = TypeVar("T")


def score_section(subject: Subject) -> Html | None:
    """The metrics: of one model a table of metrics by splits, of several a table of models, best first in a
    sweep."""
    found = scores(subject.record.get("metrics"))
    one = {path: each for path, each in found.items() if 0 < len(path) <= 2}
    several = {path: each for path, each in found.items() if len(path) > 2}
    pieces = [
        of_one(one, notes=subject.notes) if one else None,
        of_several(several, subject) if several else None,
    ]
    return joined(pieces) if any(pieces) else None


def of_one(
    found: Mapping[Keys, Score],
    caption: str = "Scores; ± is one standard error",
    *,
    notes: JsonView | None = None,
) -> Html:
    """One row per metric, one column per split; the sample sizes in the head where they agree."""
    splits = _unique(path[0] if len(path) > 1 else "" for path in found)
    metrics = _unique(path[-1] for path in found)
    sizes = {
        split: _common_size(each for path, each in found.items() if path[:-1] == _prefix(split))
        for split in splits
    }
    rows = [
        (words(metric), *(_shown(found.get((*_prefix(split), metric)), sizes[split]) for split in splits))
        for metric in metrics
    ]
    heads = [_head(split, sizes[split], notes) for split in splits]
    return table(caption, ("metric", *heads), rows)


def _prefix(split: str) -> Keys:
    return (split,) if split else ()


def _head(split: str, size: float | None, notes: JsonView | None = None) -> str:
    mark = marks(notes or {}).get(split)
    return f"{words(split) or 'value'}{f' ({mark})' if mark else ''}{f', n = {size:,.0f}' if size else ''}"


def _common_size(found: Iterable[Score]) -> float | None:
    """The sample size that all have, None when they differ."""
    sizes = {each.num for each in found}
    return sizes.pop() if len(sizes) == 1 else None


def _shown(found: Score | None, size: float | None = None) -> str | None:
    if found is None:
        return None
    own = f" (n = {found.num:,.0f})" if found.num is not None and found.num != size else ""
    return with_error(found.value, found.error) + own


def of_several(found: Mapping[Keys, Score], subject: Subject, caption: str = "Scores") -> Html:
    """One row per model: its main metric as a small plot and as numbers, settings that differ, the other
    metrics."""
    models, columns = _unique(path[:-2] for path in found), _unique(path[-2:] for path in found)
    main = main_metric([metric for _, metric in columns], subject.recipe)
    if {str(each) for each in sequence(subject.notes.get("members"))} >= {model[0] for model in models}:
        models = _ranked(models, found, main, subject.recipe)
    sizes = {
        column: _common_size(each for path, each in found.items() if path[-2:] == column)
        for column in columns
    }
    plotted = [column for column in columns if column[1] == main]
    others = [column for column in columns if column[1] != main]
    scale, settings = _scale(found, plotted), varying(subject.notes.get("hyper_parameters"))

    def numbers(model: Keys, chosen: Sequence[Keys]) -> list[str | None]:
        return [_shown(found.get((*model, *column)), sizes[column]) for column in chosen]

    rows = []
    for model in models[:MOST_ROWS]:
        own = [values.get(model[0]) for values in settings.values()]
        plot = _interval(model, plotted, found, scale)
        rows.append((label(model), plot, *numbers(model, plotted), *own, *numbers(model, others)))
    heads = [_column(column, sizes) for column in (*plotted, *others)]
    heads[len(plotted) : len(plotted)] = map(words, settings)
    return table(
        f"{caption}; {_dots(plotted, len(models))}", ("model", f"{words(main)} ± s.e.", *heads), rows
    )


def _dots(plotted: Sequence[Keys], num_models: int) -> str:
    places = ("from above: " if len(plotted) > 1 else "") + ", ".join(words(split) for split, _ in plotted)
    more = f"; the first {MOST_ROWS} of {num_models:,}" if num_models > MOST_ROWS else ""
    return f"± is one standard error (dots, {places}){more}"


def _column(column: Keys, sizes: Mapping[Keys, float | None]) -> str:
    split, metric = column
    return _head(split, sizes[column]).replace(words(split), f"{words(split)} {words(metric)}", 1)


def main_metric(metrics: Sequence[str], recipe: JsonView) -> str:
    """The metric that a command was about: its recipe's, top1, or the first."""
    for wanted in (recipe.get("metric"), "top1"):
        if wanted in metrics:
            return str(wanted)
    return metrics[0]


def _ranked(models: list[Keys], found: Mapping[Keys, Score], main: str, recipe: JsonView) -> list[Keys]:
    """Best first, on held-out data: test data choose nothing, not even an order."""
    better = direction(main, recipe)
    if better is None:
        return models

    def key(model: Keys) -> tuple[bool, float]:
        best = found.get((*model, "held_out", main))
        return rank_key(best.value, better) if best else (True, 0.0)

    return sorted(models, key=key)


def _scale(found: Mapping[Keys, Score], plotted: Sequence[Keys]) -> Axis:
    every = [each for path, each in found.items() if path[-2:] in plotted]
    return axis(each.value + side * (each.error or 0) for each in every for side in (-1, 1))


def _interval(model: Keys, plotted: Sequence[Keys], found: Mapping[Keys, Score], scale: Axis) -> Html:
    """The small plot of one model."""
    known = {
        split: found[(*model, split, metric)] for split, metric in plotted if (*model, split, metric) in found
    }
    label = "; ".join(f"{words(split)} {with_error(each.value, each.error)}" for split, each in known.items())
    return intervals([(each.value, each.error) for each in known.values()], scale, label=label)


def varying(settings: object) -> dict[str, Json]:
    """{setting: {member: value}} of the settings in which members differ, from {member: {setting: value}}."""
    members = {
        member: mapping(values) for member, values in mapping(settings).items() if isinstance(values, Mapping)
    }
    keys = _unique(key for values in members.values() for key in values)
    found = {key: {member: values.get(key) for member, values in members.items()} for key in keys}
    return {key: values for key, values in found.items() if len(set(map(repr, values.values()))) > 1}


def comparison_section(subject: Subject) -> Html | None:
    """Paired differences with their 95 % intervals, as `evaluate` and `ensemble` find them."""
    rows = []
    for path, item in leaves(subject.notes.get("comparisons"), _is_comparison):
        if _is_comparison(item):
            interval = f"{item['low']:+.4f} … {item['high']:+.4f}"
            ends = number(item.get("p_value")), number(item.get("num_examples"))
            rows.append((label(path), f"{item['difference']:+.4f}", interval, *ends))
    against = subject.notes.get("baseline") or subject.notes.get("best_single")
    known = f" to {short(against)}" if isinstance(against, str) else ""
    caption = f"Differences{known}, on the same examples, with 95 % intervals"
    return table(caption, ("what", "difference", "95 % interval", "p", "n"), rows) if rows else None


def _is_comparison(value: object) -> bool:
    parts = ("difference", "low", "high")
    return isinstance(value, Mapping) and all(number(value.get(part)) is not None for part in parts)


def _unique(values: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(values))
