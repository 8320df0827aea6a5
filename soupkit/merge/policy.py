"""What every way of merging does about integers that differ and about values that are no numbers."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np

from soupkit.checkpoint.dtypes import Array, safetensors_name
from soupkit.errors import CheckpointError

Integers = Literal["auto", "first", "max", "zero", "error"]


class Sink(Protocol):
    """Where combined tensors go."""

    def write(self, name: str, start: int, values: Array) -> None:
        """Take the elements of tensor `name` from number `start` on. Called from several threads."""


def overflow(tensor: str, dtype: str) -> CheckpointError:
    """The error for a result that its dtype cannot hold."""
    return CheckpointError(
        f"tensor {tensor!r} overflows {dtype}: its combination is larger than the dtype can hold",
        hint="write a wider dtype, for example --dtype float32",
    )


def check_made(tensor: str, made: Array, written: Array, *, by: str, copied: Array | None = None) -> None:
    """Refuse a written value that is no number unless it was `copied` (places of masks that all ingredients
    share).

    made: the values before rounding, of finite inputs. Raises CheckpointError naming what made them.
    """
    bad = ~np.isfinite(written)
    if copied is not None:
        bad[copied] = False
    if not bad.any():
        return
    if made is not written and np.isfinite(made[bad]).all():
        raise overflow(tensor, safetensors_name(written.dtype))
    raise CheckpointError(
        f"tensor {tensor!r}: {by} gave NaN or infinity, though all that it read is finite",
        hint="change the options that made it, or write a wider dtype; --non-finite keep writes it all "
        "the same",
    )
