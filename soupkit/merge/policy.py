"""What every way of merging does about integers that differ and about values that are no numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from soupkit.checkpoint.checkpoint import name_of
from soupkit.checkpoint.dtypes import Array
from soupkit.errors import CheckpointError, CompatibilityError

Integers = Literal["first", "max", "zero", "error"]


def settle_integers(
    result: Array, values: Array, policy: Integers, *, tensor: str, ingredient: Mapping[str, Array], position: int
) -> None:
    """Apply the policy to integers of an ingredient that differ from those seen before. Raises CompatibilityError."""
    if policy == "error":
        raise CompatibilityError(
            f"{name_of(ingredient, position)}: integer tensor {tensor!r} differs between ingredients",
            hint="choose what becomes of it: --integers first, max or zero",
        )
    if policy == "max":
        np.maximum(result, values, out=result)
    elif policy == "zero":
        result[...] = 0


def non_finite(ingredient: Mapping[str, Array], position: int, tensor: str) -> CheckpointError:
    """The error for an ingredient that holds NaN or infinity."""
    return CheckpointError(
        f"{name_of(ingredient, position)}: tensor {tensor!r} holds NaN or infinity",
        hint="leave this checkpoint out; it probably diverged (--non-finite keep merges it all the same)",
    )


def overflow(tensor: str, dtype: str) -> CheckpointError:
    """The error for a result that its dtype cannot hold."""
    return CheckpointError(
        f"tensor {tensor!r} overflows {dtype}: its combination is larger than the dtype can hold",
        hint="write a wider dtype, for example --dtype float32",
    )
