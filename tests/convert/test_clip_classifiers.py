"""Published CLIP fine-tunes in and out: convert, what the converted one computes, and every export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import published
import pytest
import torch
from published import NUM_CLASSES, Wrapper

import soupkit.task.torchvision_ops  # noqa: F401  (before timm and open_clip)
from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.cli.app import run_command_line
from soupkit.task.images.models import build, describe, load_weights

IMAGES = torch.randn(4, 3, published.SIDE, published.SIDE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", autouse=True)
def name(tmp_path_factory: pytest.TempPathFactory) -> str:
    return published.know_architecture(tmp_path_factory.mktemp("configs"))


@pytest.fixture(scope="module")
def wrapper() -> Wrapper:
    return Wrapper(seed=1).eval()


def soupkit_(*words: object) -> None:
    assert run_command_line([*map(str, words), "--quiet"]) == 0


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert run_command_line([*map(str, words), "--quiet"]) in (1, 2)
    return capsys.readouterr().err


def converted(file: Path, out: Path, state: Any, *options: object, model: str = published.NAME) -> Path:
    torch.save(state, file)
    soupkit_("convert", file, "--model", f"open_clip:{model}", "--out", out, *options)
    return out


def logits(directory: Path) -> torch.Tensor:
    checkpoint = Checkpoint(directory)
    model = build(describe(checkpoint, None))
    load_weights(model, checkpoint)
    with torch.no_grad():
        found: torch.Tensor = model(IMAGES)
    return found


def test_what_is_converted_computes_the_same_bits(wrapper: Wrapper, tmp_path: Path) -> None:
    out = converted(tmp_path / "model_0.pt", tmp_path / "out", wrapper.state_dict())
    with torch.no_grad():
        assert torch.equal(logits(out), wrapper(IMAGES))
    section = json.loads((out / "open_clip_config.json").read_text())["classifier"]
    assert section["num_classes"] == NUM_CLASSES
    assert (section["normalize"], section["bias"], section["logit_scale"]) == (True, True, False)
    assert set(section["parts"]) == {
        *("positional_embedding", "text_projection", "logit_scale", "token_embedding", "ln_final")
    }
    assert (out / "open_clip_model.safetensors").is_file()


@pytest.mark.parametrize("form", ["bare", "wrapped", "nested", "half", "no bias", "whole text", "no text"])
def test_every_form_comes_back_bit_for_bit(form: str, wrapper: Wrapper, tmp_path: Path) -> None:
    """The published file, and what people make of it; exported again under the published names."""
    state = dict(wrapper.state_dict())
    if form == "half":
        state = {key: tensor.half() for key, tensor in state.items()}
    if form == "no bias":
        del state["classification_head.bias"]
    if form == "no text":
        state = {key: t for key, t in state.items() if key.startswith(("model.visual", "classification"))}
    if form == "whole text":
        whole = published.open_clip.CLIP(**published.MODEL)
        state |= {f"model.{key}": t for key, t in whole.state_dict().items() if key.startswith("transformer")}
    saved: Any = {f"module.{key}": tensor for key, tensor in state.items()} if form == "wrapped" else state
    saved = {"epoch": 3, "state_dict": saved} if form == "nested" else saved
    out = converted(tmp_path / "m.pt", tmp_path / "out", saved)
    soupkit_("export", out, "--to", "state-dict", "--out", tmp_path / "again")
    again = torch.load(tmp_path / "again" / "model.pt", weights_only=True)
    assert again.keys() == state.keys()
    for key, tensor in state.items():
        assert again[key].dtype == tensor.dtype
        assert torch.equal(again[key], tensor), key
    if form in ("bare", "half"):
        assert list(again) == list(state)
    soupkit_("convert", tmp_path / "again", "--model", f"open_clip:{published.NAME}", "--out", tmp_path / "b")
    for key, array in Checkpoint(out).items():
        np.testing.assert_array_equal(array, Checkpoint(tmp_path / "b")[key])


def test_an_architecture_is_recognised_where_only_one_computes_so(
    wrapper: Wrapper, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(wrapper.state_dict(), tmp_path / "m.pt")
    soupkit_("convert", tmp_path / "m.pt", "--out", tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(logits(tmp_path / "out"), wrapper(IMAGES))
    slow = published.know_architecture(tmp_path / "configs", "soupkit-toy-gelu", quick_gelu=False)
    message = refused(capsys, "convert", tmp_path / "m.pt", "--out", tmp_path / "other")
    assert f"{published.NAME} and {slow}" in message
    assert not (tmp_path / "other").exists()
    published.open_clip.factory._MODEL_CONFIGS.pop(slow)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model", "open_clip:ViT-S-32"), "384"),
        (("--class-names", "one"), "1 class names for 20"),
        (("--head", "bias=false"), "expected normalize"),
        (("--head", "zero-shot"), "expected normalize"),
        (("--drop", "classification_head.", "--head", "normalize=false"), "no classification_head"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    options: tuple[str, ...], said: str, wrapper: Wrapper, tmp_path: Path, capsys: Any
) -> None:
    torch.save(wrapper.state_dict(), tmp_path / "m.pt")
    named = () if "--model" in options else ("--model", f"open_clip:{published.NAME}")
    assert said in refused(capsys, "convert", tmp_path / "m.pt", *named, *options, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_timm_loads_a_head_on_plain_features(wrapper: Wrapper, tmp_path: Path, capsys: Any) -> None:
    import timm

    plain = converted(
        tmp_path / "m.pt",
        tmp_path / "out",
        wrapper.state_dict(),
        "--head",
        "normalize=false,logit_scale=true",
    )
    soupkit_("export", plain, "--to", "timm", "--out", tmp_path / "timm")
    model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), logits(plain), rtol=1e-4, atol=1e-4)
    assert model.pretrained_cfg["mean"] == pytest.approx(published.open_clip.OPENAI_DATASET_MEAN)
    normalised = converted(tmp_path / "m.pt", tmp_path / "other", wrapper.state_dict())
    message = refused(capsys, "export", normalised, "--to", "timm", "--out", tmp_path / "no")
    assert "divided by their norm" in message
    assert not (tmp_path / "no").exists()


def test_the_published_architecture_has_a_name_in_timm() -> None:
    from soupkit.task.images.as_timm import _name_of

    for name, expected in {
        "ViT-B-32-quickgelu": "vit_base_patch32_clip_quickgelu_224",
        "ViT-B-16": "vit_base_patch16_clip_224",
        "ViT-L-14-336-quickgelu": "vit_large_patch14_clip_quickgelu_336",
    }.items():
        assert _name_of(published.open_clip.get_model_config(name)) == (expected, {})


def test_open_clip_loads_the_tower_in_a_whole_model(wrapper: Wrapper, tmp_path: Path, capsys: Any) -> None:
    base = published.open_clip.create_model(published.NAME)
    converted(tmp_path / "base.pt", tmp_path / "base", base.state_dict())
    tuned = converted(tmp_path / "m.pt", tmp_path / "tuned", wrapper.state_dict())
    command = ("export", tuned, "--to", "open-clip", "--out", tmp_path / "out")
    assert "--text-tower" in refused(capsys, *command)
    soupkit_(*command, "--text-tower", tmp_path / "base")
    loaded = published.open_clip.create_model(f"local-dir:{tmp_path / 'out'}").eval()
    with torch.no_grad():
        assert torch.equal(loaded.encode_image(IMAGES), wrapper.model.visual(IMAGES))
    state, texts = loaded.state_dict(), base.state_dict()
    assert torch.equal(
        state["transformer.resblocks.0.ln_1.weight"], texts["transformer.resblocks.0.ln_1.weight"]
    )
    assert torch.equal(state["ln_final.weight"], wrapper.model.ln_final.weight)
