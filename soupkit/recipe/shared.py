"""Options that mean the same in every command that has them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from soupkit.errors import RecipeError
from soupkit.recipe.fields import option
from soupkit.recipe.parse import whole_number

Metric = Literal["top1", "top5", "nll", "ece"]
MISMATCH = (
    "configurations that give the same weights another meaning (heads, activation, order of classes or "
    "tokens): refuse, or go on with a warning"
)
BLOCKS = "which tensors share a coefficient: global (all), tensor (none), layer, or a number of parameters"


def check_blocks(blocks: str) -> None:
    """Raise RecipeError for a word or number that means no division into blocks."""
    if blocks not in ("global", "tensor", "layer") and not whole_number(blocks):
        raise RecipeError(
            f"blocks is {blocks!r}, expected global, tensor, layer or a number of parameters",
            hint="--blocks tensor gives every tensor its own coefficients",
        )


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where a result goes."""

    out: Path = option(help="directory to write; it exists whole or not at all")
    overwrite: bool = option(False, help="replace an earlier output of soupkit in --out")
    dry_run: bool = option(False, help="check everything, print the plan, write nothing")


@dataclass(frozen=True, kw_only=True)
class WeightOptions:
    """How weights are combined and written."""

    dtype: Literal["auto", "float64", "float32", "float16", "bfloat16"] = option(
        "auto",
        help="dtype of the written floating tensors; auto keeps what the ingredients agree on, else the "
        "wider",
    )
    max_shard_size: str = option("50GB", help="start a new shard when a file would grow beyond this")
    integers: Literal["auto", "first", "max", "zero", "error"] = option(
        "auto",
        help="what becomes of integer and boolean tensors that differ (they are never averaged): auto takes "
        "the largest of counters (numbers and vectors, such as num_batches_tracked) and refuses tables and "
        "bytes, which may be codes; first, max (of booleans: any) and zero (the whole tensor) are for all; "
        "error refuses all",
    )
    non_finite: Literal["error", "keep"] = option(
        "error", help="refuse a result with NaN or infinity, or keep it"
    )
    accumulate: Literal["float64", "float32"] = option("float64", help="precision of the sums")
    mismatch: Literal["error", "warn"] = option("error", help=MISMATCH)
    sha256: bool = option(
        False, help="also record the SHA-256 of every weight file (slower than the merge itself)"
    )
    threads: int = option(0, help="worker threads; 0 takes every core")


@dataclass(frozen=True, kw_only=True)
class HubOptions:
    """How checkpoints of the Hugging Face Hub are read."""

    stream: bool = option(
        False, help="read checkpoints of the Hub by ranges while merging: none is stored, for a small disk"
    )


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which examples: train fits, held-out selects, test reports."""

    data: str | None = option(
        None,
        help="digits, glyphs, a directory of images by class, or a name of timm's dataset factory "
        "(torch/cifar10, wds/…, hfds/…, tfds/…)",
    )
    data_dir: Path | None = option(None, help="where timm's dataset factory keeps the data set")
    download: bool = option(False, help="let the dataset factory download")
    num_train: int | None = option(None, help="use only this many training examples")
    num_held_out: int | None = option(None, help="held-out examples; default 10 % of the training split")
    num_test: int | None = option(None, help="use only this many test examples")
    split_seed: int = option(0, help="seed of the train / held-out / test split")
    strict_data: bool = option(
        False, help="refuse checkpoints that were fitted to these held-out or test examples"
    )
    batch_size: int = option(128, help="examples per forward pass")
    workers: int = option(0, help="processes that decode images")


@dataclass(frozen=True, kw_only=True)
class ClassOptions:
    """What the classes are called."""

    class_names: tuple[str, ...] = option(
        (),
        help="names of the classes, in order, for the head of a CLIP model; default: the data set's",
    )

    @property
    def has_names(self) -> bool:
        """Whether any are given."""
        return bool(self.class_names)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(ClassOptions):
    """What the weights are weights of, and where it runs."""

    model: str | None = option(
        None,
        help="timm:NAME[,key=value] or open_clip:NAME, when the checkpoint directory does not say "
        "(config.json, open_clip_config.json)",
    )
    device: str = option("auto", help="auto, cpu, cuda or cuda:i")
    head: str | None = option(
        None,
        help="of an open_clip model: zero-shot (class names through its text tower), linear (a learned one; "
        "training starts a fresh one), or a checkpoint or file with one, with ,normalize=false, "
        ",bias=false or ,logit_scale=true where it is so; default: the checkpoint's own, else zero-shot",
    )
    templates: tuple[str, ...] = option(
        ("a photo of a {}.",), help="prompt templates of the zero-shot head of a CLIP model"
    )


@dataclass(frozen=True, kw_only=True)
class BatchNormOptions:
    """Batch-norm statistics lie outside the span of the weights."""

    bn: Literal["average", "refresh", "keep"] = option(
        "average",
        help="batch-norm statistics of a soup: their average, re-estimated on training data, or the "
        "first ingredient's",
    )
    bn_batches: int = option(20, help="training batches for --bn refresh")


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """What is called better."""

    metric: str | None = option(
        None,
        help="top1 (the default), top5, nll or ece; with --score-command, a key of its JSON or the "
        "number's name",
    )
    direction: Literal["auto", "max", "min"] = option(
        "auto",
        help="which way is better; auto knows it by the metric's name; a score without a name is "
        "better when higher",
    )
    score_command: str | None = option(
        None,
        help="external scorer, run without a shell: '{checkpoint}' is replaced, the last line is the score",
    )
    score_timeout: float = option(3600.0, help="seconds that the external scorer may take")


@dataclass(frozen=True, kw_only=True)
class RememberOptions:
    """What may come from earlier runs. It is remembered under the content of all that it depends on."""

    cache: bool = option(
        True,
        help="remember scores and predictions, and take those of earlier runs; see soupkit cache. --no-cache "
        "where a scorer depends on what is not seen: a server, files that it finds by itself",
    )
    fresh_scores: bool = option(False, help="compute every score anew, and remember it")


@dataclass(frozen=True, kw_only=True)
class DropOptions:
    """Leaving out the best, to see what is left without them."""

    drop_top: int = option(0, help="leave out this many of the best checkpoints, by --by: a removal study")
    by: str = option("held_out.top1", help="the metric for --drop-top, as manifests record it: split.metric")
    by_direction: Literal["auto", "max", "min"] = option("auto", help="which way is better for --by")
