"""A scorer outside soupkit: any program that prints a number for a checkpoint directory."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from soupkit.errors import TaskError
from soupkit.jsons import Json
from soupkit.metrics import UNNAMED, known_direction
from soupkit.task.score import Score

PLACEHOLDER = "{checkpoint}"
_TAIL_LINES = 20


@dataclass(frozen=True)
class CommandScorer:
    """Runs `command` without a shell; `{checkpoint}` in it stands for the directory, once or more.

    The last line of its output that is not empty is the score: a number, or a JSON object that holds
    `metric`. Without a metric, the object holds "score" or a single number, and with direction auto only one
    that is better when higher. It may also hold "standard_error" and "num_examples". timeout: seconds, after
    which the program and what it started are killed. Raises TaskError at once for a command that cannot run.
    """

    command: str
    metric: str | None = None
    direction: Literal["auto", "max", "min"] = "max"
    timeout: float = 3600.0

    def __post_init__(self) -> None:
        if self.timeout <= 0:
            raise TaskError(f"the time limit of the scorer is {self.timeout:g} s, expected more than 0")
        if not any(PLACEHOLDER in word for word in self.words()):
            raise TaskError(
                f"the score command has no {PLACEHOLDER}: {self.command}",
                hint=f"for example --score-command 'python eval.py {PLACEHOLDER}'",
            )

    @property
    def name(self) -> str:
        """What the score is called."""
        return self.metric or UNNAMED

    def words(self) -> list[str]:
        """The command as the program and its arguments. Raises TaskError for an open quote."""
        try:
            return shlex.split(self.command)
        except ValueError as error:
            raise TaskError(
                f"the score command cannot be split into words: {error}: {self.command}"
            ) from error

    def score(self, checkpoint_directory: Path) -> Score:
        """Run it on one checkpoint. Raises TaskError, with the end of its output, when there is no finite
        score."""
        words = [word.replace(PLACEHOLDER, str(checkpoint_directory)) for word in self.words()]
        status, output, errors = _run(words, self.timeout)
        if status != 0:
            how = f"ended with exit code {status}" if status > 0 else f"was killed by signal {-status}"
            raise _failure(words, how, output, errors)
        lines = [line for line in output.splitlines() if line.strip()]
        if not lines:
            raise _failure(words, "printed nothing", output, errors)
        try:
            return self._read(lines[-1].strip())
        except ValueError as error:
            raise _failure(words, str(error), output, errors) from error

    def _read(self, line: str) -> Score:
        """Raises ValueError saying what is wrong with the line."""
        try:
            found = json.loads(line)
        except ValueError:
            raise ValueError(f"ended with {line[:80]!r}, expected a number or a JSON object") from None
        fields = found if isinstance(found, dict) else {self.name: found}
        value = self._value(fields)
        if not math.isfinite(value):
            raise ValueError(f"gave {value}, which ranks nothing")
        num = _number(fields.get("num_examples"))
        return Score(
            self.name, value, _number(fields.get("standard_error")), None if num is None else int(num)
        )

    def _value(self, fields: Json) -> float:
        numbers = {key: number for key, value in fields.items() if (number := _number(value)) is not None}
        if self.name in numbers:
            return numbers[self.name]
        others = [key for key in numbers if key not in ("standard_error", "num_examples")]
        if self.metric is not None or self.name in fields or len(others) != 1:
            raise ValueError(f"gave no number {self.name!r} but {json.dumps(fields)[:200]}")
        if self.direction == "auto" and known_direction(others[0]) != "max":
            raise ValueError(
                f"gave {others[0]!r}, and higher may not be better: name it, --metric {others[0]}"
            )
        return numbers[others[0]]


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _run(words: Sequence[str], timeout: float) -> tuple[int, str, str]:
    """Exit status, output and errors; the whole process group dies at the time limit, and with an
    interrupt."""
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise TaskError(
            f"the score command cannot start: {error}", hint="use a program on PATH, or its path"
        ) from error
    with process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as expired:
            _kill(process)
            output, errors = process.communicate()
            raise _failure(
                words, f"took longer than {timeout:g} s and was ended", output, errors
            ) from expired
        except BaseException:
            _kill(process)
            raise
    return process.returncode, output, errors


def _kill(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _failure(words: Sequence[str], what: str, output: str, errors: str) -> TaskError:
    tails = [
        f"{name}:\n" + "\n".join(f"  {line}" for line in text.splitlines()[-_TAIL_LINES:])
        for name, text in (("its output", output), ("its errors", errors))
        if text.strip()
    ]
    return TaskError("\n".join([f"the scorer {shlex.join(words)} {what}", *tails]))
