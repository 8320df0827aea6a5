"""What the floors below read of a recipe: a function names what it reads, and any dataclass that has it will
do.

Options and their help are in `soupkit.recipe.shared`. What some recipes have and others do not is asked by
isinstance.
"""

from __future__ import annotations

from dataclasses import Field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable


class Recipe(Protocol):
    """A dataclass: its fields are the keys of the recipe."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


@runtime_checkable
class Results(Protocol):
    """Where a result goes, where it is written."""

    @property
    def out(self) -> Path | None: ...


@runtime_checkable
class Refers(Protocol):
    """What it reads."""

    @property
    def refs(self) -> tuple[str, ...]: ...


@runtime_checkable
class Narrows(Protocol):
    """How many of what it reads it takes; None: all."""

    @property
    def top(self) -> int | None: ...


@runtime_checkable
class Informed(Protocol):
    """Files of statistics beside the checkpoints."""

    @property
    def statistics(self) -> tuple[str, ...]: ...


@runtime_checkable
class Based(Protocol):
    """What differences are taken from."""

    @property
    def base(self) -> str | None: ...


@runtime_checkable
class Tests(Protocol):
    """Whether what was written is scored on test."""

    @property
    def test(self) -> bool: ...


@runtime_checkable
class Plans(Protocol):
    """Whether it only says what it would do."""

    @property
    def dry_run(self) -> bool: ...


@runtime_checkable
class OnDevice(Protocol):
    """Where it runs."""

    @property
    def device(self) -> str: ...


@runtime_checkable
class Threaded(Protocol):
    """How many threads it may take; 0: every core."""

    @property
    def threads(self) -> int: ...


@runtime_checkable
class Streams(Protocol):
    """Whether weights of the Hub are read by ranges."""

    @property
    def stream(self) -> bool: ...


class Compares(Protocol):
    """What becomes of configurations that differ."""

    @property
    def mismatch(self) -> Literal["error", "warn"]: ...


class Writes(Recipe, Protocol):
    """Where a result goes."""

    @property
    def out(self) -> Path: ...
    @property
    def overwrite(self) -> bool: ...


class Sums(Protocol):
    """How tensors are combined."""

    @property
    def integers(self) -> Literal["auto", "first", "max", "zero", "error"]: ...
    @property
    def non_finite(self) -> Literal["error", "keep"]: ...
    @property
    def accumulate(self) -> Literal["float64", "float32"]: ...


class Weighs(Writes, Sums, Compares, Protocol):
    """How a soup is combined and written: `OutputOptions` and `WeightOptions`."""

    @property
    def dtype(self) -> str: ...
    @property
    def max_shard_size(self) -> str: ...
    @property
    def sha256(self) -> bool: ...


class NamesData(Protocol):
    """Which examples: `DataOptions`."""

    @property
    def data(self) -> str | None: ...
    @property
    def data_dir(self) -> Path | None: ...
    @property
    def download(self) -> bool: ...
    @property
    def num_train(self) -> int | None: ...
    @property
    def num_held_out(self) -> int | None: ...
    @property
    def num_test(self) -> int | None: ...
    @property
    def split_seed(self) -> int: ...


@runtime_checkable
class ReadsData(NamesData, Protocol):
    """And how they are read."""

    @property
    def strict_data(self) -> bool: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def workers(self) -> int: ...


class Runs(ReadsData, Protocol):
    """A model on examples: `ModelOptions` too."""

    @property
    def model(self) -> str | None: ...
    @property
    def templates(self) -> tuple[str, ...]: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def head(self) -> str | None: ...


class Told(Protocol):
    """What is known of a classifier that a file does not say."""

    @property
    def model(self) -> str | None: ...
    @property
    def head(self) -> str | None: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...


class Begins(Runs, Protocol):
    """What a training begins with."""

    @property
    def text_tower(self) -> Literal["keep", "drop"]: ...


@runtime_checkable
class Refreshes(Protocol):
    """What becomes of batch-norm statistics: `BatchNormOptions`."""

    @property
    def bn(self) -> str: ...
    @property
    def bn_batches(self) -> int: ...


@runtime_checkable
class Measures(Protocol):
    """How many training batches units are measured with."""

    @property
    def num_batches(self) -> int: ...


class Remembers(Protocol):
    """What may come from earlier runs: `RememberOptions`."""

    @property
    def cache(self) -> bool: ...
    @property
    def fresh_scores(self) -> bool: ...


class ScoresPoints(Writes, Plans, Runs, Refreshes, Remembers, Compares, Protocol):
    """How points between checkpoints are scored: `PointsOptions`."""

    @property
    def train(self) -> bool: ...
    @property
    def jobs(self) -> int: ...


class Merges(Weighs, Streams, Refers, Protocol):
    """What is opened, merged and written."""


@runtime_checkable
class Tries(Weighs, Runs, Refreshes, Protocol):
    """A model that takes soups: written as they would be, and run."""


@runtime_checkable
class Names(Protocol):
    """What is called better."""

    @property
    def metric(self) -> str | None: ...
    @property
    def score_command(self) -> str | None: ...


class Judges(Tries, Names, Protocol):
    """Who calls a soup better, and how it is asked: `ScoreOptions`."""

    @property
    def direction(self) -> Literal["auto", "max", "min"]: ...
    @property
    def score_timeout(self) -> float: ...


@runtime_checkable
class Seeded(Protocol):
    """The seed of what it draws."""

    @property
    def seed(self) -> int: ...


@runtime_checkable
class Restarts(Protocol):
    """How many more searches for matching units there are."""

    @property
    def restarts(self) -> int: ...


@runtime_checkable
class Pins(Protocol):
    """Which groups stay as they are."""

    @property
    def pin(self) -> tuple[str, ...]: ...


@runtime_checkable
class Relates(Protocol):
    """How three or more are matched to one another."""

    @property
    def universe(self) -> Literal["merge-many", "frank-wolfe"]: ...


class Matches(Runs, Seeded, Restarts, Compares, Protocol):
    """How units are matched: `MatchOptions`."""

    @property
    def rotate(self) -> bool: ...
    @property
    def by(self) -> Literal["weights", "activations", "both"]: ...


@runtime_checkable
class Aligns(Tries, Protocol):
    """What is done before and after a merge: `AlignOptions`."""

    @property
    def align(self) -> bool: ...
    @property
    def align_by(self) -> Literal["weights", "activations", "both"]: ...
    @property
    def repair(self) -> Literal["off", "forward", "scale", "closed", "bn"]: ...


def num_batches(recipe: object) -> int:
    """How many training batches a recipe with `num_batches`, or else `bn_batches`, measures with."""
    if isinstance(recipe, Measures):
        return recipe.num_batches
    assert isinstance(recipe, Refreshes)
    return recipe.bn_batches
