"""What an example shows to a network whose graph is followed."""

from __future__ import annotations

import torch

from soupkit.task.images.models import ModelSpec, image_settings

NUM_TOKENS = 1000
"""Example texts use the first tokens of a vocabulary only: every vocabulary has these."""


def example_inputs(
    model: torch.nn.Module, spec: ModelSpec, *, batch: int = 2, seed: int = 0
) -> tuple[torch.Tensor, ...]:
    """What a model takes: random images of its own size, for open_clip with random texts."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, *image_settings(model, spec).input_size, generator=generator)
    if spec.library == "timm":
        return (images,)
    text = getattr(model, "text", model)
    length = getattr(text, "context_length", None) or getattr(model, "context_length", None)
    vocabulary = getattr(text, "vocab_size", None) or getattr(model, "vocab_size", None) or NUM_TOKENS
    tokens = torch.randint(
        1, min(int(vocabulary), NUM_TOKENS), (batch, int(length or 77)), generator=generator
    )
    return (images, tokens)
