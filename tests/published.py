"""Files as the model-soups paper published them, small: a wrapper around CLIP without its text transformer,
fine-tuned by a plain loop, and a folder of images to be told apart. Nothing here is computed by soupkit.
"""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import soupkit.task.torchvision_ops  # noqa: F401  (before open_clip)

import open_clip  # isort: skip

NAME = "soupkit-toy"
SIDE, NUM_CLASSES = 16, 20
MODEL: dict[str, Any] = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": SIDE, "layers": 1, "width": 32, "head_width": 16, "patch_size": 4},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}
MEAN, STD = (Tensor(v)[:, None, None] for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))


def know_architecture(folder: Path, name: str = NAME, **changes: Any) -> str:
    """Put the toy among the architectures that open_clip knows by name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(MODEL | changes))
    open_clip.add_model_config(folder)
    return name


class Wrapper(nn.Module):
    """An image tower, normalised features, a linear head; the text side without its transformer."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.model = open_clip.CLIP(**MODEL)
        del self.model.transformer
        self.classification_head = nn.Linear(MODEL["embed_dim"], NUM_CLASSES)
        nn.init.zeros_(self.classification_head.bias)
        with torch.no_grad():
            directions = nn.functional.normalize(torch.randn(NUM_CLASSES, MODEL["embed_dim"]), dim=-1)
            self.classification_head.weight.copy_(20 * directions)

    def forward(self, images: Tensor) -> Tensor:
        features = self.model.visual(images)
        logits: Tensor = self.classification_head(features / features.norm(dim=-1, keepdim=True))
        return logits


def write_images(folder: Path, *, train: int = 16, val: int = 10, noise: float = 70.0) -> Path:
    """FOLDER/train and FOLDER/val, class by class: a pattern of coloured patches in noise, already of the
    model's size, as PNG."""
    random = np.random.default_rng(0)
    patterns = random.integers(0, 256, (NUM_CLASSES, 4, 4, 3))
    for split, count in (("train", train), ("val", val)):
        for number, pattern in enumerate(patterns):
            place = folder / split / f"n{number:04d}"
            place.mkdir(parents=True)
            for index in range(count):
                pixels = np.kron(pattern, np.ones((SIDE // 4, SIDE // 4, 1)))
                pixels = pixels + random.normal(0, noise, pixels.shape)
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{index}.png")
    return folder


def read_images(folder: Path) -> tuple[Tensor, Tensor]:
    """All images of a split, as OpenAI's preprocessing shows what has the right size already; and classes."""
    paths = sorted(folder.glob("*/*.png"))
    classes = sorted({path.parent.name for path in paths})
    pixels = torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in paths]))
    images = (pixels.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD
    return images, torch.tensor([classes.index(path.parent.name) for path in paths])


def fine_tune(model: Wrapper, images: Tensor, classes: Tensor, *, lr: float, steps: int, seed: int) -> None:
    """AdamW with linear warm-up, cosine and clipping, tower and head together."""
    parameters = [p for name, p in model.named_parameters() if "visual" in name or "head" in name]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.1)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        warm = min(1.0, (step + 1) / 5)
        for group in optimizer.param_groups:
            group["lr"] = lr * warm * 0.5 * (1 + np.cos(np.pi * step / steps))
        chosen = torch.randint(len(images), (40,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[chosen]), classes[chosen]).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()


def write_models(folder: Path, images: Tensor, classes: Tensor, *, num: int = 8) -> list[Path]:
    """model_0.pt …: a raw state dict each, from one start with other learning rates, lengths and orders."""
    folder.mkdir(parents=True, exist_ok=True)
    start, paths = Wrapper(), []
    fine_tune(start, images, classes, lr=1e-2, steps=40, seed=100)
    for number in range(num):
        model, random = copy.deepcopy(start), np.random.default_rng(number)
        lr, steps = float(10 ** random.uniform(-3, -1.7)), int(random.integers(4, 12))
        fine_tune(model, images, classes, lr=lr, steps=steps, seed=number)
        paths.append(folder / f"model_{number}.pt")
        torch.save(OrderedDict(model.state_dict()), paths[-1])
    return paths
