"""Models are described, built, written, and read again by timm and open_clip themselves."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import timm
import timm.data
import torch
from safetensors.torch import save_file
from task.small import CLIP_CONFIG, described, saved

from soupkit.errors import TaskError
from soupkit.task.images.models import (
    ModelSpec,
    build,
    build_tokenizer,
    describe,
    image_settings,
    parse_model,
    write_config,
)
from soupkit.task.weights import arrays, load_weights


@pytest.mark.parametrize(
    ("text", "name", "kwargs"),
    [
        ("timm:resnet18", "resnet18", {}),
        ("timm:resnet18.a1_in1k,num_classes=10", "resnet18.a1_in1k", {"num_classes": 10}),
        ("timm:x,img_size=(48,32),drop_rate=1e-1", "x", {"img_size": (48, 32), "drop_rate": 0.1}),
        (
            "timm:x,flag=true,other=None,act_layer=gelu",
            "x",
            {"flag": True, "other": None, "act_layer": "gelu"},
        ),
        ("open_clip:ViT-B-32", "ViT-B-32", {}),
    ],
)
def test_parse_model(text: str, name: str, kwargs: dict[str, object]) -> None:
    spec = parse_model(text)
    assert (spec.library, spec.name, dict(spec.kwargs)) == (text.split(":")[0], name, kwargs)


@pytest.mark.parametrize(
    "text", ["resnet18", "keras:resnet18", "timm:", "timm:resnet18,num_classes", "timm:a,1b=2"]
)
def test_parse_model_refuses(text: str) -> None:
    with pytest.raises(TaskError):
        parse_model(text)


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("timm:test_resnet,num_classes=10,img_size=32", (3, 32, 32)),
        ("timm:test_vit,num_classes=7,img_size=32", (3, 32, 32)),
        ("timm:test_vit,num_classes=7,img_size=(48,32),in_chans=1", (1, 48, 32)),
        ("timm:test_efficientnet", (3, 160, 160)),
    ],
)
def test_timm_loads_what_is_written(tmp_path: Path, model: str, size: tuple[int, int, int]) -> None:
    original = saved(tmp_path, model)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded(images), original(images))
    assert tuple(timm.data.resolve_model_data_config(loaded)["input_size"]) == size
    again = describe(described(tmp_path), None)
    rebuilt = build(again)
    rebuilt.load_state_dict(original.state_dict())
    assert torch.equal(rebuilt(images), original(images))
    assert image_settings(rebuilt, again) == image_settings(original, parse_model(model))


def test_a_configuration_can_be_rebuilt_for_another_size_and_head(tmp_path: Path) -> None:
    saved(tmp_path, "timm:test_vit,num_classes=7,img_size=32")
    spec = replace(describe(described(tmp_path), None), kwargs={"img_size": 64})
    model = build(spec, num_classes=3)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    assert model.pos_embed.shape[1] == 1 + (64 // 16) ** 2
    assert image_settings(model, spec).input_size == (3, 64, 64)
    write_config(spec, model, tmp_path)
    assert timm.create_model(f"local-dir:{tmp_path}")(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_settings_are_those_of_the_registry() -> None:
    spec = parse_model("timm:resnet18")
    settings = image_settings(build(spec), spec)
    assert settings.mean == (0.485, 0.456, 0.406)
    assert (settings.interpolation, settings.crop_pct, settings.crop_mode) == ("bicubic", 0.95, "center")


def test_shown_images_are_written(tmp_path: Path) -> None:
    spec = parse_model("timm:test_resnet,img_size=32")
    model = build(spec)
    settings = replace(image_settings(model, spec), crop_pct=1.0, crop_mode="squash")
    write_config(spec, model, tmp_path, settings=settings, class_names=["a"] * 1000)
    again = describe(described(tmp_path), None)
    assert image_settings(build(again), again) == settings
    assert json.loads((tmp_path / "config.json").read_text())["label_names"] == ["a"] * 1000


def test_random_weights_follow_torch_generator() -> None:
    spec = parse_model("timm:test_resnet,num_classes=10")
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(build(spec).state_dict()["fc.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_open_clip_loads_what_is_written(tmp_path: Path, clip_directory: Path) -> None:
    spec = replace(
        describe(described(clip_directory, "open_clip_config.json"), None),
        kwargs={"img_size": 48, "context_length": 20},
    )
    model = build(spec)
    write_config(spec, model, tmp_path)
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    loaded, _, preprocess = open_clip.create_model_and_transforms(
        f"local-dir:{tmp_path}", pretrained_text=False
    )
    images, texts = torch.randn(2, 3, 48, 48), build_tokenizer(spec)(["one", "two"])
    assert texts.shape == (2, 20)
    for ours, theirs in zip(model(images, texts)[:2], loaded.eval()(images, texts)[:2], strict=True):
        assert torch.equal(ours, theirs)
    settings = image_settings(model, spec)
    normalise = preprocess.transforms[-1]
    assert (
        (settings.mean, settings.std)
        == (tuple(normalise.mean), tuple(normalise.std))
        == ((0.5,) * 3, (0.25,) * 3)
    )
    assert settings.input_size == (3, 48, 48)


def test_building_an_open_clip_model_leaves_logging_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    level = root.level
    build(ModelSpec("open_clip", "tiny", {}, CLIP_CONFIG))
    assert (root.level, root.handlers) == (level, [])


def test_names_of_open_clip_are_known() -> None:
    spec = parse_model("open_clip:ViT-B-32,img_size=64")
    assert build_tokenizer(spec)(["a"]).shape == (1, 77)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "does not say"),
        ({"model_type": "vit", "architectures": ["ViTModel"]}, "transformers"),
    ],
)
def test_describe_says_what_is_missing(tmp_path: Path, config: dict[str, object], words: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(TaskError, match=words) as caught:
        describe(described(tmp_path), None)
    assert caught.value.hint
    assert describe(described(tmp_path), "timm:resnet18").name == "resnet18"


@pytest.mark.parametrize(
    ("model", "words", "hint"),
    [
        ("timm:resnet1888", "Unknown model", "resnet18"),
        ("timm:test_resnet,no_such_option=1", "no_such_option", None),
        ("open_clip:ViT-B-33", "no model 'ViT-B-33'", "ViT-B-32"),
    ],
)
def test_build_says_what_is_wrong(model: str, words: str, hint: str | None) -> None:
    with pytest.raises(TaskError, match=words) as caught:
        build(parse_model(model))
    assert (hint is None and caught.value.hint is None) or (hint and hint in str(caught.value.hint))


@pytest.mark.parametrize(
    "model",
    [
        "timm:levit_128s,img_size=64,embed_dim=(32,48,64),key_dim=8,num_heads=(2,3,4),depth=(1,1,1)",
        "timm:tiny_vit_5m_224,img_size=64,embed_dims=(16,16,32,32),depths=(1,1,1,1),num_heads=(1,1,2,2),"
        "window_sizes=(7,7,4,2)",
        "timm:efficientformerv2_s0,img_size=64",
    ],
)
def test_other_weights_are_not_mixed_with_remembered_ones(model: str) -> None:
    """These keep attention biases between passes in eval mode; a second checkpoint must not see the first
    one's."""
    torch.manual_seed(0)
    built = build(described := parse_model(f"{model},num_classes=5"))
    images = torch.randn(2, *image_settings(built, described).input_size)
    with torch.inference_mode():
        first = built(images)
        other = {
            name: values + 3 * torch.randn(values.shape).numpy()
            if "attention_biases" in name
            else values.copy()
            for name, values in arrays(built).items()
        }
        assert any("attention_biases" in name for name in other)
        load_weights(built, other)
        second = built(images)
        built.train().eval()
        expected = built(images)
    assert torch.equal(second, expected)
    assert not torch.equal(first, second)
