"""The small image models of the mode-connectivity papers that timm does not have, registered with it.

Importing this module makes timm.create_model know cifar_vgg16, cifar_vgg16_bn, cifar_preresnet164,
cifar_wrn28_10 and small models of the same kinds; a checkpoint of one loads wherever soupkit is imported.
"""

from __future__ import annotations

import math

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from soupkit.jsons import Json

IMAGES = {
    "url": "",
    "num_classes": 10,
    "input_size": (3, 32, 32),
    "pool_size": None,
    "crop_pct": 1.0,
    "interpolation": "bilinear",
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2470, 0.2435, 0.2616),
}
VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
"""Channels of each convolution; 0 halves the image."""


class CifarVgg(nn.Module):
    """VGG (Simonyan & Zisserman 2015, arXiv:1409.1556) with a small head, for 32 × 32 images."""

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        *,
        layers: tuple[int, ...] = VGG16,
        head: int = 512,
        batch_norm: bool = False,
        drop_rate: float = 0.5,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans = num_classes, in_chans
        parts: list[nn.Module] = []
        channels = in_chans
        for width in layers:
            if width == 0:
                parts.append(nn.MaxPool2d(2))
                continue
            norm = [nn.BatchNorm2d(width)] if batch_norm else []
            parts += [nn.Conv2d(channels, width, 3, padding=1), *norm, nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*parts)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(
            nn.Dropout(drop_rate),
            nn.Linear(channels, head),
            nn.ReLU(),
            nn.Dropout(drop_rate),
            nn.Linear(head, head),
        )
        self.num_features = head  # the name under which timm records it
        self.fc = nn.Linear(head, num_classes)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, C, 32, 32] → logits [N, classes]."""
        features = self.head(self.pool(self.features(images)).flatten(1))
        logits: Tensor = self.fc(torch.relu(features))
        return logits


class PreactBlock(nn.Module):
    """Batch norm, ReLU and convolution, two or three times, added to what came in.

    sizes: the kernel of each convolution; the first of 3 × 3 has the stride. Where the shape changes, the
    shortcut is a 1 × 1 convolution of what came in.
    """

    def __init__(
        self, inner: int, width: int, out: int, sizes: tuple[int, ...], stride: int, *, bias: bool
    ) -> None:
        super().__init__()
        widths = [inner, *[width] * (len(sizes) - 1), out]
        strided = sizes.index(3)
        self.norms = nn.ModuleList(nn.BatchNorm2d(each) for each in widths[:-1])
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, size, stride if i == strided else 1, size // 2, bias=bias)
            for i, (a, b, size) in enumerate(zip(widths, widths[1:], sizes, strict=False))
        )
        changes = stride > 1 or inner != out
        self.shortcut = nn.Conv2d(inner, out, 1, stride, bias=bias) if changes else None

    def forward(self, features: Tensor) -> Tensor:
        """[N, inner, H, W] → [N, out, H / stride, W / stride]."""
        kept = features if self.shortcut is None else self.shortcut(features)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features = conv(torch.relu(norm(features)))
        return features + kept


class PreactResNet(nn.Module):
    """A residual network of pre-activation blocks in three stages (He et al. 2016, arXiv:1603.05027).

    Wide, with two 3 × 3 convolutions per block: Zagoruyko & Komodakis 2016, arXiv:1605.07146. stages: blocks
    per stage, the width inside and the width at the end of each block.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        *,
        stem: int = 16,
        num_blocks: int = 18,
        widths: tuple[tuple[int, int], ...] = ((16, 64), (32, 128), (64, 256)),
        sizes: tuple[int, ...] = (1, 3, 1),
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans = num_classes, in_chans
        self.conv1 = nn.Conv2d(in_chans, stem, 3, padding=1, bias=bias)
        blocks: list[nn.Module] = []
        inner = stem
        for stage, (width, out) in enumerate(widths):
            for number in range(num_blocks):
                stride = 2 if stage and number == 0 else 1
                blocks.append(PreactBlock(inner, width, out, sizes, stride, bias=bias))
                inner = out
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(inner)
        self.num_features = inner
        self.fc = nn.Linear(inner, num_classes)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, C, 32, 32] → logits [N, classes]."""
        features = torch.relu(self.norm(self.blocks(self.conv1(images))))
        logits: Tensor = self.fc(features.mean((2, 3)))
        return logits


def _initialise(model: nn.Module) -> None:
    """Convolutions: normal with variance 2 / (k² · outputs) (He et al. 2015, arXiv:1502.01852, §2.2); biases
    zero."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, 0, math.sqrt(2 / fan))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _configuration(first: str) -> Json:
    return {**IMAGES, "first_conv": first, "classifier": "fc"}


default_cfgs = generate_default_cfgs(
    {
        "cifar_vgg16": _configuration("features.0"),
        "cifar_vgg16_bn": _configuration("features.0"),
        "cifar_vgg_small": _configuration("features.0"),
        "cifar_preresnet164": _configuration("conv1"),
        "cifar_preresnet_small": _configuration("conv1"),
        "cifar_wrn28_10": _configuration("conv1"),
    }
)


def _vgg(name: str, pretrained: bool, kwargs: Json) -> nn.Module:
    model: nn.Module = build_model_with_cfg(CifarVgg, name, pretrained, **kwargs)
    return model


def _resnet(name: str, pretrained: bool, kwargs: Json) -> nn.Module:
    model: nn.Module = build_model_with_cfg(PreactResNet, name, pretrained, **kwargs)
    return model


def cifar_vgg16(pretrained: bool = False, **kwargs: object) -> nn.Module:
    """VGG16 without batch norm: 15.2 million parameters."""
    return _vgg("cifar_vgg16", pretrained, kwargs)


def cifar_vgg16_bn(pretrained: bool = False, **kwargs: object) -> nn.Module:
    """VGG16 with batch norm."""
    return _vgg("cifar_vgg16_bn", pretrained, {"batch_norm": True} | kwargs)


def cifar_vgg_small(pretrained: bool = False, **kwargs: object) -> nn.Module:
    """Four convolutions without batch norm and dropout, for tests and small studies."""
    return _vgg(
        "cifar_vgg_small",
        pretrained,
        {"layers": (16, 0, 32, 0, 64, 64, 0), "head": 64, "drop_rate": 0.0} | kwargs,
    )


def cifar_preresnet164(pretrained: bool = False, **kwargs: object) -> nn.Module:
    """PreResNet-164: 1.7 million parameters."""
    return _resnet("cifar_preresnet164", pretrained, kwargs)


def cifar_preresnet_small(pretrained: bool = False, **kwargs: object) -> nn.Module:
    """The same with one block per stage and half the widths, for tests and small studies."""
    widths = ((8, 32), (16, 64), (32, 128))
    return _resnet("cifar_preresnet_small", pretrained, {"num_blocks": 1, "widths": widths} | kwargs)


def cifar_wrn28_10(pretrained: bool = False, **kwargs: object) -> nn.Module:
    """WRN-28-10: 36.5 million parameters."""
    widths = ((160, 160), (320, 320), (640, 640))
    settings = {"num_blocks": 4, "widths": widths, "sizes": (3, 3), "bias": True}
    return _resnet("cifar_wrn28_10", pretrained, settings | kwargs)


for _entry in (
    cifar_vgg16,
    cifar_vgg16_bn,
    cifar_vgg_small,
    cifar_preresnet164,
    cifar_preresnet_small,
    cifar_wrn28_10,
):
    register_model(_entry)
