"""CLIP as a classifier: class names in, a linear head out, made by the text tower."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from soupkit.errors import TaskError


class ZeroShotClassifier(torch.nn.Module):
    """A CLIP model with a head of class names × templates (Radford et al. 2021; as in Wortsman et al. 2022).

    Each prompt goes through the text tower and is normalised; the mean over the templates is normalised again and
    scaled by the learned logit scale. The head is made for the first image; after other weights were loaded,
    `rebuild_head` makes it anew. tokenize: texts → int64[N, context].
    """

    head: torch.Tensor

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

    @torch.no_grad()
    def rebuild_head(self, *, batch_size: int = 256) -> None:
        """Compute the head, float[embedding, classes], from the text tower's present weights."""
        training = self.clip.training
        self.clip.eval()
        texts = [self.clip.encode_text(part, normalize=True) for part in self.tokens.split(batch_size)]  # type: ignore[operator]
        self.clip.train(training)
        means = torch.cat(texts).reshape(self.num_classes, -1, texts[0].shape[-1]).mean(1)
        self.head = torch.nn.functional.normalize(means, dim=-1).T.contiguous()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images [N, C, H, W] → logits [N, classes]."""
        if self.head.numel() == 0:
            self.rebuild_head()
        features: torch.Tensor = self.clip.encode_image(images, normalize=True)  # type: ignore[operator]
        scale: torch.Tensor = self.clip.logit_scale  # type: ignore[assignment]
        return scale.exp() * features @ self.head
