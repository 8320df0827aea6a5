"""The engine of the methods: integers, values that are no numbers, narrow dtypes, errors, memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.compatible import check_compatible
from soupkit.checkpoint.dtypes import NUMPY_DTYPES
from soupkit.checkpoint.hashing import BLOCK, content_hash
from soupkit.errors import CheckpointError, CompatibilityError, RecipeError
from soupkit.merge.methods import MergeMethod, all_methods
from soupkit.merge.per_tensor import Inputs, merge_tensors
from soupkit.merge.pieces import STRATUM, Arrays, Pieces
from soupkit.merge.writer import Streamed, StreamOptions

METHODS = all_methods()
Save = Callable[..., Path]
Tensors = dict[str, np.ndarray]
ADD = METHODS["task-arithmetic"]


class Memory:
    def __init__(self, slots: Any) -> None:
        self.tensors = {name: np.empty(slot.shape, NUMPY_DTYPES[slot.dtype]) for name, slot in slots.items()}

    def write(self, name: str, start: int, values: np.ndarray) -> None:
        self.tensors[name].reshape(-1)[start : start + values.size] = values


def add(
    models: list[Any], base: Any, *, dtype: str | None = None, method: MergeMethod = ADD, **options: Any
) -> tuple[Tensors, Streamed]:
    slots = dict(check_compatible([*models, base]).slots)
    if dtype:
        slots = {name: slot._replace(dtype=dtype) for name, slot in slots.items()}
    memory = Memory(slots)
    streamed = merge_tensors(
        Inputs(models, base),
        method,
        lambda _: {"weight": np.ones(len(models)), "lambda": 1.0},
        memory,
        slots=slots,
        options=StreamOptions(**options),
    )
    return memory.tensors, streamed


def test_task_vectors_are_exact_to_the_last_bit() -> None:
    """base + (w − base) in float64 is w itself, for every float32."""
    rng = np.random.default_rng(0)
    base = {"w": (rng.normal(size=100_000) * 10.0 ** rng.integers(-3, 3, size=100_000)).astype(np.float32)}
    model = {"w": (base["w"] * rng.normal(1, 0.1, size=100_000)).astype(np.float32)}
    np.testing.assert_array_equal(add([model], base)[0]["w"], model["w"])


def test_hashes_of_tensors_that_straddle_blocks(save: Save) -> None:
    rng = np.random.default_rng(0)
    shapes = {"w": (BLOCK + 5,), "rows": (700, 777), "none": (0,), "one": ()}
    tensors = [
        {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(3)
    ]
    stored = [Checkpoint(save(str(k), each)) for k, each in enumerate(tensors)]
    for method in (ADD, METHODS["model-stock"]):
        keep = {"weight": np.ones(2)} if method is ADD else {}
        slots = check_compatible(stored).slots
        memory = Memory(slots)
        streamed = merge_tensors(
            Inputs(stored[:2], stored[2]), method, lambda _, keep=keep: dict(keep), memory, slots=slots
        )
        assert streamed.inputs == [content_hash(each) for each in stored]
        assert streamed.output == content_hash(memory.tensors)


@pytest.mark.parametrize(("name", "given"), [("slerp", {"t": 0.3}), ("model-stock", {})])
def test_rows_are_whole_however_long_the_tensor(name: str, given: dict[str, Any]) -> None:
    """500 does not divide a piece, and 90 rows are longer than one."""
    rng = np.random.default_rng(0)
    models = [{"w": rng.normal(size=(90, 500))} for _ in range(2)]
    base = {"w": np.zeros((90, 500))} if name == "model-stock" else None
    slots = check_compatible(models).slots
    memory = Memory(slots)
    merge_tensors(Inputs(models, base), METHODS[name], lambda _: {**given, "rows": True}, memory, slots=slots)
    arrays = Arrays([model["w"] for model in models])
    np.testing.assert_array_equal(
        memory.tensors["w"], arrays.merged(METHODS[name].function(arrays, **given, rows=True))
    )


@pytest.mark.parametrize(("policy", "expected"), [("first", [1, 9]), ("max", [5, 9]), ("zero", [0, 0])])
def test_integers_follow_the_policy_and_the_base_has_no_say(policy: Any, expected: list[int]) -> None:
    base = {"n": np.array([100, 100]), "same": np.array([True])}
    models = [{"n": np.array(values), "same": np.array([True])} for values in ([1, 9], [5, 7])]
    tensors, streamed = add(models, base, integers=policy)
    np.testing.assert_array_equal(tensors["n"], expected)
    np.testing.assert_array_equal(tensors["same"], [True])
    assert streamed.differing_integers == ["n"]


def test_integers_that_differ_can_be_an_error() -> None:
    models = [{"n": np.array([k])} for k in (1, 2)]
    with pytest.raises(CompatibilityError, match="ingredient 1: integer tensor 'n' differs"):
        add(models, {"n": np.array([1])}, integers="error")


def test_masks_of_infinity_stay() -> None:
    mask = np.array([[0, -np.inf], [1, 2]], np.float32)
    tensors, _ = add([{"m": mask + 1}, {"m": mask}], {"m": mask})
    np.testing.assert_array_equal(tensors["m"], mask + 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_values_that_are_no_numbers_are_errors_that_name_the_culprit(bad: float, where: int) -> None:
    tensors = [{"w": np.ones(STRATUM + 9, np.float32), "v": np.ones(3, np.float32)} for _ in range(3)]
    tensors[where]["w"][STRATUM + 3] = bad
    with pytest.raises(CheckpointError, match=f"ingredient {where}: tensor 'w' holds NaN or infinity"):
        add(tensors[:2], tensors[2])
    if where < 2:
        kept, _ = add(tensors[:2], tensors[2], non_finite="keep")
        assert not np.isfinite(kept["w"][STRATUM + 3])
        assert np.isfinite(kept["w"]).sum() == STRATUM + 8


def test_nan_is_an_error_even_where_a_random_mask_would_drop_it() -> None:
    base, model = {"w": np.zeros(1000, np.float32)}, {"w": np.ones(1000, np.float32)}
    model["w"][5] = np.nan
    method = METHODS["dare-linear"]
    slots = check_compatible([base]).slots
    for seed in range(5):
        with pytest.raises(CheckpointError, match="'w' holds NaN"):
            merge_tensors(
                Inputs([model], base),
                method,
                lambda _: {"weight": np.ones(1), "density": np.array([0.01])},
                Memory(slots),
                slots=slots,
                seed=seed,
            )


def test_overflow_of_the_written_dtype_is_an_error() -> None:
    base, model = {"w": np.zeros(3, np.float32)}, {"w": np.full(3, 1e5, np.float32)}
    with pytest.raises(CheckpointError, match="'w' overflows F16"):
        add([model], base, dtype="F16")
    assert np.isinf(add([model], base, dtype="F16", non_finite="keep")[0]["w"]).all()


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_fp8_in_and_out(dtype: Any) -> None:
    base, model = (
        {"w": np.array([1.0, -2.0, 0.5]).astype(dtype)},
        {"w": np.array([1.5, -2.0, 0.25]).astype(dtype)},
    )
    tensors, _ = add([model], base)
    np.testing.assert_array_equal(tensors["w"].astype(float), model["w"].astype(float))
    wide, _ = add([model, dict(model)], base, dtype="F32")
    np.testing.assert_array_equal(wide["w"], np.array([2.0, -2.0, 0.0], np.float32))


def test_mixed_dtypes_are_read_as_they_are() -> None:
    base, model = (
        {"w": np.array([1.0, 2.0], np.float16)},
        {"w": np.array([1.5, 3.0]).astype(ml_dtypes.bfloat16)},
    )
    tensors, _ = add([model], base)
    assert tensors["w"].dtype == np.float32
    np.testing.assert_array_equal(tensors["w"], [1.5, 3.0])


def test_an_error_of_a_method_names_the_tensor() -> None:
    def refuse(pieces: Pieces) -> Iterator[np.ndarray]:
        raise RecipeError("no", hint="never")
        yield from pieces

    method = MergeMethod("refuse", refuse)
    slots = check_compatible([{"w": np.ones(2, np.float32)}]).slots
    with pytest.raises(RecipeError, match="tensor 'w': no") as caught:
        merge_tensors(
            Inputs([{"w": np.ones(2, np.float32)}]), method, lambda _: {}, Memory(slots), slots=slots
        )
    assert caught.value.hint == "never"


def test_many_tiny_tensors_are_batched(save: Save) -> None:
    count = 3000
    tensors = [{f"t.{i}": np.full(4, i + k, np.float32) for i in range(count)} for k in range(3)]
    stored = [Checkpoint(save(str(k), each)) for k, each in enumerate(tensors)]
    merged, _ = add(stored[:2], stored[2])
    np.testing.assert_array_equal(merged["t.7"], np.full(4, 6.0, np.float32))


MEMORY = """
import json, os, resource, sys
import numpy as np
from pathlib import Path
from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.compatible import check_compatible
from soupkit.merge.methods import all_methods
from soupkit.merge.per_tensor import Inputs, merge_tensors
from soupkit.merge.writer import StreamOptions
folder, *names = sys.argv[1:]
METHODS = all_methods()
class Nowhere:
    def write(self, name, start, values): pass
