"""CLIP as a classifier: class names in, a linear head out, made by the text tower."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from soupkit.errors import TaskError
from soupkit.world import ALONE, World

MOST_PROMPTS = 256
"""Prompts that pass through the text tower together."""


class ZeroShotClassifier(torch.nn.Module):
    """A CLIP model with a head of class names × templates (Radford et al. 2021; as in Wortsman et al. 2022).

    Each prompt goes through the text tower and is normalised; the mean over the templates is normalised again and
    scaled by the learned logit scale. The head is made for the first image; after other weights were loaded,
    `rebuild_head` makes it anew. tokenize: texts → int64[N, context].
    """

    head: torch.Tensor
    tokens: torch.Tensor

    def __init__(
        self,
        clip: torch.nn.Module,
        tokenize: Callable[[list[str]], torch.Tensor],
        *,
        class_names: Sequence[str],
        templates: Sequence[str],
    ) -> None:
        super().__init__()
        if not templates or any("{}" not in template for template in templates):
            raise TaskError(f"a template needs a {{}} for the class name: {list(templates)}")
        self.prompts = [template.replace("{}", name) for name in class_names for template in templates]
        self.clip = clip
        self.num_classes = len(class_names)
        self.register_buffer("tokens", tokenize(self.prompts), persistent=False)
        self.register_buffer("head", torch.zeros(0), persistent=False)

    def text_names(self) -> set[str]:
        """CLIP's own names of the parameters that make the head: all but the image tower and the logits' scale."""
        names = (name for name, _ in self.clip.named_parameters(remove_duplicate=False))
        return {name for name in names if not name.startswith(("visual.", "logit_"))}

    @torch.no_grad()
    def rebuild_head(self, *, batch_size: int = MOST_PROMPTS) -> None:
        """Compute the head, float[embedding, classes], from the text tower's present weights."""
        self.head = self.head_of(self._all_texts(batch_size))

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Prompts int64[P, context] → normalised features [P, embedding], as the tower computes in evaluation."""
        features: torch.Tensor = self.clip.encode_text(tokens, normalize=True)  # type: ignore[operator]
        return features

    def head_of(self, texts: torch.Tensor) -> torch.Tensor:
        """Features of all prompts, [classes × templates, embedding] → the head [embedding, classes]."""
        means = texts.reshape(self.num_classes, -1, texts.shape[-1]).mean(1)
        return torch.nn.functional.normalize(means, dim=-1).T.contiguous()

    def open_head(self, batch_size: int = MOST_PROMPTS) -> OpenHead:
        """Make the head anew as a leaf that takes a gradient, which `OpenHead.backward` hands to the text tower."""
        with torch.no_grad():
            texts = self._all_texts(batch_size)
        self.head = self.head_of(texts).requires_grad_()
        return OpenHead(self, texts, self.head, batch_size)

    def _all_texts(self, batch_size: int) -> torch.Tensor:
        with evaluating(self.clip):
            return torch.cat([self.encode(part) for part in torch.split(self.tokens, batch_size)])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images [N, C, H, W] → logits [N, classes]."""
        if self.head.numel() == 0:
            self.rebuild_head()
        features: torch.Tensor = self.clip.encode_image(images, normalize=True)  # type: ignore[operator]
        scale: torch.Tensor = self.clip.logit_scale  # type: ignore[assignment]
        return scale.exp() * features @ self.head


@dataclass(frozen=True)
class OpenHead:
    """A head whose gradient is still to go through the text tower. texts: features of all prompts, no graph behind.

    The loss is differentiated to the head first, then from the head to the features, then the prompts pass through the
    tower once more, `batch_size` at a time: memory is that of one such pass, however many prompts there are.
    """

    classifier: ZeroShotClassifier
    texts: torch.Tensor
    head: torch.Tensor
    batch_size: int

    def backward(self, gradient: torch.Tensor, world: World = ALONE) -> None:
        """Add ∂L/∂w of the text tower's parameters, from ∂L/∂head of all ranks; each rank takes its share of prompts.

        The classifier's head is a plain one afterwards.
        """
        texts = self.texts.clone().requires_grad_()
        (wanted,) = torch.autograd.grad(self.classifier.head_of(texts), texts, gradient)
        parts = list(
            zip(torch.split(self.classifier.tokens, self.batch_size), torch.split(wanted, self.batch_size), strict=True)
        )
        share = world.share(len(parts))
        with evaluating(self.classifier.clip):
            for tokens, part in parts[share.start : share.stop]:
                self.classifier.encode(tokens).backward(part)  # type: ignore[no-untyped-call]
        self.classifier.head = self.head.detach()


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module is as it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
