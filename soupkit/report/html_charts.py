"""Charts as inline SVG that need no scale: lines stretch with the page, letters and dots keep their size.

Colours come from the page's style (classes s0, s1, …), so that they suit light and dark.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from soupkit.report.html import Html, joined, name, plain, tag, text

Point = tuple[float, float, float | None]
"""x, y and the standard error of y."""
NUM_COLORS = 6
MOST_POINTS = 1000
MOST_DOTS = 60


@dataclass(frozen=True)
class Axis:
    """A range of values with round ticks."""

    low: float
    high: float
    step: float

    def at(self, value: float) -> float:
        """Where a value lies, in percent."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)

    @property
    def ticks(self) -> list[float]:
        """Multiples of the step within the range."""
        first, last = math.ceil(self.low / self.step - 1e-9), math.floor(self.high / self.step + 1e-9)
        return [number * self.step for number in range(first, min(last, first + 50) + 1)]


def axis(values: Iterable[float], *, num_ticks: int = 7) -> Axis:
    """The axis over the finite values, a little wider than they are."""
    finite = [value for value in values if math.isfinite(value) and abs(value) < 1e300]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    size = max(abs(low), abs(high), 1e-200)
    if high - low <= 1e-9 * size:
        low, high = low - size / 20, high + size / 20
    margin = 0.04 * (high - low)
    return Axis(low - margin, high + margin, _round_step((high - low) / num_ticks))


def _round_step(wanted: float) -> float:
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.999 * wanted)


def chart(
    caption: object,
    horizontal: Axis,
    vertical: Axis,
    *marks: Html,
    xlabel: str,
    summary: str,
    legend: Html | None = None,
) -> Html:
    """A figure with axes around marks that were placed by them; `summary` is what a screen reader says."""
    svg = tag(
        "svg",
        *_frame(horizontal, vertical),
        *marks,
        role="img",
        aria_label=f"{plain(caption)}. {summary}",
        class_="chart",
    )
    plot = tag("div", svg, tag("span", xlabel, class_="xlabel"), class_="plot")
    return tag("figure", tag("figcaption", caption), legend, plot)


def _frame(horizontal: Axis, vertical: Axis) -> Iterable[Html]:
    for tick in vertical.ticks:
        y = f"{100 - vertical.at(tick)}%"
        yield tag("line", x1="0", x2="100%", y1=y, y2=y, class_="grid")
        yield tag("text", f"{tick:.6g}", x="0", y=y, dx="-8", dy="4", text_anchor="end")
    for tick in horizontal.ticks:
        yield tag("text", f"{tick:.6g}", x=f"{horizontal.at(tick)}%", y="100%", dy="18", text_anchor="middle")
    yield tag("line", x1="0", x2="100%", y1="100%", y2="100%", class_="axis")


def lines(caption: object, series: Mapping[str, Sequence[Point]], *, xlabel: str) -> Html | None:
    """One line per series, a band of ± 1 standard error around it; None when no series has two finite
    points."""
    kept = {label: _thinned(points) for label, points in series.items()}
    kept = {label: points for label, points in kept.items() if len(points) > 1}
    if not kept:
        return None
    every = [point for points in kept.values() for point in points]
    horizontal = axis(x for x, _, _ in every)
    vertical = axis(y + side * (error or 0) for _, y, error in every for side in (-1, 1))
    marks = [_line(points, horizontal, vertical, number) for number, points in enumerate(kept.values())]
    summary = "; ".join(
        f"{label}: from {points[0][1]:.4g} to {points[-1][1]:.4g}, lowest "
        f"{min(y for _, y, _ in points):.4g}, highest {max(y for _, y, _ in points):.4g}"
        for label, points in list(kept.items())[:NUM_COLORS]
    )
    return chart(
        caption, horizontal, vertical, *marks, xlabel=xlabel, summary=summary, legend=legend(list(kept))
    )


def legend(labels: Sequence[str]) -> Html | None:
    """What the colours mean; of one series the caption says it."""
    if len(labels) < 2:
        return None
    more = tag("li", f"and {len(labels) - 2 * NUM_COLORS} more") if len(labels) > 2 * NUM_COLORS else None
    items = [
        tag("li", name(label), class_=_color(number)) for number, label in enumerate(labels[: 2 * NUM_COLORS])
    ]
    return tag("ul", *items, more, class_="legend")


