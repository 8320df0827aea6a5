"""Recipes of the merges that work on one tensor at a time and need no data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from soupkit.recipe.fields import argument, option
from soupkit.recipe.merge import REFS
from soupkit.recipe.shared import MISMATCH, OutputOptions, WeightOptions


@dataclass(frozen=True, kw_only=True)
class TensorOptions:
    """What may differ from tensor to tensor, and between the shapes of the checkpoints."""

    set: tuple[str, ...] = option(
        (),
        help="options per tensor, 'PATTERN: {option: VALUE}' such as 'layers.*.mlp: {weight: [0.2, 0.8]}'; a list is a "
        "gradient over the layers, {0: VALUE} speaks of the first checkpoint; repeat for more, later ones win",
    )
    embedding: Literal["error", "pad", "intersect"] = option(
        "error", help="vocabularies of different sizes: refuse, extend to the largest, or cut to the smallest"
    )


@dataclass(frozen=True, kw_only=True)
class MethodRecipe(OutputOptions, WeightOptions, TensorOptions):
    """A merge by a method of the table; METHOD is its name there."""

    METHOD: ClassVar[str]

    refs: tuple[str, ...] = argument(help=REFS + ", LoRA adapters (PEFT directories, alone or as MODEL+ADAPTER)")
    layers: tuple[str, ...] = option(
        (),
        help="START:STOP of the layers to merge, which become a model of that depth; one for all checkpoints, or one "
        "for each and then the base's; several with commas between them are stacked; default: all layers",
    )
    stack: str | None = option(None, help="what the layers' names begin with; default: where most layers are numbered")
    config_from: str | None = option(
        None, help="the checkpoint whose configuration, tokenizer and other files go along; default: the first"
    )


@dataclass(frozen=True, kw_only=True)
class MergeLinear(MethodRecipe):
    """Average checkpoints by weights, as `merge weighted` does, LoRA adapters and ranges of layers among them.

    Example: soupkit merge linear a b+adapter --weight 0.7,0.3 --out soups/linear
    """

    METHOD = "linear"

    weight: tuple[float, ...] = option((1.0,), help="one weight, or one per checkpoint")
    normalize: bool = option(True, help="divide by the sum of the weights")


@dataclass(frozen=True, kw_only=True)
class MergeSlerp(MethodRecipe):
    """Interpolate two checkpoints on the sphere: from A (t = 0) to B (t = 1).

    Example: soupkit merge slerp a b --t 0.3 --out soups/slerp
    """

    METHOD = "slerp"

    t: float = option(0.5, help="0 is the first checkpoint, 1 the second")
    rows: bool = option(False, help="rotate every row (output unit) by itself, instead of every tensor")


@dataclass(frozen=True, kw_only=True)
class MergeNuslerp(MethodRecipe):
    """Interpolate two checkpoints, or their task vectors, on the sphere by weights.

    Example: soupkit merge nuslerp a b --weight 0.7,0.3 --base base --out soups/nuslerp
    """

    METHOD = "nuslerp"

    base: str | None = option(None, help="interpolate the differences from this checkpoint")
    weight: tuple[float, ...] = option((1.0,), help="two weights; t is the second's share")
    rows: bool = option(False, help="rotate every row (output unit) by itself, instead of every tensor")


@dataclass(frozen=True, kw_only=True)
class MergeMultislerp(MethodRecipe):
    """Average the directions of checkpoints, or of task vectors, and their lengths.

    Example: soupkit merge multislerp a b c --weight 0.5,0.3,0.2 --out soups/multislerp
    """

    METHOD = "multislerp"

    base: str | None = option(None, help="average the differences from this checkpoint")
    weight: tuple[float, ...] = option((1.0,), help="one weight, or one per checkpoint")


@dataclass(frozen=True, kw_only=True)
class MergeKarcher(MethodRecipe):
    """Average checkpoints, or task vectors, on the sphere: the Karcher mean of their directions.

    Example: soupkit merge karcher a b c --out soups/karcher
    """

    METHOD = "karcher"

    base: str | None = option(None, help="average the differences from this checkpoint")
    weight: tuple[float, ...] = option((1.0,), help="one weight, or one per checkpoint")
    iterations: int = option(50, help="most steps of the fixed-point iteration")
    tolerance: float = option(1e-9, help="stop when a step is shorter than this many radians")


@dataclass(frozen=True, kw_only=True)
class MergeFusion(MethodRecipe):
    """Take the important differences of B into A, importance by change and divergence (Arcee Fusion).

    Example: soupkit merge fusion a b --out soups/fusion
    """

    METHOD = "fusion"

    fence: float = option(1.5, help="important is what lies above median + fence · interquartile range")


@dataclass(frozen=True, kw_only=True)
class MergeFisher(MethodRecipe):
    """Average checkpoints entry by entry, weighted by their Fisher information.

    Example: soupkit merge fisher a b --statistics a-fisher.safetensors --statistics b-fisher.safetensors --out soups/f
    """

    METHOD = "fisher"

    statistics: tuple[str, ...] = option(
        help="per checkpoint, the diagonal Fisher information: same names and shapes; repeat in the same order"
    )
    weight: tuple[float, ...] = option((1.0,), help="one weight, or one per checkpoint")
    floor: float = option(1e-6, help="least Fisher information of an entry")


@dataclass(frozen=True, kw_only=True)
class MergeRegmean(MethodRecipe):
    """Combine linear layers so that their outputs on each model's own inputs change least (RegMean).

    Example: soupkit merge regmean a b --statistics a-grams.safetensors --statistics b-grams.safetensors --out soups/r
    """

    METHOD = "regmean"

    statistics: tuple[str, ...] = option(
        help="per checkpoint, XᵀX of the inputs of linear layers, under the names of their weights; repeat in order"
    )
    weight: tuple[float, ...] = option((1.0,), help="one weight, or one per checkpoint")
    shrink: float = option(0.9, help="factor of the off-diagonal entries of XᵀX")


@dataclass(frozen=True, kw_only=True)
class MergePassthrough(MethodRecipe):
    """Stack ranges of layers into one deeper or shallower model (frankenmerge).

    What stands before the layers comes from the first checkpoint, what stands after from the last.

    Example: soupkit merge passthrough a b --layers 0:16 --layers 8:24 --out soups/deep
    """

    METHOD = "passthrough"

    layers: tuple[str, ...] = option(
        (), help="START:STOP of the layers to take, one per checkpoint, in their order; of one checkpoint, default: all"
    )
    scale: float = option(1.0, help="factor of every weight; --set 'o_proj: {scale: 0.5}' for some")


@dataclass(frozen=True, kw_only=True)
class MergeMergekit(OutputOptions):
    """Do what a mergekit YAML file describes, for the methods that soupkit has too.

    Example: soupkit merge mergekit config.yaml --out soups/like-mergekit
    """

    file: Path = argument(help="a mergekit configuration: YAML")
    models: Path | None = option(None, help="folder that relative model names are in; default: where you are")
    seed: int = option(0, help="for dare and della; mergekit's own draws cannot be repeated")
    mismatch: Literal["error", "warn"] = option("error", help=MISMATCH)
    max_shard_size: str = option("50GB", help="start a new shard when a file would grow beyond this")
    threads: int = option(0, help="worker threads; 0 takes every core")
