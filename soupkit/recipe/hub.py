"""Recipes of the commands that bring checkpoints in and send them out."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from soupkit.errors import RecipeError, brief
from soupkit.recipe.fields import argument, option
from soupkit.recipe.shared import ClassOptions, OutputOptions


@dataclass(frozen=True, kw_only=True)
class Convert(OutputOptions, ClassOptions):
    """Turn pickles and other programs' checkpoints into checkpoint directories, or into torch's own.

    Reads pickles (.pt, .pth, .pth.tar, .bin, .ckpt), and all that merges read where it lies: folders of
    torch.distributed.checkpoint, DeepSpeed ZeRO, files of ranks, .npz and .pkl.

    Nothing in a pickle is ever run. Several files become OUT/NAME each, and OUT can be merged as it is.

    Example: soupkit convert model_best.pth.tar --model timm:resnet50 --out runs/resnet50

    Example: soupkit convert epoch=9.ckpt --strip model. --out runs/lightning

    Example: soupkit convert soups/greedy --to dcp --out soups/greedy-dcp

    Example: soupkit convert 'model_*.pt' --model open_clip:ViT-B-32-quickgelu --out checkpoints
    """

    refs: tuple[str, ...] = argument(
        help="files, directories with one, shard indexes, globs, or Hub repositories"
    )
    model: str | None = option(
        None,
        help="timm:NAME[,key=value] or open_clip:NAME: check the weights against it and write its "
        "configuration; a CLIP image tower with a classification_head needs it, unless its shapes tell",
    )
    head: str | None = option(
        None,
        help="what the classification_head of a CLIP model is given, normalize=false,logit_scale=true; "
        "default: normalised features and no scale, as in the published files",
    )
    key: str | None = option(
        None,
        help="where in the file the weights are, as in state_dict or ema.model, at any depth; . is the "
        "file itself",
    )
    prefer: Literal["auto", "ema", "raw"] = option(
        "auto", help="averaged (EMA) weights or the others, when a file has both; auto takes the averaged"
    )
    empty: Literal["error", "keep"] = option(
        "error", help="empty tensors in the place of weights, as one process of a sharded training saves them"
    )
    strip: tuple[str, ...] = option(
        (), help="prefix to take off tensor names; module. and _orig_mod. go by themselves"
    )
    drop: tuple[str, ...] = option((), help="leave out tensors whose names begin with this")
    rename: tuple[str, ...] = option(
        (), help=r"change names as sed does: 's/^encoder\.(\d+)\./layers.\1./'; with g behind, every match"
    )
    ignore: tuple[str, ...] = option(
        (), help="full name of a class that only holds settings: it is left out, never imported"
    )
    to: Literal["safetensors", "dcp"] = option(
        "safetensors",
        help="what to write; dcp is a folder that torch.distributed.checkpoint.load reads, and takes "
        "safetensors too",
    )
    max_shard_size: str = option("50GB", help="start a new shard when a file would grow beyond this")
    threads: int = option(0, help="worker threads; 0 takes every core")

    def __post_init__(self) -> None:
        if not self.refs:
            raise RecipeError("no file is given", hint="name the files to convert")
        for text in self.rename:
            parse_rename(text)
        if self.to == "dcp" and self.max_shard_size != Convert.max_shard_size:
            raise RecipeError("max_shard_size is for safetensors", hint="leave it out with --to dcp")
        if self.model is not None and not self.model.startswith(("timm:", "open_clip:")):
            raise RecipeError(
                f"model is {self.model!r}, expected timm:NAME or open_clip:NAME",
                hint="for example timm:resnet50",
            )


@dataclass(frozen=True, kw_only=True)
class Export(OutputOptions):
    """Write a CLIP classifier in the form that other programs load.

    timm: a vision transformer with the head folded into one layer, where features are not normalised.
    open-clip: the CLIP model without the head. state-dict: a model.pt under the names of the published files.

    Example: soupkit export soups/greedy --to state-dict --out soups/greedy-pt
    """

    ref: str = argument(help="a checkpoint of an image tower of CLIP under a learned head")
    to: Literal["timm", "open-clip", "state-dict"] = option(help="which form")
    text_tower: str | None = option(
        None, help="with open-clip, a checkpoint that has the text tower, where this one has none"
    )
    threads: int = option(0, help="worker threads; 0 takes every core")

    def __post_init__(self) -> None:
        if self.text_tower is not None and self.to != "open-clip":
            raise RecipeError(f"--text-tower has no part in --to {self.to}", hint="leave it out")


@dataclass(frozen=True, kw_only=True)
class Pull:
    """Download checkpoints from the Hugging Face Hub: only the weights that soupkit reads, and their
    configuration.

    Merges do this by themselves; pull does it ahead of time, or makes a plain directory.

    Example: soupkit pull org/name org/other@v2 --out checkpoints
    """

    refs: tuple[str, ...] = argument(help="repositories: org/name[@revision][:subfolder]")
    out: Path | None = option(
        None, help="directory to copy to, one folder per checkpoint when there are several"
    )
    overwrite: bool = option(False, help="replace an earlier output of soupkit in --out")
    dry_run: bool = option(False, help="check everything, print the plan, download no weights")
    threads: int = option(0, help="worker threads; 0 takes every core")


@dataclass(frozen=True, kw_only=True)
class Push:
    """Upload a checkpoint directory to the Hugging Face Hub; run it again to continue after an interruption.

    The weights are checked against the manifest first, so that what is published is what was scored.

    Example: soupkit push soups/greedy org/greedy-soup --private
    """

    directory: Path = argument(help="a checkpoint directory")
    repository: str = argument(help="org/name, made when there is none")
    private: bool = option(False, help="make a new repository private")
    pr: bool = option(False, help="open a pull request")
    revision: str | None = option(None, help="branch to write to; default: main")
    message: str | None = option(None, help="commit message")
    dry_run: bool = option(False, help="check everything, list the files, upload nothing")
    threads: int = option(0, help="worker threads; 0 takes every core")


def parse_rename(text: str) -> Callable[[str], str]:
    """`s/PATTERN/REPLACEMENT/` as a function of names: the first match, every one with a `g` behind; any
    other sign may stand for the slash. Raises RecipeError."""
    parts = text[2:].split(text[1]) if len(text) > 3 and text[0] == "s" else []
    try:
        if len(parts) != 3 or parts[2] not in ("", "g"):
            raise ValueError("is not of the form s/PATTERN/REPLACEMENT/")
        pattern, count = re.compile(parts[0]), int(parts[2] != "g")
        pattern.sub(parts[1], "")
    except (ValueError, re.error, IndexError) as error:
        raise RecipeError(
            f"rename {brief(text)}: {error}", hint=r"for example 's/^encoder\.(\d+)\./layers.\1./'"
        ) from None
    return lambda name: pattern.sub(parts[1], name, count=count)
