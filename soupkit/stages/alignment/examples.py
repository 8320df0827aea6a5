"""What an example shows to a network whose graph is followed, and the groups that are read off it."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from soupkit.align.graph.expression import names_in
from soupkit.align.graph.trace import permutation_spec
from soupkit.align.spec import PermutationSpec
from soupkit.checkpoint.config.classifier import HEAD, SECTION
from soupkit.task.images.classifier import ClipClassifier
from soupkit.task.images.models import ModelSpec, image_settings

NUM_TOKENS = 1000
"""Example texts use the first tokens of a vocabulary only: every vocabulary has these."""


def example_inputs(
    model: torch.nn.Module, spec: ModelSpec, *, batch: int = 2, seed: int = 0
) -> tuple[torch.Tensor, ...]:
    """What a model takes: random images of its own size, for CLIP with random texts."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, *image_settings(model, spec).input_size, generator=generator)
    if spec.library == "timm" or SECTION in spec.config:
        return (images,)
    text = getattr(model, "text", model)
    length = getattr(text, "context_length", None) or getattr(model, "context_length", None)
    vocabulary = getattr(text, "vocab_size", None) or getattr(model, "vocab_size", None) or NUM_TOKENS
    tokens = torch.randint(
        1, min(int(vocabulary), NUM_TOKENS), (batch, int(length or 77)), generator=generator
    )
    return (images, tokens)


def permutations_of(
    model: torch.nn.Module, inputs: tuple[torch.Tensor, ...], *, pin: Iterable[str] = ()
) -> PermutationSpec:
    """The groups of a model; features that a text tower beside a CLIP classifier shares stay in order."""
    spec = permutation_spec(model, inputs, pin=pin)
    shared = isinstance(model, ClipClassifier) and {"text", "text_projection"} & set(model.form.parts)
    axes = spec.axes[f"{HEAD}.weight"] if shared else ()
    features = {name for axis in axes for name in names_in(axis)}
    return spec.pin(features, reason="shared with the text tower") if features else spec
