"""timm and open_clip models: built from what describes them, and described again for whoever loads the
weights next."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import timm.data
import torch
from timm.models import get_pretrained_cfg
from timm.models._hub import (
    save_config_for_hf,
)  # timm has no other public way to write a config.json without weights

import soupkit.task.images.cifar_models  # noqa: F401  (registers its models with timm)
from soupkit.errors import SoupkitError, TaskError
from soupkit.jsons import Json, JsonView
from soupkit.task.classifier import Classifier
from soupkit.task.images.classifier import ClipClassifier
from soupkit.task.images.transforms import ImageSettings
from soupkit.task.spec import OPEN_CLIP_CONFIG, TIMM_CONFIG, ModelSpec, describe, parse_model
from soupkit.task.weights import arrays, load_weights

__all__ = [
    "ModelSpec",
    "arrays",
    "build",
    "build_tokenizer",
    "describe",
    "image_settings",
    "load_weights",
    "open_clip_config",
    "parse_model",
    "write_config",
]


def build(spec: ModelSpec, *, num_classes: int | None = None) -> torch.nn.Module:
    """The model with random weights from torch's global generator, in eval mode, on the CPU; nothing is
    downloaded.

    num_classes: of a timm model's head; None takes the configuration's. Raises TaskError with the library's
    own words.
    """
    try:
        model = _build_timm(spec, num_classes) if spec.library == "timm" else _build_open_clip(spec)
    except SoupkitError:
        raise
    except Exception as error:  # factories raise whatever their models raise
        raise TaskError(
            f"{spec.library} cannot build {spec.name}: {_first_line(error)}", hint=_nearest(spec)
        ) from error
    _never_remember_weights(model)
    model.eval()
    return model


def _never_remember_weights(model: torch.nn.Module) -> None:
    """LeViT, TinyViT, EfficientViT and EfficientFormer keep attention biases between passes in eval mode.

    With other weights in place they would go on with those of the first.
    """
    for module in model.modules():
        if hasattr(module, "attention_bias_cache"):
            module.register_forward_pre_hook(_forget)


def _forget(module: torch.nn.Module, _inputs: object) -> None:
    module.attention_bias_cache = {}  # type: ignore[assignment]


def build_tokenizer(spec: ModelSpec) -> Any:
    """open_clip's tokenizer of `spec`: texts → int64[N, context]. Raises TaskError."""
    import open_clip  # a second of imports that timm models need not wait for

    length = spec.kwargs.get("context_length")
    try:
        if not spec.config:
            return open_clip.get_tokenizer(spec.name, context_length=length)
        if spec.directory is not None:
            return open_clip.get_tokenizer(f"local-dir:{spec.directory}", context_length=length)
        with _as_directory(OPEN_CLIP_CONFIG, spec.config) as directory:
            return open_clip.get_tokenizer(f"local-dir:{directory}", context_length=length)
    except Exception as error:
        raise TaskError(
            f"the tokenizer of {spec.name} cannot be loaded: {_first_line(error)}",
            hint="keep the tokenizer's files beside the weights",
        ) from error


def image_settings(model: torch.nn.Module, spec: ModelSpec) -> ImageSettings:
    """How images are shown to `model`: its own pretrained configuration, for its own number of channels."""
    return _open_clip_settings(model) if spec.library == "open_clip" else _timm_settings(model, spec)


def write_config(
    spec: ModelSpec,
    model: torch.nn.Module,
    directory: Path,
    *,
    class_names: Sequence[str] = (),
    settings: ImageSettings | None = None,
) -> None:
    """Write config.json or open_clip_config.json, so that timm or open_clip load `directory` by `local-dir:`.

    settings: how images were shown to it, where that is not the model's own configuration.
    """
    if spec.library == "open_clip":
        config = open_clip_config(spec) | {"preprocess_cfg": _preprocess(model, settings)}
    else:
        config = _timm_config(spec, model, class_names, settings or _timm_settings(model, spec))
    path = directory / (OPEN_CLIP_CONFIG if spec.library == "open_clip" else TIMM_CONFIG)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _build_timm(spec: ModelSpec, num_classes: int | None) -> torch.nn.Module:
    kwargs = dict(spec.kwargs)
    size = kwargs.pop("img_size", None)
    overlay = {}
    if size is not None or "in_chans" in kwargs:
        # The configuration's input_size makes timm pass img_size to the models that fix it, and only to
        # those.
        channels, *sides = _input_size(spec)
        sides = sides if size is None else [size, size] if isinstance(size, int) else list(size)
        overlay["input_size"] = (kwargs.get("in_chans", channels), *sides)
        if "img_size" in spec.config.get("model_args", {}):
            kwargs["img_size"] = tuple(sides)
    if num_classes is not None:
        kwargs["num_classes"] = num_classes
    if not spec.config:
        return _module(timm.create_model(spec.name, pretrained_cfg_overlay=overlay, **kwargs))
    with _as_directory(TIMM_CONFIG, spec.config) as directory:
        return _module(timm.create_model(f"local-dir:{directory}", pretrained_cfg_overlay=overlay, **kwargs))


