"""Everything that soupkit raises on purpose.

    SoupkitError                 what went wrong, where, what was expected; `hint` says what to do next
    ├── RecipeError              an option or a recipe file is wrong (exit code 2 on the command line)
    │   └── UnfoundedError       an `expect:` of a recipe speaks of what is not there (exit code 1)
    ├── ReferenceError           a reference names nothing that can be read
    ├── CheckpointError          a checkpoint is damaged or not what it claims to be
    ├── CompatibilityError       checkpoints that cannot be merged with each other
    ├── OutputError              an output cannot be written (exists, no space, no permission)
    ├── TaskError                a model, a data set or a scorer cannot be used
    │   ├── DivergedError        training left the finite numbers
    │   └── WorkerDiedError      a process that worked for this one is gone
    ├── AlignError               a network cannot be followed, or a permutation would change what it computes
    └── ExpectationError         an `expect:` of a recipe was not met (exit code 3)

Anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

import reprlib


class SoupkitError(Exception):
    """An error that the user can act on: a message and, where one exists, the next step."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n\nhint: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(kind: type[SoupkitError], message: str, hint: str | None) -> SoupkitError:
    """Unpickle in the parent what a worker process raised."""
    return kind(message, hint=hint)


class RecipeError(SoupkitError):
    """An option or a recipe file is wrong."""

    exit_code = 2


class UnfoundedError(RecipeError):
    """An `expect:` condition speaks of a number that no result holds: it can be neither met nor unmet."""

    exit_code = 1


class ReferenceError(SoupkitError):
    """A reference names nothing that can be read."""


class CheckpointError(SoupkitError):
    """A checkpoint is damaged or not what it claims to be."""


class CompatibilityError(SoupkitError):
    """Checkpoints that cannot be merged with each other."""


class OutputError(SoupkitError):
    """An output cannot be written."""


class TaskError(SoupkitError):
    """A model, a data set or a scorer cannot be used."""


class DivergedError(TaskError):
    """Training left the finite numbers: a loss or a weight became infinite or NaN."""


class WorkerDiedError(TaskError):
    """A process that worked for this one is gone; the same work may succeed elsewhere."""


class AlignError(SoupkitError):
    """A network whose permutation groups cannot be derived, or a permutation that would change what it
    computes."""


class ExpectationError(SoupkitError):
    """An `expect:` condition of a recipe was not met."""

    exit_code = 3


class _Brief(reprlib.Repr):
    """Limits for a message; an integer of thousands of digits, which Python refuses to print, is told by its
    size."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 160
        self.maxlist = self.maxtuple = 8
        self.maxdict, self.maxlevel = 6, 3

    def repr_int(self, value: int, _level: int) -> str:
        return repr(value) if value.bit_length() < 200 else f"an integer of {value.bit_length()} bits"


def brief(value: object) -> str:
    """The repr of what a file or a user gave, short enough for a message whatever it is."""
    return _Brief().repr(value)
