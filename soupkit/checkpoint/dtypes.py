"""safetensors dtype names ↔ numpy dtypes, and correct rounding into the narrow ones."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from soupkit.errors import CheckpointError

Array = NDArray[Any]

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
FLOATING = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
LONG_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_SAFETENSORS = {dtype: name for name, dtype in NUMPY_DTYPES.items()}


def safetensors_name(dtype: np.dtype[Any]) -> str:
    """The safetensors name of a numpy dtype. Raises CheckpointError when the format has none."""
    try:
        return _SAFETENSORS[dtype]
    except KeyError:
        raise CheckpointError(
            f"dtype {dtype} has no place in a safetensors file that soupkit writes",
            hint=f"convert to one of {', '.join(NUMPY_DTYPES)}",
        ) from None


def widest(names: set[str]) -> str:
    """The narrowest floating dtype that holds every value of the given ones: F16 with BF16 gives F32."""
    if len(names) == 1:
        return next(iter(names))
    kinds = [NUMPY_DTYPES[name] for name in sorted(names)]
    if "F64" in names:
        return "F64"
    sixteen = {"F16": {"F16", "F8_E4M3", "F8_E5M2"}, "BF16": {"BF16", "F8_E4M3", "F8_E5M2"}}
    for name, holds in sixteen.items():
        if names <= holds:
            return name
    assert all(kind.itemsize <= 4 for kind in kinds)
    return "F32"


class Rounding:
    """Rounds floating values into a dtype: to nearest, ties to even, NaN kept, in one rounding.

    float64 → bfloat16 or fp8 by way of a plain float32 would round twice, so the float32 is rounded to odd
    (Boldo & Melquiond 2008, doi:10.1109/TC.2007.70819): exact for any target of at most 22 significant bits.
    Memory: 14 bytes for each of `size` elements, reused; one instance per thread. Overflow gives infinity
    (callers silence numpy's warning with np.errstate).
    """

    def __init__(self, size: int) -> None:
        self._single = np.empty(size, np.float32)
        self._double = np.empty(size, np.float64)
        self._mask = np.empty(size, np.bool_)

    def into(self, values: Array, out: Array) -> None:
        """Round `values` into `out`. A float64 `values` may be overwritten."""
        if values.dtype == np.float64 and out.dtype.itemsize <= 2 and out.dtype != np.float16:
            values = self._to_odd(values)
        np.copyto(out, values, casting="unsafe")

    def _to_odd(self, values: Array) -> Array:
        """float64 → float32: exact values stay, others go to the neighbour with an odd last bit."""
        size = values.size
        nearest, back, mask = self._single[:size], self._double[:size], self._mask[:size]
        bits = nearest.view(np.uint32)
        np.copyto(nearest, values, casting="unsafe")
        np.copyto(back, nearest)
        np.not_equal(back, values, out=mask)
        np.abs(back, out=back)
        np.abs(values, out=values)
        np.subtract(bits, back > values, out=bits)
        np.bitwise_or(bits, mask, out=bits)
        return nearest
