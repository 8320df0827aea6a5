"""What a command noted, shown by its shape: numbers over time as lines, records as tables, the rest by
name."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence

from soupkit.jsons import JsonView
from soupkit.report.html import Html, block, folded, joined, shown, table, with_error
from soupkit.report.html_charts import Point, lines
from soupkit.report.sections_scores import main_metric, of_one, of_several
from soupkit.report.sections_subject import (
    DEEPEST,
    Keys,
    Subject,
    leaves,
    number,
    score,
    scores,
    sequence,
    words,
)

SERIES = 4
"""Fewer numbers are told one by one."""
MOST_LINES = 40
MOST_ROWS = 200
MOST_LETTERS = 20_000
PLACES = ("epoch", "update", "step", "t", "at")
Drawing = Callable[[str, object, Subject], Html | None]


def notes_section(subject: Subject, *, without: Collection[str] = ()) -> Html | None:
    """Every note that no other section shows, and the trace of a search where none does."""
    notes = {key: value for key, value in subject.notes.items() if key not in without}
    trace = sequence(subject.record.get("trace")) if "trace" not in without else []
    return _told("In short", notes | {"trace": trace}, subject)


def _told(
    caption: str, values: JsonView, subject: Subject, *, prefix: str = "", depth: int = 0
) -> Html | None:
    """What can be drawn is drawn; the rest becomes rows of one table, folded when it is a note's own."""
    rows: list[tuple[object, ...]] = []
    pieces: list[Html | None] = []
    for key, value in values.items():
        label = f"{prefix}{words(key)}"
        drawn = _drawn(label, value, subject)
        if drawn:
            pieces.append(drawn)
        elif _has_parts(value, subject, depth):
            pieces.append(_told(label, value, subject, prefix=f"{label}: ", depth=depth + 1))
        elif value not in (None, [], {}):
            rows += [
                (" ".join(map(words, (key, *path))), shown(_plain(item))) for path, item in leaves(value)
            ]
    whole = table(caption, (), rows[:MOST_ROWS]) if rows else None
    pieces.insert(0, folded(caption, whole) if whole and depth else whole)
    return joined(pieces) if any(pieces) else None


def _drawn(label: str, value: object, subject: Subject) -> Html | None:
    return next((drawn for drawing in DRAWINGS if (drawn := drawing(label, value, subject))), None)


def _has_parts(value: object, subject: Subject, depth: int) -> bool:
    """Whether a mapping is a table of its own: a whole note, or one in which something can be drawn."""
    if not isinstance(value, Mapping) or not value or score(value) or depth >= DEEPEST:
        return False
    return depth == 0 or any(_drawn("", item, subject) for _, item in leaves(value))


def _plain(value: object) -> object:
    """A value for a table's cell."""
    found = score(value)
    if found:
        size = f", n = {found.num:,.0f}" if found.num else ""
        return f"{with_error(found.value, found.error)}{size}"
    is_list = (
        isinstance(value, list)
        and len(value) <= 12
        and not any(isinstance(item, list | dict) for item in value)
    )
    return (
        json.dumps(value, ensure_ascii=False)[:300]
        if isinstance(value, list | dict) and not is_list
        else value
    )


def _numbers(label: str, value: object, _: Subject) -> Html | None:
    """A list of numbers: a line."""
    if not isinstance(value, list) or len(value) < SERIES or any(number(item) is None for item in value):
        return None
    return lines(
        label, {label: [(float(x), float(y), None) for x, y in enumerate(value, start=1)]}, xlabel="number"
    )


def _matrix(label: str, value: object, _: Subject) -> Html | None:
    """A list of equally long lists of numbers: a line for every column, or a table when there are few."""
    if not isinstance(value, list) or not value or not all(isinstance(row, list) for row in value):
        return None
    width = len(value[0])
    if not 0 < width <= MOST_LINES or any(len(row) != width or None in map(number, row) for row in value):
        return None
    if len(value) < SERIES:
        return table(
            label, ("#", *map(str, range(width))), [(place, *row) for place, row in enumerate(value)]
        )
    series = {
        str(column): [(float(x), row[column], None) for x, row in enumerate(value, 1)]
        for column in range(width)
    }
    return lines(label, series, xlabel="number")


