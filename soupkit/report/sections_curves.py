"""Sections with lines and images: paths between checkpoints, training, and the plots that lie in the
directory."""

from __future__ import annotations

from collections.abc import Mapping

from soupkit.jsons import JsonView
from soupkit.report.html import Html, joined, name, table, tag
from soupkit.report.html_charts import Point, image, lines
from soupkit.report.sections_subject import Subject, mapping, number, sequence, words

SPLITS = {"tr": "train", "ho": "held-out", "te": "test"}
MEASURES = {"loss": "Loss", "nll": "Negative log-likelihood", "err": "Error, %"}
KINDS = {".png": "image/png", ".svg": "image/svg+xml"}


def path_section(subject: Subject) -> Html | None:
    """Loss, NLL and error along a curve or a chain, with bands of ± 1 standard error."""
    values = subject.path_scores
    charts = [_measure(values, measure, label) for measure, label in MEASURES.items()]
    return joined(charts) if any(charts) else None


def _measure(values: JsonView, measure: str, label: str) -> Html | None:
    error = "err_se" if measure == "err" else "nll_se"
    found = {
        f"{split}{_size(values.get(f'{prefix}_n'))}": _points(
            values.get("ts"), values.get(f"{prefix}_{measure}"), values.get(f"{prefix}_{error}")
        )
        for prefix, split in SPLITS.items()
    }
    return lines(
        f"{label} along the path", {name: points for name, points in found.items() if points}, xlabel="t"
    )


def _size(num: object) -> str:
    found = number(num)
    return f", n = {found:,.0f}" if found else ""


def _points(xs: object, ys: object, errors: object = None) -> list[Point]:
    """Points of lists of numbers; what is no number is left out."""
    errors = sequence(errors) or [None] * len(sequence(ys))
    triples = [
        (number(x), number(y), number(e)) for x, y, e in zip(sequence(xs), sequence(ys), errors, strict=False)
    ]
    return [(x, y, error) for x, y, error in triples if x is not None and y is not None]


def training_section(subject: Subject) -> Html | None:
    """The training loss, and the hyper-parameters of one run."""
    notes = subject.notes
    loss = _points([*range(1, 1 + len(sequence(notes.get("loss"))))], notes.get("loss"))
    settings = [(words(key), value) for key, value in mapping(notes.get("hyper_parameters")).items()]
    one_run = settings and not any(isinstance(value, Mapping | list) for _, value in settings)
    pieces = [
        lines("Training loss", {"loss": loss}, xlabel="epoch"),
        table("Hyper-parameters", (), settings) if one_run else None,
    ]
    return joined(pieces) if any(pieces) else None


def plot_section(subject: Subject) -> Html | None:
    """The images that lie in the directory, each in a box that scrolls by itself."""
    figures = [_figure(file, content) for file, content in subject.plots.items()]
    return joined(figures) if figures else None


def _figure(file: str, content: bytes) -> Html:
    kind = KINDS[file[file.rfind(".") :].lower()]
    alt = f"plot {file}"
    shown = tag(
        "div", image(content, kind, alt), class_="scroll plot-file", tabindex=0, role="region", aria_label=alt
    )
    return tag("figure", shown, tag("figcaption", name(file)))
