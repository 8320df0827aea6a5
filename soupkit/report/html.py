"""HTML by construction: every text is escaped, and only `tag` makes markup."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence

_VOID = {"img", "meta"}
# Control characters, those that turn the direction of text around, lone surrogates: none may act, all should
# be seen.
_UNSEEN = re.compile(
    r"[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


class Html(str):
    """A piece of a page, as opposed to text that is yet to be escaped."""


def text(value: object) -> Html:
    """Escape a value for element content and for attributes; what cannot be seen in it is written out, as
    \\u202e."""
    if isinstance(value, Html):
        return value
    seen = _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", str(value))
    return Html(html.escape(seen))


def tag(element: str, /, *children: object, **attributes: object) -> Html:
    """<element attribute="…">children</element>.

    `class_` stands for class, `stroke_width` for stroke-width. Children and attributes that are None are left
    out.
    """
    given = {
        key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None
    }
    opening = "".join([f"<{element}", *(f' {key}="{text(value)}"' for key, value in given.items()), ">"])
    return Html(opening) if element in _VOID else Html(f"{opening}{joined(children)}</{element}>")


def joined(children: Iterable[object]) -> Html:
    """Pieces one after the other; None is nothing."""
    return Html("".join(text(child) for child in children if child is not None))


def name(value: object) -> Html:
    """A name that somebody chose, kept apart from the direction of the text around it."""
    return tag("bdi", value)


def code(value: object) -> Html:
    """Something to be read letter by letter."""
    return tag("code", value, dir="ltr")


def block(value: str, label: str) -> Html:
    """Lines of code in a box that scrolls by itself."""
    return tag("pre", code(value), tabindex=0, role="region", aria_label=label)


def folded(summary: object, *children: object) -> Html:
    """What is shown when the reader asks for it (and in print)."""
    return tag("details", tag("summary", summary), *children)


def shown(value: object) -> object:
    """A value as a table shows it: numbers with 4 digits, text in its own direction."""
    if value is None or isinstance(value, Html):
        return "—" if value is None else value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return (
            f"{value:,}"
            if abs(value) < 1 << 63
            else f"{float(value):.4g}"
            if abs(value) < 1 << 1000
            else "huge"
        )
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return joined(
            piece for place, item in enumerate(value) for piece in (", " if place else None, shown(item))
        )
    return name(value)


def with_error(value: float, error: float | None) -> str:
    """`0.9857 ± 0.0045`: the standard error with two digits, the value with as many decimals."""
    if error is None or not math.isfinite(error) or not math.isfinite(value):
        return f"{value:.4g}"
    if error <= 0:
        return f"{value:.4g} ± 0"
    decimals = min(8, max(0, 1 - math.floor(math.log10(error))))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def num_bytes(value: float | None) -> str | None:
    """A size, in powers of ten."""
    if value is None:
        return None
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:g} bytes"


def table(caption: object, columns: Sequence[object], rows: Iterable[Sequence[object]]) -> Html:
    """A table with a caption, whose rows begin with their names, in a box that scrolls by itself; () has no
    head."""
    rows = [[None if value == "" else value for value in row] for row in rows]
    classes = [
        "number" if columns and all(map(_is_number, column)) else None for column in zip(*rows, strict=True)
    ]
    lines = [tag("tr", *_cells(row, classes)) for row in rows]
    heads = [
        tag("th", column, scope="col", class_=class_)
        for column, class_ in zip(columns, classes, strict=False)
    ]
    head = tag("thead", tag("tr", *heads)) if columns else None
    whole = tag("table", tag("caption", tag("span", caption)), head, tag("tbody", *lines))
    return tag("div", whole, class_="scroll", tabindex=0, role="region", aria_label=plain(caption))


def _cells(row: Sequence[object], classes: Sequence[str | None]) -> Iterable[Html]:
    yield tag("th", tag("span", shown(row[0])), scope="row")
    for value, class_ in zip(row[1:], classes[1:], strict=True):
        yield tag("td", shown(value), class_=class_)


def _is_number(value: object) -> bool:
    """Numbers and what is written as one stand in a column by their last digits."""
    return value is None or (
        not isinstance(value, Html) and bool(re.match(r"[-+−]?\d[\d.,e±+\-… %]*$", str(value)))
    )


def plain(value: object) -> Html:
    """The text of a piece, without its markup, for attributes."""
    return Html(re.sub(r"<[^>]*>", "", value)) if isinstance(value, Html) else text(value)
