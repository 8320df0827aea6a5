"""The models of the papers: their sizes, their forms, and that a checkpoint of one can be loaded again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.tensors import write_tensors
from soupkit.task.images.models import arrays, build, describe, parse_model, write_config


@pytest.mark.parametrize(
    ("name", "millions"),
    [  # as published: He et al. 2016 (1.7 M), Zagoruyko & Komodakis 2016 (36.5 M); VGG16's from its layers
        ("cifar_vgg16", 15.25),
        ("cifar_preresnet164", 1.70),
        ("cifar_wrn28_10", 36.5),
    ],
)
def test_they_have_as_many_parameters_as_published(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = build(parse_model(f"timm:{name}"), num_classes=10)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.005)


@pytest.mark.parametrize("name", ["cifar_vgg_small", "cifar_preresnet_small"])
def test_a_checkpoint_of_one_is_built_again_from_its_configuration(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = parse_model(f"timm:{name},num_classes=7")
    model = build(spec)
    write_tensors(tmp_path, arrays(model))
    write_config(spec, model, tmp_path)
    checkpoint = Checkpoint(tmp_path)
    again = build(describe(checkpoint, None))
    again.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in checkpoint.items()})
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        np.testing.assert_array_equal(model(images), again(images))
    assert again(images).shape == (2, 7)


def test_a_block_is_what_it_adds_to_its_input() -> None:
    """With the last convolution at zero a block without a change of shape is the identity."""
    model = build(parse_model("timm:cifar_preresnet_small,num_classes=10,num_blocks=2"))
    block = model.blocks[1]  # type: ignore[union-attr, index]
    features = torch.randn(2, 32, 8, 8)
    assert not torch.equal(block(features), features)
    torch.nn.init.zeros_(block.convs[-1].weight)
    assert torch.equal(block(features), features)
