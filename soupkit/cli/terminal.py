"""The one way to stdout and stderr: nothing that a file or a name holds may steer the terminal, and a stream
that is closed, full or gone ends the printing, not the work."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from pathlib import Path
from types import TracebackType
from typing import TextIO

from soupkit.visible import visible

LONGEST = 4000
"""Characters of a message; what is longer is a file's doing."""
_lost: list[OSError] = []


def paragraph(text: str) -> str:
    """A message of bounded length whose further lines are indented, so that none of them passes for one of
    ours."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} … ({len(text)} characters) … {text[-LONGEST // 4 :]}"
    return visible(text).replace("\n", "\n  ")


def write(stream: TextIO | None, text: str, *, styled: bool = False) -> None:
    """Print to stdout or stderr; styled: `text` holds control codes of our own, and its names are visible
    already.

    A reader that is gone (`| head`) ends the printing, not the work; what else fails on stdout `lost_output`
    tells.
    """
    if stream is None:
        return
    try:
        print(text if styled else visible(text), file=stream, flush=True)
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        if stream is sys.stdout and not isinstance(error, BrokenPipeError):
            _lost.append(error)


def lost_output() -> OSError | None:
    """Why stdout did not take what was written, once; None when it took everything."""
    error = _lost[0] if _lost else None
    _lost.clear()
    return error


def open_streams() -> None:
    """Have all three streams open, so that no file of ours gets the number of one (`>&-`, cron, daemons); a
    character that a stream cannot encode is written out; tracebacks and warnings hold no control codes
    either."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  (as long as we live)
    sys.stderr = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a file name that is no UTF-8 must not end a job
    sys.excepthook = _show_error
    shown = warnings.formatwarning
    warnings.formatwarning = lambda *about, **more: visible(shown(*about, **more))


def _show_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    write(sys.stderr, "".join(traceback.format_exception(kind, error, trace)).rstrip())