def run(name, stem):
    method = METHODS[name]
    values = {"weight": np.ones(2), "density": np.full(2, 0.2), "gamma": np.full(2, 0.01), "epsilon":
    np.full(2, 0.1)}
    values |= {"t": 0.3, "task": 0, "scale": 1.0}
    values |= {"gain": 0.1, "clip": 0.2}
    given = {key: value if each.per_ingredient or np.ndim(value) == 0 else value[0]
             for key, each in method.parameters.items() if (value := values.get(key)) is not None}
    found = [Checkpoint(Path(folder) / f"{stem}-{k}") for k in range(3)]
    models = found[: (method.inputs[1] or 2)]
    inputs = Inputs(models, found[2] if method.base == "required" else None)
    slots = check_compatible(found).slots
    merge_tensors(inputs, method, lambda _: dict(given), Nowhere(), slots=slots,
    options=StreamOptions(threads=1))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
for name in names:
    if (child := os.fork()) == 0:
        small = run(name, "small")
        print(json.dumps([name, run(name, "large") - small]), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


BOUNDED = [name for name, method in METHODS.items() if method.pieces != "tensor"]


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """MB by which each method grows from tensors of 1 MB to ones of 32 MB: in forks of a process that ran
    nothing."""
    from soupkit.checkpoint.tensors import write_tensors

    folder = tmp_path_factory.mktemp("large")
    for stem, rows in (("small", 256), ("large", 8192)):
        for k in range(3):
            (folder / f"{stem}-{k}").mkdir()
            values = np.random.default_rng(k).standard_normal((rows, 1024), np.float32)
            write_tensors(folder / f"{stem}-{k}", {"w": values})
    command = [sys.executable, "-c", MEMORY, str(folder), *BOUNDED]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("name", BOUNDED)
def test_memory_does_not_grow_with_the_tensor(name: str, grown: dict[str, float]) -> None:
    """The table's promise: a piece, or at most 16 MB more to find a cut; never the tensor (3 × 64 MB in
    float64)."""
    assert grown[name] < (18 if "8 MB" in METHODS[name].memory else 6)
