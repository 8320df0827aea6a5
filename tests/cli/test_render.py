"""Events as text, and progress on a terminal and in a log."""

import io
from contextlib import redirect_stderr

import pytest

from soupkit.cli import render
from soupkit.events import Advanced, Finished, Scored, Started, Table, Told


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _terminal_of_known_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def work(report: render.Renderer) -> None:
    report(Started("merging", 4e6, "bytes"))
    report(Advanced("merging", 1e6, note="conv1.weight"))
    report(Told("a [bold] note"))
    report(Finished("merging"))
    report(Advanced("merging", 1))  # late news about finished work


def test_a_terminal_sees_a_bar_that_is_taken_down() -> None:
    with redirect_stderr(Terminal()) as stream, render.Renderer() as report:
        work(report)
    text = stream.getvalue()
    assert "a [bold] note\n" in text
    assert "\x1b[?25l" in text  # the cursor was hidden,
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # and is back


def test_the_bar_is_taken_down_by_an_error() -> None:
    def interrupted(stream: Terminal) -> None:
        with redirect_stderr(stream), render.Renderer() as report:
            report(Started("merging", None))
            raise KeyboardInterrupt

    stream = Terminal()
    with pytest.raises(KeyboardInterrupt):
        interrupted(stream)
    text = stream.getvalue()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_control_codes_where_they_are_not_welcome(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with redirect_stderr(Terminal()) as stream, render.Renderer() as report:
        work(report)
    assert stream.getvalue() == "a [bold] note\n"


def test_a_log_gets_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 10.0, 31.0, 31.0, 50.0])
    monkeypatch.setattr(render.time, "monotonic", lambda: next(clock))
    with render.Renderer() as report:
        report(Started("scoring", 8, "models"))
        for number in range(3):
            report(Advanced("scoring", note=f"run-{number}"))
    assert capsys.readouterr().err == "scoring: 2/8 models  run-1\n"


def test_quiet_shows_no_progress() -> None:
    with redirect_stderr(Terminal()) as stream, render.Renderer(quiet=True) as report:
        work(report)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (999, "999 B"), (353_200_000, "353.2 MB"), (2.5e12, "2.5 TB")]
)
def test_sizes(num_bytes: float, text: str) -> None:
    assert render.size(num_bytes) == text


@pytest.mark.parametrize(
    ("cell", "text"),
    [(None, ""), (True, "yes"), (3, "3"), (0.93456, "0.9346"), (1e-5, "1e-05"), (0.0, "0"), ("[x]", "[x]")],
)
def test_cells(cell: str | float | None, text: str) -> None:
    assert render.cell_text(cell) == text


def test_tables_keep_brackets_align_numbers_and_fold_on_terminals() -> None:
    table = Table("", ("name", "top1"), (("[red]soup", 0.5), ("b" * 90, 11.25)))
    lines = render.table_text(table, width=None).splitlines()
    assert any("[red]soup" in line for line in lines)
    assert any("b" * 90 in line for line in lines)
    ends = {len(line) for line in lines if line.endswith(("0.5000", "11.2500"))}
    assert len(ends) == 1
    folded = render.table_text(table, width=60)
    assert "b" * 90 not in folded
    assert folded.count("b") == 90


def test_scores_without_an_error_estimate() -> None:
    assert render.line(Scored("x", "psnr", 31.5, None, None)) == "x: psnr 31.5000"