def _build_open_clip(spec: ModelSpec) -> torch.nn.Module:
    import open_clip

    config = open_clip_config(spec)
    form = Classifier.of(config)
    with _as_directory(OPEN_CLIP_CONFIG, config) as directory, _quiet():
        clip = _module(
            open_clip.create_model(
                f"local-dir:{directory}", load_weights=False, pretrained_image=False, pretrained_text=False
            )
        )
    return ClipClassifier(clip, form) if form else clip


def _module(model: Any) -> torch.nn.Module:
    assert isinstance(model, torch.nn.Module)
    return model


def _input_size(spec: ModelSpec) -> tuple[int, int, int]:
    pretrained = spec.config.get("pretrained_cfg", spec.config)
    if "input_size" in pretrained:
        return tuple(pretrained["input_size"])
    registered = get_pretrained_cfg(spec.name)
    return tuple(registered.input_size) if registered is not None else (3, 224, 224)


def open_clip_config(spec: ModelSpec) -> Json:
    """open_clip_config.json of `spec`, with its options applied."""
    config = deepcopy(dict(spec.config))
    if not config:
        import open_clip

        architecture = open_clip.get_model_config(spec.name)
        if architecture is None:
            raise TaskError(f"open_clip has no model {spec.name!r}", hint=_nearest(spec))
        config = {"model_cfg": architecture, "preprocess_cfg": {}}
    for key, value in spec.kwargs.items():
        part, inner = {"img_size": ("vision_cfg", "image_size"), "context_length": ("text_cfg", key)}.get(
            key, ("", key)
        )
        (config["model_cfg"][part] if part else config["model_cfg"])[inner] = value
    return config


def _timm_settings(model: torch.nn.Module, spec: ModelSpec) -> ImageSettings:
    found = timm.data.resolve_model_data_config(model)
    told = {**spec.config.get("model_args", {}), **spec.kwargs}
    channels = getattr(model, "in_chans", None) or told.get("in_chans") or found["input_size"][0]
    return ImageSettings(
        input_size=(channels, *found["input_size"][1:]),
        mean=_per_channel(found["mean"], channels),
        std=_per_channel(found["std"], channels),
        interpolation=found["interpolation"],
        crop_pct=found["crop_pct"],
        crop_mode=found["crop_mode"],
    )


def _open_clip_settings(model: torch.nn.Module) -> ImageSettings:
    """open_clip's preprocess_cfg in timm's words; "border" pads with the mean colour, open_clip with
    black."""
    found: Json = model.visual.preprocess_cfg  # type: ignore[union-attr, assignment]
    size = found["size"]
    height, width = (size, size) if isinstance(size, int) else size
    modes = {"shortest": "center", "longest": "border", "squash": "squash"}
    return ImageSettings(
        input_size=(3, height, width),
        mean=tuple(found["mean"]),
        std=tuple(found["std"]),
        interpolation=found["interpolation"],
        crop_pct=1.0,
        crop_mode=modes[found["resize_mode"]],
    )


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def _timm_config(
    spec: ModelSpec, model: torch.nn.Module, class_names: Sequence[str], settings: ImageSettings
) -> Json:
    model_args = dict(spec.config.get("model_args", {})) | {
        k: v for k, v in spec.kwargs.items() if k != "img_size"
    }
    model_args.pop("img_size", None)  # timm records the one in force
    model_args.pop("num_classes", None)
    options = {"label_names": list(class_names)} if class_names else {}
    with TemporaryDirectory() as folder:
        path = Path(folder, TIMM_CONFIG)
        save_config_for_hf(model, path, options, model_args)
        config: Json = json.loads(path.read_text())
    pretrained = config["pretrained_cfg"]
    pretrained.update(settings.to_json())
    if "img_size" in spec.kwargs or "test_input_size" not in spec.config.get("pretrained_cfg", spec.config):
        for key in ("test_input_size", "test_crop_pct"):  # they speak of the weights in timm's registry
            pretrained.pop(key, None)
    return config


def _preprocess(model: torch.nn.Module, settings: ImageSettings | None) -> Json:
    found = dict(model.visual.preprocess_cfg)  # type: ignore[union-attr, arg-type]
    if settings is not None:
        modes = {"center": "shortest", "border": "longest", "squash": "squash"}
        found |= {"mean": settings.mean, "std": settings.std, "interpolation": settings.interpolation}
        found["resize_mode"] = modes[settings.crop_mode]
    return found


@contextmanager
def _as_directory(name: str, config: JsonView) -> Iterator[str]:
    """A directory with nothing but `config`, which is what the libraries' factories take."""
    with TemporaryDirectory(prefix="soupkit-") as directory:
        Path(directory, name).write_text(json.dumps(config), encoding="utf-8")
        yield directory


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep open_clip from warning on the root logger that random weights are random, and from configuring
    logging."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


def _nearest(spec: ModelSpec) -> str | None:
    import difflib

    import open_clip

    known = timm.list_models() if spec.library == "timm" else open_clip.list_models()
    near = [] if spec.name in known else difflib.get_close_matches(spec.name, known, n=3)
    return f"did you mean {', '.join(f'{spec.library}:{name}' for name in near)}?" if near else None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
