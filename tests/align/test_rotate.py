"""Rotation of the residual stream: the function stays, a hidden rotation is found, what it cannot do it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from task.small import saved
from torch import Tensor

from soupkit.align.rotate import Stream, best_rotation, fold, rotated, stream_of
from soupkit.align.verify import randomise
from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.errors import AlignError
from soupkit.events import silent
from soupkit.jobs.align import align
from soupkit.recipe.align import Align
from soupkit.task.models import build, load_weights, parse_model
from soupkit.world import World

VIT = "timm:test_vit,num_classes=5,img_size=32"
MODELS = {
    "class token": VIT,
    "layer scale, registers, average": f"{VIT},init_values=0.1,reg_tokens=2,global_pool=avg",
}


@pytest.fixture(params=MODELS, scope="module")
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    """A transformer with every tensor away from its special values, in float64."""
    torch.manual_seed(0)
    built = build(parse_model(MODELS[request.param]))
    randomise(built, 1)
    return built.double()


def outputs(model: torch.nn.Module, tensors: dict[str, Tensor]) -> Tensor:
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.func.functional_call(model, tensors, (images,))


def random_rotation(size: int, seed: int) -> Tensor:
    """Orthogonal, and it keeps the vector of ones."""
    generator = torch.Generator().manual_seed(seed)
    ones = torch.ones(size, 1, dtype=torch.float64) / size**0.5
    noise = torch.randn(size, size - 1, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(torch.cat([ones, noise], 1))[0][:, 1:]
    inner = torch.linalg.qr(torch.randn(size - 1, size - 1, generator=generator, dtype=torch.float64))[0]
    return ones @ ones.T + basis @ inner @ basis.T


def of(model: torch.nn.Module) -> tuple[dict[str, Tensor], Stream]:
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return tensors, stream_of(tensors)


def test_folding_and_rotating_keep_the_function(model: torch.nn.Module) -> None:
    tensors, stream = of(model)
    before = outputs(model, tensors)
    folded = fold(tensors, stream)
    assert torch.allclose(outputs(model, folded), before, rtol=1e-10, atol=1e-11)
    assert all(bool((folded[f"{norm}.weight"] == 1).all()) for norm in stream.readers)
    turned = rotated(folded, stream, random_rotation(len(folded[stream.a_norm]), 2))
    assert torch.allclose(outputs(model, turned), before, rtol=1e-10, atol=1e-11)
    assert not torch.allclose(turned["head.weight"], folded["head.weight"])
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in tensors.items())


def test_a_hidden_rotation_is_found(model: torch.nn.Module) -> None:
    tensors, stream = of(model)
    folded = fold(tensors, stream)
    hidden = random_rotation(len(folded[stream.a_norm]), 3)
    found = best_rotation(folded, rotated(folded, stream, hidden), stream)
    assert torch.allclose(found, hidden.T, atol=1e-8)
    size = len(found)
    assert torch.allclose(found @ found.T, torch.eye(size, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(found.sum(1), torch.ones(size, dtype=torch.float64), atol=1e-10)


def test_other_networks_are_refused() -> None:
    with pytest.raises(AlignError, match="no part of a pre-norm"):
        stream_of(build(parse_model("timm:test_resnet")).state_dict())
    names = set(build(parse_model("timm:test_vit")).state_dict())
    with pytest.raises(AlignError, match="no part of a pre-norm"):
        stream_of({*names, "norm_pre.weight"})
    with pytest.raises(AlignError, match="classifier"):
        stream_of({name for name in names if not name.startswith("head")})


def test_the_job_writes_plain_checkpoints(tmp_path: Path) -> None:
    """Two networks that compute the same in other directions come out alike, and still compute it."""
    a, b = (tmp_path / name for name in "ab")
    first = saved(a, MODELS["class token"])
    model = saved(b, MODELS["class token"], seed=1)
    randomise(first, 0)
    tensors, stream = of(first)
    turned = rotated(fold(tensors, stream), stream, random_rotation(64, 5))
    for directory, state in ((a, tensors), (b, turned)):
        single = {name: tensor.float().contiguous() for name, tensor in state.items()}
        save_file(single, directory / "model.safetensors")
    align(Align(refs=(str(a), str(b)), rotate=True, out=tmp_path / "out", threads=1), World("cpu", 1), silent)
    written = [Checkpoint(tmp_path / "out" / name) for name in "ab"]
    for name in written[0]:
        assert np.allclose(written[0][name], written[1][name], atol=1e-4), name
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = []
    for checkpoint in (Checkpoint(a), *written):
        load_weights(model, checkpoint)
        found.append(model(images).detach())
    assert torch.allclose(found[1], found[0], atol=1e-4)
    assert torch.allclose(found[2], found[0], atol=1e-4)
