"""How images are shown to a model: its settings, and the transforms made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import timm.data
import torch
from PIL import Image

from soupkit.errors import TaskError
from soupkit.jsons import Json

Transform = Callable[[Image.Image], torch.Tensor]


@dataclass(frozen=True)
class ImageSettings:
    """A model's own preprocessing, as its pretrained configuration states it.

    input_size: (channels, height, width); mean, std: per channel, for values in 0..1; crop_pct: the share of
    each side that the crop in the middle keeps; crop_mode: "center" (short side fitted, the rest cropped),
    "squash" (both sides fitted) or "border" (long side fitted, the rest padded).
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    def to_json(self) -> Json:
        """All of it, JSON-able."""
        return asdict(self)


def for_characters(settings: ImageSettings) -> ImageSettings:
    """The same, but the whole image is shown.

    A crop in the middle drops what surrounds the object of a photograph; characters are cut out already, and
    a missing edge is a missing stroke.
    """
    return replace(settings, crop_pct=1.0, crop_mode="squash")


def eval_transform(settings: ImageSettings) -> Transform:
    """PIL image → uint8[C, H, W], deterministic; `normalize` makes the model's input of it.

    Bytes, because a cache of them holds four times as many images.
    """
    transform = timm.data.create_transform(
        settings.input_size,
        is_training=False,
        interpolation=settings.interpolation,
        mean=settings.mean,
        std=settings.std,
        crop_pct=settings.crop_pct,
        crop_mode=settings.crop_mode,
        normalize=False,
    )
    return _Converted(image_mode(settings), transform)


@dataclass(frozen=True)
class _Converted:
    """A transform after the conversion to the model's channels; a class, because worker processes are sent a
    copy."""

    mode: str
    transform: Transform

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return self.transform(image.convert(self.mode))


MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""PIL modes by channels: grey, colour, colour and how opaque."""


def image_mode(settings: ImageSettings) -> str:
    """The PIL mode with as many channels as the model takes. Raises TaskError where images have no such
    mode."""
    channels = settings.input_size[0]
    if channels not in MODES:
        raise TaskError(
            f"the model takes {channels} channels; images have 1 (grey), 3 (colour) or 4 (colour and "
            f"opacity)",
            hint="--model …,in_chans=3; or score with a program of your own: --score-command",
        )
    return MODES[channels]


def normalize(pixels: torch.Tensor, settings: ImageSettings) -> torch.Tensor:
    """uint8[…, C, H, W] → float32, (pixels / 255 − mean) / std: what ToTensor and Normalize compute."""
    return normalizer(settings, pixels.device)(pixels)


def normalizer(settings: ImageSettings, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """The same for many batches on a device, whose work need not be waited for at each."""
    mean, std = (torch.tensor(x, device=device).view(-1, 1, 1) for x in (settings.mean, settings.std))
    return lambda pixels: pixels.float().div_(255).sub_(mean).div_(std)
