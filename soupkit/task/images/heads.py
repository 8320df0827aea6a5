"""Which head a CLIP model is under: a learned one of its own, one of class names, or that of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from soupkit.asked import Begins, Runs
from soupkit.checkpoint.config.classifier import HEAD, SECTION, head_shape, parts_of
from soupkit.checkpoint.formats.convert import read_pickled
from soupkit.checkpoint.formats.foreign import is_pickled
from soupkit.checkpoint.reference import local_path, open_checkpoint
from soupkit.errors import TaskError
from soupkit.task.classifier import Classifier
from soupkit.task.images.classifier import UnderHead, linear
from soupkit.task.images.models import build, build_tokenizer, open_clip_config
from soupkit.task.images.zero_shot import ZeroShotClassifier
from soupkit.task.spec import HeadSpec, ModelSpec, parse_head
from soupkit.task.weights import arrays, load_weights, to_numpy

if TYPE_CHECKING:
    from soupkit.checkpoint.source import Source

Tensors = Mapping[str, np.ndarray]


def judged(spec: ModelSpec, class_names: Sequence[str], recipe: Runs) -> torch.nn.Module:
    """An open_clip model under the head that it is judged with. Raises TaskError where there is no such head,
    or for data of another number of classes."""
    own, asked = Classifier.of(spec.config), parse_head(recipe.head) if recipe.head else None
    if asked is None and own is None:
        asked = HeadSpec("zero-shot")
    if asked is not None and asked.kind == "file":
        form, tensors = read_head(asked)
        _check_features(form, spec)
        model: torch.nn.Module = UnderHead(build(spec), form, tensors)
    elif asked is not None and asked.kind == "zero-shot":
        if asked.options:
            raise TaskError("a zero-shot head is of normalised features, has no bias and is scaled")
        return zero_shot(spec, class_names, recipe)
    elif own is None or (asked is not None and own.given(asked.options) != own):
        raise TaskError(
            f"{spec.name} has no such head: --head {recipe.head}",
            hint="a fresh head is learned by soupkit finetune; --head FILE takes one from elsewhere",
        )
    else:
        form, model = own, build(spec)
    if form.num_classes != len(class_names):
        raise TaskError(
            f"{spec.name} tells {form.num_classes} classes apart, the data has {len(class_names)}",
            hint="score it on the data that it was trained for, or fine-tune it: soupkit finetune --base …",
        )
    return model


def zero_shot(spec: ModelSpec, class_names: Sequence[str], recipe: Runs) -> ZeroShotClassifier:
    """CLIP under the head that its text tower makes of class names; a learned head is carried along."""
    own, clip = Classifier.of(spec.config), build(without_head(spec))
    if own is not None:
        lacking = set(parts_of(clip.state_dict())) - set(own.parts)
        if lacking:
            raise TaskError(
                f"{spec.name} has no text tower to make a head of class names: {', '.join(sorted(lacking))}",
                hint="leave --head out: its own head is a learned one",
            )
        clip.add_module(HEAD, linear(own))
    tokenize = build_tokenizer(spec)
    return ZeroShotClassifier(clip, tokenize, class_names=class_names, templates=recipe.templates)


def begun(
    base: Source | None,
    spec: ModelSpec,
    class_names: tuple[str, ...],
    recipe: Begins,
    *,
    device: torch.device,
) -> tuple[ModelSpec, Tensors]:
    """What a training begins with: the model, and the head where that is not the base's or a random one.

    zero-shot: W is what class names come to in the base's text tower, times exp(logit_scale), and b = 0, as
    published (Wortsman et al. 2021, arXiv:2109.01903, §3); then it learns with the tower. linear: a fresh one
    from torch's global generator. Cost of zero-shot: one pass of all prompts, on `device`. Raises TaskError.
    """
    own, asked = Classifier.of(spec.config), parse_head(recipe.head) if recipe.head else None
    if asked is None and own is None:
        if recipe.text_tower == "drop":
            raise TaskError(
                "without a learned head there is nothing to say which text tower could be dropped",
                hint="--head zero-shot starts a CLIP model's head from the text tower, and trains it",
            )
        return spec, {}
    if spec.library == "timm":
        raise TaskError(f"--head is for open_clip models; timm's {spec.name} has a head of its own")
    width = int(open_clip_config(spec)["model_cfg"]["embed_dim"])
    tensors: Tensors = {}
    form = replace(own or Classifier(1, width), num_classes=len(class_names), class_names=())
    names = base.slots if base is not None else build(without_head(spec)).state_dict()
    if asked is not None and asked.kind == "file":
        form, tensors = read_head(asked)
        _check_features(form, spec)
    elif asked is not None:
        form = replace(form, templates=()).given(asked.options)
        tensors = _named(arrays(linear(form)))
    if form.num_classes != len(class_names):
        raise TaskError(f"{recipe.head} has {form.num_classes} classes, the data has {len(class_names)}")
    if asked is not None and asked.kind == "zero-shot":
        form = replace(form, templates=recipe.templates)
        made = _of_class_names(base, spec, class_names, recipe, scaled=not form.logit_scale, device=device)
        tensors = {**tensors, f"{HEAD}.weight": made}
    parts = tuple(part for part in parts_of(names) if recipe.text_tower == "keep" or part == "logit_scale")
    parts = parts if form.logit_scale or recipe.text_tower == "keep" else ()
    form = replace(form, class_names=class_names, parts=parts)
    form.check()
    return replace(spec, config=open_clip_config(spec) | {SECTION: form.to_json()}, kwargs={}), tensors


def read_head(asked: HeadSpec) -> tuple[Classifier, Tensors]:
    """A head from a checkpoint, a safetensors file or a pickle: its form and its tensors.

    The form is what lies beside it says, or that of the published files: of normalised features. Raises
    ReferenceError, CheckpointError, TaskError.
    """
    path = local_path(asked.file)
    held = _pickled(path) if path.is_file() and is_pickled(path) else open_checkpoint(asked.file)
    own = None if isinstance(held, dict) else Classifier.of(held.config)
    prefix = f"{HEAD}." if f"{HEAD}.weight" in held else ""
    if f"{prefix}weight" not in held:
        raise TaskError(f"{asked.file} holds no {HEAD}.weight and no weight", hint="name a file with a head")
    found = _named({n: held[prefix + n] for n in ("weight", "bias") if prefix + n in held})
    num_classes, width = head_shape({name: array.shape for name, array in found.items()})
    form = own or Classifier(num_classes, width, bias=f"{HEAD}.bias" in found)
    form = replace(form, parts=("logit_scale",)).given(asked.options)
    if form.bias:
        found.setdefault(f"{HEAD}.bias", np.zeros(num_classes, found[f"{HEAD}.weight"].dtype))
    return form, {name: found[name] for name in found if form.bias or not name.endswith("bias")}


def _of_class_names(
    base: Source | None,
    spec: ModelSpec,
    class_names: Sequence[str],
    recipe: Begins,
    *,
    scaled: bool,
    device: torch.device,
) -> np.ndarray:
    """The class embeddings [C, E] that the base's text tower makes, times its logit scale where `scaled`."""
    if base is None:
        raise TaskError(
            "a zero-shot head of random weights says nothing", hint="give --base, or --head linear"
        )
    model = zero_shot(without_head(spec), class_names, recipe)
    load_weights(model.clip, {name: base[name] for name in base if not name.startswith(f"{HEAD}.")})
    model.to(device).rebuild_head()
    scale = model.clip.get_parameter("logit_scale").exp() if scaled else 1.0
    return to_numpy((model.head * scale).T.contiguous())


def without_head(spec: ModelSpec) -> ModelSpec:
    """The CLIP model that a classifier's tower is of."""
    return replace(spec, config={key: value for key, value in spec.config.items() if key != SECTION})


def _check_features(form: Classifier, spec: ModelSpec) -> None:
    width = open_clip_config(spec)["model_cfg"]["embed_dim"]
    if form.num_features != width:
        raise TaskError(f"a head of {form.num_features} features, but {spec.name} makes {width}")


def _pickled(path: Path) -> dict[str, np.ndarray]:
    found = read_pickled(path).tensors
    return {name: to_numpy(each) for name, each in found.items() if isinstance(each, torch.Tensor)}


def _named(tensors: Tensors) -> dict[str, np.ndarray]:
    return {f"{HEAD}.{name}": array for name, array in tensors.items()}
