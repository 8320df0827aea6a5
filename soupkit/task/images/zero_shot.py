"""CLIP as a classifier: class names in, a linear head out, made by the text tower."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from soupkit.checkpoint.config.classifier import HEAD
from soupkit.errors import TaskError
from soupkit.task.activations import evaluating, kept_by_one_more
from soupkit.task.task import MOST_TOGETHER, Pass
from soupkit.world import ALONE, World


class ZeroShotClassifier(torch.nn.Module):
    """A CLIP model with a head of class names × templates (Radford et al. 2021; as in Wortsman et al. 2022).

    Each prompt goes through the text tower and is normalised; the mean over the templates is normalised again
    and scaled by the learned logit scale. The head is made for the first image, and again after `forget`.
    tokenize: texts → int64[N, context].
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

    def makers(self) -> set[str]:
        """All of CLIP's parameters but the image tower, the logits' scale and a learned head."""
        names = (name for name, _ in self.clip.named_parameters(remove_duplicate=False))
        return {name for name in names if not name.startswith(("visual.", "logit_", HEAD))}

    def forget(self) -> None:
        """Drop the head, whether it has a graph or not."""
        self.head = self.head.new_zeros(0)

    @torch.inference_mode(False)
    @torch.no_grad()
    def rebuild_head(self, *, batch_size: int = MOST_TOGETHER) -> None:
        """Compute the head, float[embedding, classes], from the text tower's present weights."""
        self.head = self.head_of(self._all_texts(batch_size))

    @contextmanager
    def opened(self, at_once: int = MOST_TOGETHER, world: World = ALONE) -> Iterator[torch.Tensor]:
        """The head anew, as a leaf: on leaving, ∂L/∂head of all ranks becomes ∂L/∂w of the text tower.

        So the loss is differentiated to the head first, then from the head to the features of all prompts,
        and then the prompts pass through the tower once more, `at_once` together: memory is that of one such
        pass, however many prompts there are. Each rank takes its share of these. The head is a plain one
        afterwards.
        """
        with torch.no_grad():
            texts = self._all_texts(at_once)
        head = self.head = self.head_of(texts).requires_grad_()
        yield head
        gradient = torch.zeros_like(head) if head.grad is None else head.grad
        world.all_reduce(gradient)
        texts.requires_grad_()
        (wanted,) = torch.autograd.grad(self.head_of(texts), texts, gradient)
        parts = list(zip(torch.split(self.tokens, at_once), torch.split(wanted, at_once), strict=True))
        share = world.share(len(parts))
        with evaluating(self.clip):
            for tokens, part in parts[share.start : share.stop]:
                self.encode(tokens).backward(part)  # type: ignore[no-untyped-call]
        self.head = head.detach()

    def passed(self) -> Pass:
        """Of one prompt, measured on one more than one; the features of all prompts, and gradients."""
        width = int(self.encode(self.tokens[:1]).shape[-1])
        each = kept_by_one_more(self.clip, self.encode, self.tokens[:1])
        return Pass(len(self.prompts), each, 3 * 4 * len(self.prompts) * width)

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Prompts int64[P, context] → normalised features [P, embedding], as the tower computes in
        evaluation."""
        features: torch.Tensor = self.clip.encode_text(tokens, normalize=True)  # type: ignore[operator]
        return features

    def head_of(self, texts: torch.Tensor) -> torch.Tensor:
        """Features of all prompts, [classes × templates, embedding] → the head [embedding, classes]."""
        means = texts.reshape(self.num_classes, -1, texts.shape[-1]).mean(1)
        return torch.nn.functional.normalize(means, dim=-1).T.contiguous()

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
