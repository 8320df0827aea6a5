"""Elements and charts: escaping, numbers with errors, and marks that lie where their values do."""

from __future__ import annotations

import base64
import io
import math
import re
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from report.html_samples import read

import soupkit.report
from soupkit.report.html import Html, joined, num_bytes, shown, table, tag, text, with_error
from soupkit.report.html_charts import Axis, axis, bar, intervals, lines, strip

STYLE = (Path(soupkit.report.__file__).parent / "page.css").read_text(encoding="utf-8")


class Attributes(HTMLParser):
    """Keeps what the first element's attribute and text say."""

    value: str | None = None
    data = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == 1, "text became markup"
        self.value = attrs[0][1]

    def handle_data(self, data: str) -> None:
        self.data += data


@given(st.text())
def test_what_goes_in_as_text_comes_out_as_text(value: str) -> None:
    reader = Attributes()
    reader.feed(tag("p", value, title=value))
    reader.close()
    if "\\u" not in value:  # else nobody can tell what was written out
        for found in (reader.data, reader.value or ""):
            assert re.sub(r"\\u([0-9a-f]{4})", lambda escape: chr(int(escape[1], 16)), found) == value


def test_markup_is_kept_and_text_that_was_cut_from_it_is_not_trusted() -> None:
    inner = tag("b", "<i>")
    assert tag("p", inner) == "<p><b>&lt;i&gt;</b></p>"
    assert text(inner[0:3]) == "&lt;b&gt;"
    assert isinstance(joined([inner, None, "&"]), Html)
    assert joined([inner, None, "&"]) == "<b>&lt;i&gt;</b>&amp;"


@pytest.mark.parametrize(
    ("value", "error", "expected"),
    [
        (0.98571, 0.004485, "0.9857 ± 0.0045"),
        (3.6386, 0.6633, "3.64 ± 0.66"),
        (250.0, 31.0, "250 ± 31"),
        (0.5, None, "0.5"),
        (1.0, 0.0, "1 ± 0"),
        (0.5, math.nan, "0.5"),
        (0.0999, 0.00996, "0.0999 ± 0.0100"),
    ],
)
def test_errors_have_two_digits(value: float, error: float | None, expected: str) -> None:
    assert with_error(value, error) == expected


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_what_is_shown_is_within_a_tenth_of_the_error(value: float, error: float) -> None:
    shown_value, shown_error = map(Decimal, with_error(value, error).split(" ± "))
    assert abs(shown_value - Decimal(value)) <= Decimal(error) / 10
    assert abs(shown_error - Decimal(error)) <= Decimal(error) / 10


def test_values_and_sizes() -> None:
    assert [shown(each) for each in (None, True, 12345, 0.1 + 0.2)] == ["—", "yes", "12,345", "0.3"]
    assert shown(["a", 1]) == "<bdi>a</bdi>, 1"
    assert shown(10**400) == "huge"
    assert [num_bytes(each) for each in (None, 12, 1500, 2.5e6, 7e9)] == [
        None,
        "12 bytes",
        "1.5 kB",
        "2.5 MB",
        "7 GB",
    ]


def test_columns_of_numbers_are_aligned_with_their_heads() -> None:
    made = read(table("c", ("name", "score", "mixed"), [("a", "0.5 ± 0.1", 1), ("b", None, "words")]))
    classes = [[cell.attributes.get("class") for cell in row.all("th", "td")] for row in made.all("tr")]
    assert classes == [[None, "number", None]] * 3


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=6))
def test_axes_hold_their_values_and_have_round_ticks(values: list[float]) -> None:
    made = axis(values)
    finite = [value for value in values if abs(value) < 1e300]
    assert all(0 <= made.at(value) <= 100 for value in finite)
    assert 1 <= len(made.ticks) <= 12
    assert all(made.low - made.step <= tick <= made.high + made.step for tick in made.ticks)
    assert f"{made.step:.0e}"[0] in "125"


def test_lines_lie_where_their_values_are() -> None:
    points = [(0.0, 10.0, 1.0), (1.0, 30.0, None), (math.nan, 1.0, None), (2.0, 20.0, None)]
    made = read(
        str(lines("loss", {"a": points, "b": [(0.0, 10.0, None), (2.0, 10.0, None)]}, xlabel="epoch"))
    )
    circles = [
        (float(str(c.attributes["cx"])[:-1]), float(str(c.attributes["cy"])[:-1])) for c in made.all("circle")
    ]
    (left, low), (middle, high), (right, between) = circles[:3]
    assert middle == pytest.approx((left + right) / 2, abs=0.02)
    assert between == pytest.approx((low + high) / 2, abs=0.02)
    assert high < between < low  # y grows down the page
    assert circles[3][1] == low
    band = str(made.all("polygon")[0].attributes["points"]).split()
    upper, lower = (float(band[place].split(",")[1]) for place in (0, -1))
    assert (upper + lower) / 2 == pytest.approx(low, abs=0.02)
    assert (lower - upper) / (low - high) == pytest.approx(2 / 20, abs=0.01)
    label = str(made.all("svg")[0].attributes["aria-label"])
    assert "a: from 10 to 20, lowest 10, highest 30" in label


def test_nothing_to_draw_is_no_chart() -> None:
    assert lines("loss", {"a": [(0.0, math.nan, None), (1.0, 2.0, None)]}, xlabel="epoch") is None


def test_very_long_lines_are_thinned() -> None:
    made = read(str(lines("loss", {"a": [(float(x), float(x), None) for x in range(12_345)]}, xlabel="x")))
    assert 900 < len(str(made.all("polyline")[0].attributes["points"]).split()) <= 1000


def test_bars_begin_at_zero() -> None:
    scale = Axis(-1.0, 3.0, 1.0)
    for value, expected in ((1.0, ("25.0%", "25.0%")), (-0.5, ("12.5%", "12.5%")), (0.0, ("25.0%", "0.0%"))):
        (box,) = read(bar(value, scale)).all("rect")
        assert (box.attributes["x"], box.attributes["width"]) == expected


def test_intervals_are_one_standard_error_wide() -> None:
    (made,) = read(intervals([(2.0, 0.5)], Axis(0.0, 4.0, 1.0), label="x")).all("line")
    assert (made.attributes["x1"], made.attributes["x2"]) == ("37.5%", "62.5%")


def test_strips_are_images_of_the_coefficients() -> None:
    values = [0.0, 0.5, -1.0, 2.0]
    (made,) = read(strip(values, most=2.0, label="four blocks")).all("img")
    source = str(made.attributes["src"]).removeprefix("data:image/png;base64,")
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(source))), np.float64)
    assert pixels.shape == (1, 4, 4)
    np.testing.assert_allclose(pixels[0, :, 3], 255 * np.abs(values) / 2, atol=0.5)
    blue = pixels[0, :, 2] > pixels[0, :, 0]
    assert blue.tolist() == [True, True, False, True]
    assert made.attributes["alt"] == "four blocks"


def luminance(color: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    shares = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_colours_can_be_told_from_the_page(mode: str) -> None:
    light, dark = (dict(re.findall(r"--(\w+): (#\w{6})", rule)) for rule in STYLE.split("@media", 2)[:2])
    colors = light if mode == "light" else dark
    assert colors.keys() == {"page", "box", "ink", "soft", "rule", *(f"s{n}" for n in range(6))}
    for name in colors.keys() - {"page", "box", "rule"}:
        for ground in ("page", "box"):
            pair = sorted((luminance(colors[name]), luminance(colors[ground])))
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, (name, ground)
