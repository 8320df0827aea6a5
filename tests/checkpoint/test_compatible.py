"""Which checkpoints may meet, and what is said when they may not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.compatible import check_compatible
from soupkit.errors import CheckpointError, CompatibilityError

Save = Callable[..., Path]
BASE = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32), "n": np.array(1), "v": np.zeros(2)}

FAULTS = {
    "missing": ({key: value for key, value in BASE.items() if key != "b"}, "lacks 1 tensors .* 'b'"),
    "extra": (BASE | {"x": np.zeros(1)}, "has 1 that .* lacks .* 'x'"),
    "shape": (BASE | {"w": np.zeros((3, 2), np.float32)}, r"'w' has shape \[3, 2\], .* has \[2, 3\]"),
    "broadcastable": (BASE | {"w": np.zeros((1, 3), np.float32)}, "'w' has shape"),
    "dtype": (BASE | {"n": np.array(1.0)}, "'n' is F64, .* has I64"),
    "integers": (BASE | {"n": np.array(1, np.int32)}, "'n' is I32"),
    "architecture": ({"other": np.zeros(3)}, "0 of 4 agree"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_misfit_is_named(case: str, save: Save) -> None:
    tensors, message = FAULTS[case]
    good, bad = Checkpoint(save("good", BASE)), Checkpoint(save("bad", tensors))
    with pytest.raises(CompatibilityError, match=message) as error:
        check_compatible([good, bad])
    assert bad.reference in error.value.message
    assert error.value.hint


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "model.base."])
@pytest.mark.parametrize("turned", [False, True])
def test_names_behind_a_prefix_are_known(prefix: str, turned: bool) -> None:
    pair = [BASE, {f"{prefix}{name}": values for name, values in BASE.items()}]
    with pytest.raises(CompatibilityError, match="0 of 4 agree") as error:
        check_compatible(pair[::-1] if turned else pair)
    name = f"ingredient {0 if turned else 1}"
    assert f"the names of {name} are the same behind {prefix!r}" in (error.value.hint or "")


def test_what_no_file_can_hold_is_named() -> None:
    for odd in (np.ones(2, np.complex64), np.array(["a"]), np.ones(2, np.longdouble)):
        with pytest.raises(CheckpointError, match=f"tensor 'x': dtype {odd.dtype} has no place") as error:
            check_compatible([{"x": odd}, {"x": odd}])
        assert "convert to one of" in (error.value.hint or "")


def test_the_same_checkpoint_twice_is_refused(save: Save, tmp_path: Path) -> None:
    first = save("a", BASE)
    (tmp_path / "alias").symlink_to(first)
    for second in (first, tmp_path / "alias", first / "model.safetensors"):
        with pytest.raises(CompatibilityError, match="the same checkpoint as"):
            check_compatible([Checkpoint(first), Checkpoint(second)])


def test_two_architectures_of_the_same_shapes_are_refused(save: Save) -> None:
    paths = [save("a", BASE), save("b", BASE)]
    for path, name in zip(
        paths, ("vit_base_patch32_clip_224.openai", "vit_base_patch32_clip_quickgelu_224.openai")
    ):
        (path / "config.json").write_text(f'{{"architecture": "{name}"}}')
    with pytest.raises(CompatibilityError, match="quickgelu"):
        check_compatible([Checkpoint(path) for path in paths])


@pytest.mark.parametrize(
    ("other", "expected"),
    [(np.float32, "F32"), (ml_dtypes.bfloat16, "F32"), (np.float64, "F64"), (np.float16, "F32")],
)
def test_mixed_floating_dtypes_meet_in_one_that_holds_both(other: type, expected: str) -> None:
    agreement = check_compatible([BASE, BASE | {"w": BASE["w"].astype(other)}])
    assert agreement.slots["w"].dtype == expected


def test_float16_with_bfloat16_needs_float32() -> None:
    halves = [{"w": np.zeros(2, kind)} for kind in (np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn)]
    assert check_compatible(halves).slots["w"].dtype == "F32"
    assert check_compatible(halves[1:]).slots["w"].dtype == "BF16"


def test_ties_count_when_all_have_them(save: Save) -> None:
    tied = [save(name, {"embed": np.ones(3, np.float32)}, metadata={"head": "embed"}) for name in ("a", "b")]
    both = save("c", {"embed": np.ones(3, np.float32), "head": np.ones(3, np.float32)})
    agreement = check_compatible([Checkpoint(path) for path in tied])
    assert agreement.ties == {"head": "embed"}
    assert set(agreement.slots) == {"embed"}
    mixed = check_compatible([Checkpoint(tied[0]), Checkpoint(both)])
    assert mixed.ties == {}
    assert set(mixed.slots) == {"embed", "head"}
