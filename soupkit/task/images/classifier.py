"""CLIP's image tower under a learned linear head, as the published fine-tunes are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor, nn

from soupkit.checkpoint.config.classifier import HEAD, TOWER
from soupkit.checkpoint.hashing import content_hash
from soupkit.errors import TaskError
from soupkit.identity import digest
from soupkit.task.classifier import Classifier
from soupkit.task.weights import load_weights


class ClipClassifier(nn.Module):
    """logits = s · W f + b of the features f of an image (Wortsman et al. 2022, arXiv:2203.05482).

    The tensors are those of the CLIP model that its tower comes from, and of the head. Parts of CLIP that
    have no say in the logits take part in nothing; they are carried along.
    """

    def __init__(self, clip: nn.Module, form: Classifier) -> None:
        super().__init__()
        parts: dict[str, nn.Parameter | nn.Module] = dict(clip.named_parameters(recurse=False))
        parts |= dict(clip.named_children())
        strange = sorted(set(form.parts) - parts.keys())
        if strange:
            raise TaskError(f"a classifier has the part {strange[0]!r}, its CLIP model has none")
        for name, part in parts.items():  # in CLIP's own order, which is that of a saved state dict
            if name == TOWER or name in form.parts:
                setattr(self, name, part.requires_grad_(name not in form.resting))
        self.classification_head = linear(form)
        self.form, self.num_classes = form, form.num_classes
        self.pretrained_cfg = {"classifier": HEAD}
        """As timm's models say which layer a linear probe trains."""

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] → logits [N, classes]."""
        scale = self.get_parameter("logit_scale") if self.form.logit_scale else None
        return logits_of(self.get_submodule(TOWER), images, self.classification_head, self.form, scale)


class UnderHead(nn.Module):
    """A CLIP model under a head that is none of its weights, and does not change.

    clip: what the checkpoint is of, a CLIP model or a classifier, whose own head is passed over.
    """

    def __init__(self, clip: nn.Module, form: Classifier, tensors: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        self.clip, self.form, self.num_classes = clip, form, form.num_classes
        self.above = linear(form).requires_grad_(False)
        load_weights(self.above, {name.removeprefix(f"{HEAD}."): array for name, array in tensors.items()})
        self.fingerprint = digest(form.to_json(), content_hash(tensors, threads=1))

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] → logits [N, classes]."""
        scale = self.clip.get_parameter("logit_scale") if self.form.logit_scale else None
        return logits_of(self.clip.get_submodule(TOWER), images, self.above, self.form, scale)


def linear(form: Classifier) -> nn.Linear:
    """A fresh head: W as torch draws it, b = 0."""
    head = nn.Linear(form.num_features, form.num_classes, bias=form.bias)
    if form.bias:
        nn.init.zeros_(head.bias)
    return head


def logits_of(
    tower: nn.Module, images: Tensor, head: nn.Linear, form: Classifier, scale: Tensor | None
) -> Tensor:
    """Images [N, C, H, W] → s · W f + b, [N, classes], with f divided by its norm where the form says so."""
    features = tower(images)
    features = features[0] if isinstance(features, tuple) else features
    if form.normalize:
        features = nn.functional.normalize(features, dim=-1)
    logits: Tensor = head(features if scale is None else scale.exp() * features)
    return logits