def _thinned(points: Sequence[Point]) -> list[Point]:
    """Finite points, every nth of very many: a screen has no more columns."""
    finite = [
        point
        for point in points
        if math.isfinite(point[0]) and math.isfinite(point[1]) and abs(point[1]) < 1e300
    ]
    return finite[:: math.ceil(len(finite) / MOST_POINTS)] if len(finite) > MOST_POINTS else finite


def _color(number: int) -> str:
    return f"s{number % NUM_COLORS}"


def _line(points: Sequence[Point], horizontal: Axis, vertical: Axis, number: int) -> Html:
    def path(sign: int) -> list[str]:
        return [
            f"{horizontal.at(x)},{100 - vertical.at(y + sign * (error or 0)):.2f}" for x, y, error in points
        ]

    has_errors = any(error for _, _, error in points)
    band = (
        tag("polygon", points=" ".join([*path(1), *reversed(path(-1))]), class_="band")
        if has_errors
        else None
    )
    line = tag("polyline", points=" ".join(path(0)))
    stretched = tag(
        "svg", band, line, viewBox="0 0 100 100", preserveAspectRatio="none", width="100%", height="100%"
    )
    few = points if len(points) <= MOST_DOTS else []
    return tag(
        "g", stretched, *(dot(x, y, horizontal, vertical) for x, y, _ in few), class_=f"line {_color(number)}"
    )


def dot(
    x: float, y: float, horizontal: Axis, vertical: Axis, *, title: object = None, class_: str | None = None
) -> Html:
    """A dot; `title` is shown under the pointer."""
    told = None if title is None else tag("title", title)
    place = {"cx": f"{horizontal.at(x)}%", "cy": f"{100 - vertical.at(y)}%"}
    return tag("circle", told, **place, r="3", class_=class_)


def cross(x: float, y: float, horizontal: Axis, vertical: Axis, *, title: object) -> Html:
    """A cross, for what was turned down."""
    mark = tag("path", tag("title", title), d="M-4-4L4 4M-4 4L4-4")
    return tag("svg", mark, x=f"{horizontal.at(x)}%", y=f"{100 - vertical.at(y)}%", class_="cross")


def intervals(points: Sequence[tuple[float, float | None]], scale: Axis, *, label: str) -> Html:
    """A small plot for a table's cell: one dot with a bar of ± 1 standard error per point, one under the
    other."""
    marks = []
    for number, (value, error) in enumerate(points):
        y, x = 7 + 10 * number, scale.at(value)
        ends = [min(100.0, max(0.0, scale.at(value + side * (error or 0)))) for side in (-1, 1)]
        bar = tag("line", x1=f"{ends[0]}%", x2=f"{ends[1]}%", y1=y, y2=y)
        marks.append(tag("g", bar, tag("circle", cx=f"{x}%", cy=y, r="3"), class_=f"line {_color(number)}"))
    return tag("svg", *marks, class_="cell", height=4 + 10 * len(points), role="img", aria_label=label)


def bar(value: float, scale: Axis) -> Html:
    """A bar from zero, for a table's cell beside the number."""
    ends = sorted(min(100.0, max(0.0, scale.at(end))) for end in (0.0, value))
    sign = "s0" if value >= 0 else "s1"
    box = tag("rect", x=f"{ends[0]}%", width=f"{round(ends[1] - ends[0], 2)}%", y=2, height=12, class_=sign)
    zero = f"{min(100.0, max(0.0, scale.at(0.0)))}%"
    return tag(
        "svg",
        box,
        tag("line", x1=zero, x2=zero, y1=0, y2=16, class_="axis"),
        class_="cell",
        height=16,
        aria_hidden="true",
    )


def strip(values: Sequence[float], *, most: float, label: str) -> Html:
    """A row of a heat map: one pixel per value, blue above zero and orange below, the stronger the nearer to
    `most`."""
    from PIL import Image

    pixels = bytearray()
    for value in values:
        share = min(1.0, abs(value) / most) if most and math.isfinite(value) else 0.0
        pixels += bytes((*((20, 110, 230) if value >= 0 else (225, 110, 10)), round(255 * share)))
    buffer = io.BytesIO()
    Image.frombytes("RGBA", (len(values), 1), bytes(pixels)).save(buffer, "png")
    return image(buffer.getvalue(), "image/png", label, class_="strip")


def image(content: bytes, kind: str, alt: str, *, class_: str | None = None) -> Html:
    """An image within the page. A drawing in it runs no script."""
    source = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return tag("img", src=source, alt=alt, class_=class_)


def caption_of(*pieces: object) -> Html:
    """A caption of text and names."""
    return joined(text(piece) for piece in pieces)
