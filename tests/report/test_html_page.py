"""Pages: what they say, that they say it safely, and that every reader can read them."""

from __future__ import annotations

import copy
import itertools
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report.html_samples import (
    HOSTILE,
    RECORDS,
    Element,
    greedy,
    learned,
    manifest,
    path_scores,
    read,
    score,
    sweep,
)

from soupkit.report.html_page import page
from soupkit.report.sections_subject import Subject

PIXEL = bytes.fromhex("89504e470d0a1a0a")
VISIBLE = re.compile(r"[\n -~\xa0-\u05ff\u2013-\u2026\u2190-\u22ff−×·±—…↑]*")


def page_of(record: dict[str, Any], **parts: Any) -> Element:
    return read(page(Subject(name="soup", place="soups/soup", record=record, **parts)))


def check_readable(root: Element) -> None:
    """What holds for every page: no script, nothing from outside, names for everything, headings in order."""
    assert not root.all("script", "iframe", "link", "object", "form", "base")
    levels = [int(each.name[1]) for each in root.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for element in root.all():
        for name, value in element.attributes.items():
            assert not name.startswith("on"), name
            assert name not in ("style", "srcset", "action"), name
            if name in ("src", "href"):
                assert value is not None
                assert value.startswith("data:image/" if name == "src" else "#")
    assert all(each.attributes["alt"] for each in root.all("img"))
    assert all(each.all("caption")[0].text.strip() for each in root.all("table"))
    assert all(each.attributes.get("scope") for each in root.all("th"))
    assert all(each.all("figcaption")[0].text.strip() for each in root.all("figure"))
    inner = {id(svg) for outer in root.all("svg") for svg in outer.all("svg")}
    for each in root.all("svg"):
        named = each.attributes.get("role") == "img" and each.attributes.get("aria-label")
        assert named or each.attributes.get("aria-hidden") or id(each) in inner
    ids = [each.attributes["id"] for each in root.all() if "id" in each.attributes]
    assert len(set(ids)) == len(ids)
    targets = [each.attributes["href"] for each in root.all("a")]
    assert {str(target)[1:] for target in targets} <= set(ids)


@pytest.mark.parametrize("name", RECORDS)
def test_every_output_makes_a_readable_page(name: str) -> None:
    root = page_of(RECORDS[name](), plots={"a.png": PIXEL, "b.SVG": b"<svg/>"}, path_scores=path_scores())
    check_readable(root)
    assert root.all("title")[0].text == "soup · soupkit"
    assert f"soupkit {RECORDS[name]()['command']}" in root.all("p")[0].text


def test_scores_have_errors_and_sample_sizes() -> None:
    assert page_of(greedy()).table("Scores") == [
        ["metric", "held-out, n = 700", "test, n = 797"],
        ["top1", "0.9857 ± 0.0040", "0.9787 ± 0.0051"],
        ["nll", "0.200 ± 0.030", "0.300 ± 0.020"],
    ]


def test_a_sample_size_of_its_own_stands_beside_its_score() -> None:
    metrics = {"test": {"top1": score(0.5, 0.05, 100), "nll": score(1.0, None, 90)}}
    rows = page_of(manifest("evaluate", metrics=metrics)).table("Scores")
    assert rows == [["metric", "test"], ["top1", "0.500 ± 0.050 (n = 100)"], ["nll", "1 (n = 90)"]]


def test_a_sweep_is_ranked_on_held_out_not_on_test() -> None:
    rows = page_of(sweep()).table("Scores")
    assert [row[0] for row in rows] == ["model", "run-001", "run-002", "run-000"]
    assert rows[0][2:5] == ["held-out top1, n = 700", "test top1, n = 797", "lr"]
    assert rows[1][2:5] == ["0.9800 ± 0.0040", "0.9500 ± 0.0051", "0.002"]
    assert "epochs" not in rows[0]  # all runs have the same


def test_a_lower_nll_ranks_higher() -> None:
    metrics = {
        name: {"held_out": {"nll": score(value)}} for name, value in (("a", 0.3), ("b", 0.1), ("c", 0.2))
    }
    rows = page_of(manifest("x", metrics=metrics, notes={"members": list(metrics)})).table("Scores")
    assert [row[0] for row in rows] == ["model", "b", "c", "a"]


def test_an_evaluation_keeps_the_order_of_its_references() -> None:
    metrics = {name: {"test": {"top1": score(value)}} for name, value in (("a", 0.1), ("b", 0.3), ("c", 0.2))}
    assert [row[0] for row in page_of(manifest("evaluate", metrics=metrics)).table("Scores")] == [
        "model",
        *"abc",
    ]


def test_greedy_trials_are_told_in_order() -> None:
    root = page_of(greedy())
    rows = root.table("Trials")
    assert [row[1:4] for row in rows[1:]] == [
        ["b", "the first", "0.96"],
        ["a", "rejected", "0.95"],
        ["c", "stayed", "0.98"],
        ["d", "rejected after 32 examples", "—"],
    ]
    assert "2 of 4 checkpoints stayed" in root.text
    (chart,) = [each for each in root.all("figure") if "trials" in each.all("figcaption")[0].text]
    crosses = [each for each in chart.all("svg") if each.attributes.get("class") == "cross"]
    (soup,) = [each for each in chart.all("g") if each.attributes["class"] == "line s0"]
    steps = [
        tuple(map(float, pair.split(",")))
        for pair in str(soup.all("polyline")[0].attributes["points"]).split()
    ]
    assert len(crosses) == 2
    assert len(steps) == 5  # four trials, and the riser of the one that was accepted
    assert [y for _, y in steps] == sorted((y for _, y in steps), reverse=True)  # up the page
    assert len({y for _, y in steps}) == 2


def test_coefficients_are_the_effective_ones() -> None:
    rows = page_of(greedy()).table("2 of 4 checkpoints count; the coefficients sum to 1")
    assert [row[:2] for row in rows[1:]] == [["a", "0"], ["b", "0.5"], ["c", "0.5"], ["d", "0"]]


def test_coefficients_over_blocks_are_a_heat_map() -> None:
    root = page_of(learned())
    rows = root.table("Coefficients of 2 checkpoints in 4 blocks")
    assert rows[1:] == [["a", "", "0.1875", "-0.5 … 1"], ["b", "", "0.8125", "0 … 1.5"]]
    numbers = root.table("The same as numbers")
    assert [row[1:] for row in numbers[1:]] == [["-0.5", "0.25", "0", "1"], ["1.5", "0.75", "1", "0"]]


def test_the_record_is_there() -> None:
    root = page_of(greedy(), sizes={"sweep/a": 1_510_000})
    rows = root.table("Checkpoints that went in")
    assert rows[1] == ["1", "sweep/a", "1.51 MB", f"xxh3-128:{0:032x}"]
    assert rows[2][2] == "not found now"
    assert root.table("Versions")[0] == ["soupkit", "0.1.0"]
    commands = [each.text for each in root.all("pre")]
    assert "soupkit merge greedy sweep" in commands[0]
    assert "soupkit reproduce soups/soup --out NEW" in commands


def test_notes_of_an_unknown_command_are_drawn_by_their_shape() -> None:
    root = page_of(RECORDS["unknown"]())
    captions = [each.text for each in root.all("figcaption")]
    assert captions == ["history: losses", "history: rates"]
    assert root.table("corners")[1:] == [["0", "0", "1"], ["1", "2", "3"]]
    assert root.table("In short") == [["text", "words"]]
    assert root.table("nested") == [["a b c", '[1, {"d": null}]']]


def test_lines_over_epochs_have_one_chart_per_kind() -> None:
    root = page_of(RECORDS["fge"]())
    charts = {each.all("figcaption")[0].text: each for each in root.all("figure")}
    assert list(charts) == ["Training loss", "epochs: error", "epochs: distance"]
    assert [each.text for each in charts["epochs: error"].all("li")] == ["held-out", "test"]
    assert len(charts["epochs: error"].all("polyline")) == 2


def test_records_that_are_scores_keep_their_errors() -> None:
    points = [{"lambda": n / 4, "metric": "nll", **score(1.0 + n, 0.25)} for n in range(5)]
    root = page_of(manifest("x", notes={"points": points}))
    assert root.table("points")[2] == ["2", "0.25", "nll", "2.00 ± 0.25"]
    charts = {each.all("figcaption")[0].text: each for each in root.all("figure")}
    assert len(charts["points: value"].all("polygon")) == 1


def test_folders_list_their_outputs() -> None:
    parts = tuple(Subject(name=name, record=record()) for name, record in RECORDS.items())
    root = page_of({}, parts=parts)
    check_readable(root)
    rows = root.table("Outputs")
    assert [row[0] for row in rows[1:]] == list(RECORDS)
    assert rows[1] == ["greedy", "merge greedy", "0.9857 ± 0.0040 (top1)", "0.9787 ± 0.0051 (top1)"]
    assert [each.text for each in root.all("summary") if each.all("h2")] == list(RECORDS)


def poisoned(value: Any) -> Any:
    """The same record with hostile text in every string and key that no reader of the record gives a
    meaning."""
    known = {"held_out", "test", "top1", "command"}
    if isinstance(value, dict):
        return {
            key if key in known or len(key) > 3 else key + HOSTILE: poisoned(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    return value + HOSTILE if isinstance(value, str) else value


@pytest.mark.parametrize("name", RECORDS)
def test_hostile_names_stay_text(name: str) -> None:
    record = poisoned(RECORDS[name]())
    text = page(Subject(name=HOSTILE, record=record, plots={f"{HOSTILE}.png": PIXEL}, sizes={HOSTILE: 1}))
    text.encode()  # lone surrogates would not pass
    root = read(text)
    check_readable(root)
    body = root.all("body")[0].text
    assert "<script>alert(1)</script>\"'&amp;" in body
    assert "\\u202e" in body
    assert VISIBLE.fullmatch(body), re.sub(VISIBLE, "", body)


def test_a_page_runs_nothing_and_asks_for_nothing() -> None:
    root = page_of(greedy())
    (policy,) = [
        each for each in root.all("meta") if each.attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert str(policy.attributes["content"]).startswith("default-src 'none'; img-src data:;")
    style = root.all("style")[0].text
    assert "url(" not in style
    assert "@import" not in style


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(HOSTILE),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["value", "standard_error", "epoch", "files", "top1", "x"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_record_makes_a_page(data: st.DataObject) -> None:
    record = copy.deepcopy(data.draw(st.sampled_from(list(RECORDS.values())))())
    for _ in range(data.draw(st.integers(1, 3))):
        place: Any = record
        while isinstance(place, dict | list) and place:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = data.draw(st.sampled_from(keys))
            if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
                place[key] = data.draw(JSON)
                break
            place = place[key]
    scores = data.draw(st.dictionaries(st.sampled_from(list(path_scores())), JSON, max_size=6))
    check_readable(page_of(record, path_scores=path_scores() | scores))
