"""The sections of a page, in their order: functions from a subject to HTML, or None where there is nothing to
say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from soupkit.report.html import Html
from soupkit.report.sections_curves import path_section, plot_section, training_section
from soupkit.report.sections_notes import notes_section
from soupkit.report.sections_record import (
    fact_section,
    file_section,
    input_section,
    recipe_section,
    version_section,
)
from soupkit.report.sections_scores import comparison_section, score_section
from soupkit.report.sections_search import coefficient_section, trace_section
from soupkit.report.sections_subject import Subject


@dataclass(frozen=True)
class Section:
    """A heading and what makes the text under it. notes: those that it shows, so that no other section
    need."""

    title: str
    body: Callable[[Subject], Html | None]
    notes: tuple[str, ...] = ()


FIRST = (
    Section("Along the path", path_section),
    Section("Scores", score_section, ("members", "hyper_parameters")),
    Section("Comparison", comparison_section, ("comparisons", "baseline")),
    Section("Greedy trials", trace_section, ("trace", "singles", "picks", "held_out_of_soup")),
    Section("Coefficients", coefficient_section),
    Section("Training", training_section, ("loss", "hyper_parameters")),
    Section("Plots", plot_section),
)
LAST = (
    Section("What went in", input_section),
    Section("Weights", fact_section),
    Section("Files", file_section, ("members", "bends")),
    Section("The command", recipe_section),
    Section("Versions and machine", version_section, ("seconds",)),
)


def sections(subject: Subject) -> Iterator[tuple[str, Html]]:
    """Title and text of every section that has something to say; notes that none of them shows come
    between."""
    first = [(section, body) for section in FIRST if (body := section.body(subject))]
    last = [(section, body) for section in LAST if (body := section.body(subject))]
    told = {note for section, _ in (*first, *last) for note in section.notes}
    rest = notes_section(subject, without=told)
    yield from ((section.title, body) for section, body in first)
    if rest:
        yield "Notes", rest
    yield from ((section.title, body) for section, body in last)
