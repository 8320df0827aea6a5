"""Arrays go into models and out of them unchanged, or are refused before anything is changed."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from soupkit.errors import TaskError
from soupkit.task.weights import arrays, load_weights, to_numpy, to_torch


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(5, 3)
        self.norm = torch.nn.BatchNorm1d(3)
        self.out = torch.nn.Linear(3, 5, bias=False)
        self.out.weight = self.embed.weight


def values(model: torch.nn.Module) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        name: np.array(7) if tensor.ndim == 0 else random.normal(size=tuple(tensor.shape)).astype(np.float32)
        for name, tensor in model.state_dict().items()
    }


def test_there_and_back() -> None:
    model = Tied()
    given = values(model)
    given["out.weight"] = given["embed.weight"]
    load_weights(model, given)
    found = arrays(model)
    assert list(found) == [name for name in given if name != "out.weight"]
    for name, array in found.items():
        assert array.dtype == (np.int64 if name.endswith("tracked") else np.float32)
        np.testing.assert_array_equal(array, given[name])


def test_one_name_of_a_tied_pair_is_enough() -> None:
    model = Tied()
    given = values(model)
    del given["embed.weight"]
    load_weights(model, given)
    np.testing.assert_array_equal(model.embed.weight.detach().numpy(), given["out.weight"])


def test_arrays_share_memory() -> None:
    model = Tied()
    arrays(model)["norm.weight"][:] = 3.5
    assert (model.norm.weight == 3.5).all()


@pytest.mark.parametrize(
    "dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, np.float16]
)
def test_small_floats_are_cast_up(dtype: type) -> None:
    model = torch.nn.Linear(4, 2)
    given = {"weight": np.linspace(-2, 2, 8).reshape(2, 4).astype(dtype), "bias": np.ones(2, dtype)}
    load_weights(model, given)
    np.testing.assert_array_equal(model.weight.detach().numpy(), given["weight"].astype(np.float32))
    assert to_numpy(to_torch(given["weight"])).dtype == given["weight"].dtype
    np.testing.assert_array_equal(
        to_numpy(to_torch(given["weight"])).view(np.uint8), given["weight"].view(np.uint8)
    )


@pytest.mark.parametrize("strided", [True, False])
def test_read_only_and_strided_arrays(strided: bool) -> None:
    model = torch.nn.Linear(4, 2, bias=False)
    weight = np.arange(8, dtype=np.float32).reshape(4, 2).T
    weight = weight if strided else np.ascontiguousarray(weight)
    weight.setflags(write=False)
    load_weights(model, {"weight": weight})
    np.testing.assert_array_equal(model.weight.detach().numpy(), weight)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda given: given.pop("norm.bias"), "lacks norm.bias"),
        (lambda given: given.update(extra=np.zeros(1)), "unexpected extra"),
        (
            lambda given: given.update({"norm.bias": np.zeros(4, np.float32)}),
            r"norm.bias has shape \[4\].*\[3\]",
        ),
        (
            lambda given: given.update({"norm.num_batches_tracked": np.array(1.5)}),
            "num_batches_tracked is torch.float64",
        ),
    ],
)
def test_what_does_not_fit_is_named(change: object, words: str) -> None:
    model = Tied()
    given = values(model)
    change(given)  # type: ignore[operator]
    with pytest.raises(TaskError, match=words):
        load_weights(model, given)


def test_a_refused_checkpoint_changes_nothing() -> None:
    model = Tied()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    given = values(model)
    given["norm.running_var"] = np.ones(4, np.float32)
    with pytest.raises(TaskError):
        load_weights(model, given)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_number_that_arithmetic_made_of_a_scalar_tensor_is_one_again() -> None:
    """(1 − t) a + t b of two 0-d arrays, such as CLIP's logit scales, is no array any more."""
    made = np.float32(0.5) * np.array(3, np.float32)
    assert not isinstance(made, np.ndarray)
    assert to_torch(made).tolist() == 1.5
