"""Checkpoints whose weights are fp8 numbers with scales: seen as what they mean, since fp8 codes must not be
averaged.

Two layouts: `NAME_scale_inv`, one factor per block (DeepSeek and transformers' fine-grained fp8), and
`NAME_scale`, one per tensor or per row (compressed-tensors, FBGEMM). The weight is code × factor in both.
"""

from __future__ import annotations

import numpy as np

from soupkit.checkpoint.dtypes import NUMPY_DTYPES, Array
from soupkit.checkpoint.header import Slot
from soupkit.checkpoint.quantized import CONFIG_KEYS, FP8, SIDE_FILES, scales_of
from soupkit.checkpoint.source import Source, read_chunk
from soupkit.checkpoint.views.view import View, record_of
from soupkit.errors import CheckpointError
from soupkit.jsons import Json, JsonView

DROPPED = (".input_scale", ".output_scale", ".k_scale", ".v_scale")
"""Scales of activations: they belong to the quantized model alone."""
QUANTIZATION = "quantization_config"


class Dequantized(View):
    """A checkpoint with its fp8 weights multiplied by their scales, lazily: read as float32, to be stored as
    bfloat16.

    Memory: the scales of one tensor, repeated to its width. Raises CheckpointError for scales that do not
    fit, and for fp8 tensors without any beside others that have them.
    """

    def __init__(self, source: Source) -> None:
        self._scales = scales_of(source.slots)
        hidden = {*self._scales.values(), *(name for name in source.slots if name.endswith(DROPPED))}
        kept = {name: slot for name, slot in source.slots.items() if name not in hidden}
        slots, stored = (
            {
                name: slot._replace(dtype=dtype) if name in self._scales else slot
                for name, slot in kept.items()
            }
            for dtype in ("F32", "BF16")
        )
        plain = _without_quantization(source.config)
        super().__init__(source, slots=slots, stored=stored, config=plain, leaving=SIDE_FILES)
        self._codes = source.slots
        self._block = _block_of(source.config)
        left = next((name for name, slot in self.slots.items() if slot.dtype in FP8), None)
        if left is not None:
            raise CheckpointError(
                f"{self.reference}: tensor {left!r} holds fp8 codes, and no scales are known to belong to it",
                hint="dequantize it first, or use the checkpoint that it was made from",
            )

    def record(self) -> Json:
        """That its codes were multiplied by their scales."""
        return {**record_of(self.source), "dequantized": True}

    def read_into(self, name: str, start: int, out: Array) -> None:
        """Fill `out` with the elements of `name` from number `start` on."""
        if name not in self._scales:
            read_chunk(self.source, name, start, out)
            return
        slot = self._codes[name]
        codes = np.empty(out.size, NUMPY_DTYPES[slot.dtype])
        read_chunk(self.source, name, start, codes)
        np.multiply(codes.astype(np.float32), self._factors(name, slot, start, out.size), out=out)

    def _factors(self, name: str, slot: Slot, start: int, size: int) -> Array:
        """The scale of every element from number `start` on."""
        scales = self.source[self._scales[name]].astype(np.float32)
        if scales.size == 1:
            return scales.reshape(1)
        rows = slot.shape[0] if slot.shape else 1
        columns = slot.num_elements // max(1, rows)
        first, last = start // columns, -(-(start + size) // columns)
        if scales.size == rows and not self._scales[name].endswith("_inv"):
            factors: Array = np.repeat(scales.reshape(-1)[first:last], columns)
        else:
            factors = self._blocks(name, scales, slot, columns)[
                np.arange(first, last) // self._block[0]
            ].reshape(-1)
        return factors[start - first * columns :][:size]

    def _blocks(self, name: str, scales: Array, slot: Slot, columns: int) -> Array:
        """The scales of blocks, repeated to the width of the tensor: (rows of blocks, columns)."""
        height, width = self._block
        expected = (-(-slot.shape[0] // height), -(-columns // width))
        if scales.shape != expected:
            raise CheckpointError(
                f"{self.reference}: {self._scales[name]!r} has shape {list(scales.shape)}, expected "
                f"{list(expected)} for blocks of {height} × {width}",
                hint=f"its config.json should say the block size: {QUANTIZATION}.weight_block_size",
            )
        repeated: Array = np.repeat(scales, width, axis=1)[:, :columns]
        return repeated


def _without_quantization(config: JsonView) -> Json:
    """The configuration of plain weights: towers of a larger model may each have said how they were
    quantized."""
    kept = {key: value for key, value in config.items() if key not in CONFIG_KEYS}
    return {
        key: _without_quantization(value) if isinstance(value, dict) else value for key, value in kept.items()
    }


def _block_of(config: JsonView) -> tuple[int, int]:
    size = (config.get(QUANTIZATION) or {}).get("weight_block_size") or (128, 128)
    return int(size[0]), int(size[1])
