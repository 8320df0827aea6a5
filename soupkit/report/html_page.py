"""One self-contained page about an output: no script, no request, one style."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources

from soupkit import __version__
from soupkit.report.html import Html, folded, name, table, tag, with_error
from soupkit.report.sections import sections
from soupkit.report.sections_record import opening
from soupkit.report.sections_scores import main_metric
from soupkit.report.sections_subject import Keys, Score, Subject, scores, words

GENERATOR = "soupkit"
SPLITS = ("held_out", "test")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Whatever a page holds, the browser runs no script of it and asks no server for anything."""


def page(subject: Subject) -> str:
    """The whole document. Everything that comes from a record is escaped; the images are within the page."""
    style = resources.files("soupkit.report").joinpath("page.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content=f"{GENERATOR} {__version__}"),
        tag("title", f"{subject.name} · soupkit"),
        tag("style", Html(style)),
    )
    main = tag("main", tag("h1", name(subject.name)), *_about(subject, level=2), *_parts(subject))
    footer = tag("footer", f"Made by soupkit {__version__} report.")
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', main, footer), lang='en')}\n"


def _about(subject: Subject, *, level: int) -> Iterator[Html]:
    """What it is, and its sections."""
    yield opening(subject)
    for title, body in sections(subject):
        yield tag("section", tag(f"h{level}", title), body)


def _parts(subject: Subject) -> Iterator[Html]:
    """The outputs inside of this one: a table, then each with sections of its own."""
    if not subject.parts:
        return
    rows = [
        (tag("a", name(part.name), href=f"#part-{i}"), part.command, *_best(part))
        for i, part in enumerate(subject.parts)
    ]
    columns = ("output", "made by", *(f"{words(split)}" for split in SPLITS))
    overview = table("Outputs in this folder, with their main metric ± one standard error", columns, rows)
    yield tag("section", tag("h2", "Outputs"), overview)
    for i, part in enumerate(subject.parts):
        whole = tag("div", *_about(part, level=3), id=f"part-{i}")
        yield tag("div", folded(tag("h2", name(part.name)), whole), class_="part")


def _best(part: Subject) -> list[str | None]:
    """The main metric on every split, of outputs that are one model."""
    found: dict[Keys, Score] = {
        path: each for path, each in scores(part.record.get("metrics")).items() if len(path) == 2
    }
    if not found:
        return [None for _ in SPLITS]
    main = main_metric([path[1] for path in found], part.recipe)
    known = [found.get((split, main)) for split in SPLITS]
    return [None if each is None else f"{with_error(each.value, each.error)} ({main})" for each in known]
