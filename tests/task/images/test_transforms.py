"""Transforms are those of timm and open_clip, and characters are shown whole."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from task.small import CLIP_CONFIG

from soupkit.cli.app import run_command_line
from soupkit.errors import TaskError
from soupkit.task.images.models import ModelSpec, build, image_settings
from soupkit.task.images.transforms import ImageSettings, eval_transform, for_characters, normalize

SETTINGS = ImageSettings((3, 32, 32), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "bicubic", 0.9, "center")


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    random = np.random.default_rng(width)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_pixels_are_those_of_timm(crop_mode: str) -> None:
    settings = replace(SETTINGS, crop_mode=crop_mode)
    theirs = timm.data.create_transform(
        (3, 32, 32),
        interpolation="bicubic",
        mean=settings.mean,
        std=settings.std,
        crop_pct=0.9,
        crop_mode=crop_mode,
    )
    image = picture(50, 40)
    ours = normalize(eval_transform(settings)(image), settings)
    torch.testing.assert_close(ours, theirs(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
def test_pixels_are_those_of_open_clip(resize_mode: str) -> None:
    preprocess = dict(CLIP_CONFIG["preprocess_cfg"], resize_mode=resize_mode)
    spec = ModelSpec("open_clip", "tiny", {}, {**CLIP_CONFIG, "preprocess_cfg": preprocess})
    model = build(spec)
    settings = image_settings(model, spec)
    theirs = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    image = picture(50, 40)
    ours = normalize(eval_transform(settings)(image), settings)
    torch.testing.assert_close(ours, theirs(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_get_the_channels_of_the_model(mode: str, channels: int) -> None:
    settings = ImageSettings((channels, 16, 16), (0.5,) * channels, (0.5,) * channels)
    assert eval_transform(settings)(picture(20, 20, mode)).shape == (channels, 16, 16)


def test_characters_are_shown_whole() -> None:
    """A bright frame around the image survives; the settings' own crop would lose it."""
    framed = Image.fromarray(np.pad(np.zeros((18, 38), np.uint8), 1, constant_values=255))
    settings = ImageSettings((1, 40, 40), (0.5,), (0.5,), "nearest", 0.8, "center")

    def edges(settings: ImageSettings) -> list[float]:
        pixels = eval_transform(settings)(framed)[0].float()
        return [
            pixels[0].mean().item(),
            pixels[-1].mean().item(),
            pixels[:, 0].mean().item(),
            pixels[:, -1].mean().item(),
        ]

    assert edges(for_characters(settings)) == [255.0] * 4
    assert edges(settings) != [255.0] * 4


def test_transforms_travel_to_worker_processes() -> None:
    transform = eval_transform(SETTINGS)
    again = pickle.loads(pickle.dumps(transform))
    assert torch.equal(again(picture(9, 9)), transform(picture(9, 9)))


@pytest.mark.parametrize("channels", [2, 5, 6, 12])
def test_a_number_of_channels_that_no_image_has_is_refused(channels: int) -> None:
    with pytest.raises(TaskError, match=f"takes {channels} channels") as error:
        eval_transform(ImageSettings((channels, 16, 16), (0.5,) * channels, (0.5,) * channels))
    assert "in_chans=3" in (error.value.hint or "")


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_channels_that_only_the_models_arguments_name_are_the_models(channels: int) -> None:
    """A config.json of timm with in_chans among model_args and no input_size."""
    config = {
        "architecture": "test_resnet",
        "num_classes": 3,
        "model_args": {"in_chans": channels},
        "pretrained_cfg": {"input_size": [3, 32, 32]},
    }
    spec = ModelSpec("timm", "test_resnet", {}, config)
    settings = image_settings(build(spec), spec)
    assert settings.input_size[0] == len(settings.mean) == len(settings.std) == channels


def test_training_a_model_of_two_channels_is_refused_before_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "finetune --model timm:test_resnet,num_classes=10,img_size=32,in_chans=2 --data digits "
        "--num-train 200"
    )
    assert run_command_line([*words.split(), "--out", str(tmp_path / "x")]) == 1
    captured = capsys.readouterr()
    assert "takes 2 channels" in captured.err
    assert "in_chans=3" in captured.err
    assert list(tmp_path.iterdir()) == []