def _records(label: str, value: object, subject: Subject) -> Html | None:
    """A list of records: lines for what varies over them, and all of them as a table."""
    if (
        not isinstance(value, list)
        or not value
        or not all(isinstance(item, Mapping) and item for item in value)
    ):
        return None
    records = [_flat(item, subject) for item in value]
    columns = list(dict.fromkeys(path for record in records for path in record))
    rows = [
        (place, *(_cell(record.get(path)) for path in columns)) for place, record in enumerate(records, 1)
    ]
    heads = [" ".join(map(words, path)) for path in columns]
    more = f", the first {MOST_ROWS} of {len(rows):,}" if len(rows) > MOST_ROWS else ""
    whole = table(f"{label}{more}", ("#", *heads), rows[:MOST_ROWS])
    charts = _charts(label, records) if len(records) >= 3 else []
    return joined([*charts, folded(f"{label}: the numbers", whole)] if charts else [whole])


def _cell(value: object) -> object:
    found = score(value)
    return with_error(found.value, found.error) if found else _plain(value)


def _flat(record: JsonView, subject: Subject) -> dict[Keys, object]:
    """A record's values by their keys; of several metrics on the same examples, the main one; a score is its
    value."""
    if score(record):
        parts = {key: record[key] for key in ("value", "standard_error", "num_examples") if key in record}
        return {(str(key),): item for key, item in record.items() if key not in parts} | {("value",): parts}
    metrics = [path[-1] for path in scores(record)]
    main = main_metric(metrics, subject.recipe) if metrics else None
    return {path: item for path, item in leaves(record) if score(item) is None or path[-1] == main}


def _charts(label: str, records: Sequence[Mapping[Keys, object]]) -> list[Html]:
    """One chart per kind of number; where it depends on more keys, a line for each."""
    place = next(
        (name for name in PLACES if all(number(record.get((name,))) is not None for record in records)), None
    )
    groups: dict[Keys, dict[str, list[Point]]] = {}
    for position, record in enumerate(records, start=1):
        given = number(record[(place,)]) if place else None
        x = float(position) if given is None else given
        for path, item in record.items():
            group, line = _place_in_chart(path, is_score=score(item) is not None)
            point = _point(x, item)
            if point and path != (place,):
                groups.setdefault(group, {}).setdefault(line, []).append(point)
    drawn = [
        lines(f"{label}: {' '.join(map(words, group))}", series, xlabel=place or "number")
        for group, series in groups.items()
        if len(series) <= MOST_LINES
    ]
    return [each for each in drawn if each]


def _place_in_chart(path: Keys, *, is_score: bool) -> tuple[Keys, str]:
    """(soup, test, top1): the line `soup` of the chart `test top1`; (error, test): the line `test` of
    `error`."""
    if is_score and len(path) > 2:
        return path[-2:], " ".join(map(words, path[:-2]))
    return path[:1], " ".join(map(words, path[1:])) or words(path[0])


def _point(x: float, item: object) -> Point | None:
    found, plain = score(item), number(item)
    if found:
        return x, found.value, found.error
    return None if plain is None else (x, plain, None)


def _scores(label: str, value: object, subject: Subject) -> Html | None:
    """Scores by name."""
    found = scores(value)
    if not found or len(found) != sum(1 for _ in leaves(value)):
        return None
    if any(len(path) > 2 for path in found):
        return of_several({path: each for path, each in found.items() if len(path) > 2}, subject, label)
    return of_one(found, f"{label}; ± is one standard error")


def _settings(label: str, value: object, _: Subject) -> Html | None:
    """Named records with the same keys: a table."""
    if (
        not isinstance(value, Mapping)
        or len(value) < 2
        or not all(isinstance(item, Mapping) for item in value.values())
    ):
        return None
    columns = list(dict.fromkeys(str(key) for item in value.values() for key in item))
    plain = all(not isinstance(inner, Mapping | list) for item in value.values() for inner in item.values())
    if not plain or not columns or len(columns) > MOST_LINES:
        return None
    rows = [
        (key, *({str(k): v for k, v in item.items()}.get(column) for column in columns))
        for key, item in value.items()
    ]
    return table(label, ("", *map(words, columns)), rows[:MOST_ROWS])


def _anything(label: str, value: object, _: Subject) -> Html | None:
    """What is too large for a row, as it is."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    if len(text) < 2000:
        return None
    cut = f"\n… {len(text) - MOST_LETTERS:,} more letters" if len(text) > MOST_LETTERS else ""
    return folded(label, block(text[:MOST_LETTERS] + cut, label))


DRAWINGS: tuple[Drawing, ...] = (_numbers, _matrix, _records, _scores, _settings, _anything)
