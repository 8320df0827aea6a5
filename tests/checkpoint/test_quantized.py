"""Codes are known by what a configuration, a file beside it, or names and dtypes say; ordinary models are
not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from soupkit import api
from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.quantized import quantization_of
from soupkit.errors import CompatibilityError
from soupkit.merge.mixture import uniform

Save = Callable[..., Path]
I32, U8, I8, F = np.zeros((4, 2), np.int32), np.zeros((4, 2), np.uint8), np.zeros((4, 2), np.int8), np.ones(4)
FP8 = np.ones((4, 2), ml_dtypes.float8_e4m3fn)
CODED: dict[str, dict[str, Any]] = {
    "gptq": {"l.qweight": I32, "l.qzeros": I32, "l.scales": F},
    "bnb4": {
        "l.weight": U8,
        "l.weight.absmax": F,
        "l.weight.quant_state.bitsandbytes__nf4": np.zeros(9, np.uint8),
    },
    "bnb8": {"l.weight": I8, "l.SCB": F},
    "packed": {"l.weight_packed": I32, "l.weight_scale": F, "l.weight_shape": np.array([4, 16])},
    "int8": {"l.weight": I8, "l.weight_scale": F},
    "mxfp4": {"experts_blocks": U8, "experts_scales": U8},
    "aqlm": {"l.codes": I8, "l.codebooks": F},
    "hqq": {"l.W_q": U8, "l.scale": F},
    "quanto": {"l.weight._data": I8, "l.weight._scale": F},
    "nvfp4": {"l.weight": U8, "l.weight_scale": FP8, "l.weight_scale_2": F},
    "marlin": {"l.B": I32, "l.s": F},
    "fp8": {"l.weight": FP8, "l.weight_scale_inv": F},
    "fp8-comfy": {"l.weight": FP8, "l.scale_weight": F},
}
PLAIN: dict[str, Any] = {
    "scales": F,
    "attn.logit_scale": F,
    "attn.relative_position_index": np.zeros((4, 4), np.int64),
    "bn.num_batches_tracked": np.array(3),
    "position_ids": np.arange(4)[None],
    "mask": U8,
    "causal": np.ones((2, 2), np.bool_),
    "l.weight": np.ones((2, 2), np.float32),
    "l.weight_scale": F,
    "codes": np.zeros((3, 3), np.int64),
    "half.weight": FP8,
}


@pytest.mark.parametrize("kind", CODED)
def test_names_and_dtypes_tell(kind: str) -> None:
    assert quantization_of(CODED[kind]) is not None
    with pytest.raises(CompatibilityError, match=r"ingredient 1: is quantized by .* codes, not weights"):
        api.combine([PLAIN, CODED[kind]], uniform(["a", "b"]))


def test_ordinary_models_pass() -> None:
    assert quantization_of(PLAIN) is None
    again = {name: value.copy() for name, value in PLAIN.items()}
    assert set(api.combine([PLAIN, again], uniform(["a", "b"]))) == set(PLAIN)


@pytest.mark.parametrize(
    "method", ["gptq", "awq", "bitsandbytes", "fp8", "hqq", "mxfp4", "torchao", "brand-new"]
)
@pytest.mark.parametrize("nested", [False, True])
def test_the_configuration_tells_at_any_depth(method: str, nested: bool, save: Save) -> None:
    path = save("a", {"w": np.ones(3, np.float32)})
    config: dict[str, Any] = {"quantization_config": {"quant_method": method}}
    (path / "config.json").write_text(json.dumps({"text_config": config} if nested else config))
    found = quantization_of(Checkpoint(path))
    assert found is not None
    assert found.method == method


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json", "hf_quant_config.json"])
def test_a_file_beside_it_tells(name: str, save: Save) -> None:
    path = save("a", {"w": np.ones(3, np.float32)})
    (path / name).write_text(json.dumps({"quantization": {"quant_algo": "NVFP4"}}))
    found = quantization_of(Checkpoint(path))
    assert found is not None
    assert found.method == "NVFP4"
