"""The zero-shot head inside the graph: its gradient against central finite differences in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from soupkit.soup.blocks import lay_out
from soupkit.soup.plan import Demand
from soupkit.task.images.models import ModelSpec, build
from soupkit.task.images.zero_shot import ZeroShotClassifier
from soupkit.task.task import Pass

CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 8, "head_width": 4, "patch_size": 8},
        "text_cfg": {"context_length": 6, "vocab_size": 50, "width": 8, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {},
}
NAMES, TEMPLATES = ("a", "b", "c"), ("{}", "not {}")


KINDS: dict[str, Any] = {
    "plain": {},
    "bias on logits": {"init_logit_bias": -1.0},
    "quick gelu": {"quick_gelu": True},
    "a tower of its own": {"custom_text": True},
    "a class token": {"custom_text": True, "text_cfg": {"embed_cls": True}},
    "a bias in the projection": {"custom_text": True, "text_cfg": {"proj_bias": True}},
    "the last token": {"text_cfg": {"no_causal_mask": True, "pool_type": "last"}},
    "scaled layers": {"text_cfg": {"ls_init_value": 0.5}},
}


def classifier(kind: str = "plain") -> ZeroShotClassifier:
    torch.manual_seed(0)
    model, change = CONFIG["model_cfg"], KINDS[kind]
    model = {**model, **change, "text_cfg": {**model["text_cfg"], **change.get("text_cfg", {})}}
    clip = build(ModelSpec("open_clip", "tiny", {}, {**CONFIG, "model_cfg": model})).double()
    with torch.no_grad():
        for parameter in clip.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)  # such that images and classes differ

    def tokenize(texts: list[str]) -> Tensor:
        return torch.tensor(
            [
                [1, *(2 + ord(letter) % 40 for letter in text[:4]), 49][:6] + [0] * (4 - len(text[:4]))
                for text in texts
            ]
        )

    return ZeroShotClassifier(clip, tokenize, class_names=NAMES, templates=TEMPLATES)


def loss_of(model: ZeroShotClassifier, images: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(images), targets)


@pytest.mark.parametrize(
    ("batch_size", "kind"), [(1, "plain"), (4, "plain"), *((256, kind) for kind in KINDS)]
)
def test_the_gradient_of_the_text_tower_is_that_of_finite_differences(batch_size: int, kind: str) -> None:
    model = classifier(kind)
    images = torch.randn(5, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([0, 1, 2, 0, 1])
    with model.opened(batch_size):
        loss_of(model, images, targets).backward()
    assert not model.head.requires_grad
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.clip.named_parameters():
        if parameter.grad is None:
            continue
        direction = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * 1e-5)
                model.rebuild_head()
                values.append(float(loss_of(model, images, targets)))
                parameter.sub_(direction, alpha=sign * 1e-5)
        expected = (values[0] - values[1]) / 2e-5
        assert float((parameter.grad * direction).sum()) == pytest.approx(expected, rel=1e-4, abs=1e-8), name
    tower = "text.transformer" if KINDS[kind].get("custom_text") else "transformer"
    text = model.clip.get_parameter(f"{tower}.resblocks.0.attn.in_proj_weight")
    assert text.grad is not None
    assert float(text.grad.abs().max()) > 1e-4


def test_opening_the_head_leaves_every_mode_as_it_was() -> None:
    model = classifier()
    model.clip.visual.train()
    modes = [module.training for module in model.modules()]
    with model.opened():
        pass
    model.rebuild_head()
    assert [module.training for module in model.modules()] == modes


def test_prompts_of_a_pass_take_no_more_than_the_images() -> None:
    prompts = Pass(80, each=40, made=0)
    demand = Demand(
        lay_out({"w": (2, 2)}, "global"), 2, batch_size=8, activations=100, process=0, head=prompts
    )
    assert demand.prompts(8) == 20
    assert demand.prompts(1) == 2
    assert demand.prompts(1000) == 80
