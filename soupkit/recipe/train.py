"""Recipes of the commands that train."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Literal

from soupkit.errors import RecipeError
from soupkit.recipe.averages import AveragingOptions, check_averaging
from soupkit.recipe.fields import argument, option
from soupkit.recipe.shared import DataOptions, ModelOptions, OutputOptions


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How one model is trained; of this only the optimizer may vary within a sweep."""

    optimizer: str = option("adamw", help="any optimizer of timm's factory: adamw, sgd, …")
    momentum: float = option(0.9, help="momentum, where the optimizer has one")
    schedule: Literal["cosine", "multistep", "constant"] = option(
        "cosine", help="learning rate after the warmup"
    )
    milestones: tuple[float, ...] = option((0.5, 0.75), help="with multistep: shares of the training, rising")
    decay_rate: float = option(0.1, help="with multistep: factor on the learning rate at every milestone")
    warmup_epochs: float = option(1.0, help="epochs of linear warmup; at most half of the training")
    warmup_steps: int | None = option(
        None, help="updates of linear warmup, instead of epochs; at most half of the training"
    )
    min_lr: float = option(0.0, help="learning rate at the end of the cosine")
    clip_grad: float = option(0.0, help="clip the gradient's norm; 0 does not")
    amp: Literal["auto", "off", "bfloat16", "float16"] = option(
        "auto", help="mixed precision; auto: bfloat16 on CUDA"
    )
    crop_scale: tuple[float, ...] = option((0.7, 1.0), help="area of the random resized crop, from,to")
    hflip: float | None = option(
        None, help="probability of a horizontal flip; default 0.5, and 0 for characters"
    )
    text_tower: Literal["keep", "drop"] = option(
        "keep", help="what becomes of the text tower of a CLIP model with a learned head, which has no say"
    )

    def __post_init__(self) -> None:
        low, high = self.crop_scale if len(self.crop_scale) == 2 else (0.0, 0.0)
        _require(
            0 < low <= high <= 1, "crop_scale", self.crop_scale, "two shares of the area, 0 < from <= to <= 1"
        )
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "0 or more and less than 1")
        _require(0 <= self.warmup_epochs < inf, "warmup_epochs", self.warmup_epochs, "0 or more")
        _require(
            self.warmup_steps is None or self.warmup_steps >= 0,
            "warmup_steps",
            self.warmup_steps,
            "0 or more",
        )
        _require(0 <= self.min_lr < inf, "min_lr", self.min_lr, "0 or more")
        _require(0 <= self.clip_grad < inf, "clip_grad", self.clip_grad, "0 or more")
        rising = list(self.milestones) == sorted(self.milestones) and all(
            0 < share < 1 for share in self.milestones
        )
        _require(rising, "milestones", self.milestones, "shares between 0 and 1, rising")
        _require(0 < self.decay_rate <= 1, "decay_rate", self.decay_rate, "above 0, up to 1")
        _require(self.hflip is None or 0 <= self.hflip <= 1, "hflip", self.hflip, "a probability")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What is kept and shown of a run beside its weights."""

    snapshot_every: int = option(
        0,
        help="also write the weights of every so-manieth epoch, into OUT/snapshots; 0 writes the last alone",
    )
    tensorboard: Path | None = option(
        None, help="write TensorBoard event files into this directory, as training goes"
    )


@dataclass(frozen=True, kw_only=True)
class Finetune(OutputOptions, TrainOptions, AveragingOptions, RunOptions, DataOptions, ModelOptions):
    """Train one model, from a checkpoint or from random weights.

    Example: soupkit finetune --model timm:test_resnet --data glyphs --epochs 6 --out runs/base
    """

    base: str | None = option(None, help="checkpoint to start from; without it, --model with random weights")
    lr: float = option(1e-4, help="learning rate")
    weight_decay: float = option(0.05, help="weight decay")
    epochs: int = option(10, help="epochs; 0 writes what training would begin with")
    mixup: float = option(0.0, help="mixup α, the parameter of its Beta distribution; 0 is off")
    cutmix: float = option(0.0, help="CutMix α; 0 is off")
    label_smoothing: float = option(0.0, help="label smoothing")
    random_erasing: float = option(0.0, help="probability of random erasing")
    rand_augment: int = option(0, help="RandAugment operations per image, N; 0 is off")
    rand_augment_magnitude: int = option(9, help="RandAugment magnitude M, 0 to 9")
    layer_decay: float | None = option(None, help="factor on the learning rate per layer, from the head down")
    trainable: Literal["all", "head"] = option(
        "all", help="train everything, or the head alone on features that stay as they are (a linear probe)"
    )
    seed: int = option(0, help="seed of initialisation, data order and augmentation")
    threads: int = option(0, help="threads of torch on the CPU; 0 takes every core")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_averaging(self)
        if self.base is None and self.model is None:
            raise RecipeError("neither a base nor a model is given", hint="--base DIR, or --model timm:NAME")
        _require(
            0 < self.lr < inf and self.lr >= self.min_lr,
            "lr",
            self.lr,
            f"above 0 and at least min_lr {self.min_lr}",
        )
        _require(0 <= self.weight_decay < inf, "weight_decay", self.weight_decay, "0 or more")
        _require(self.epochs >= 0, "epochs", self.epochs, "0 or more")
        averages = self.ema_decay is not None or self.swa_start is not None or bool(self.posthoc_sigma)
        _require(self.epochs > 0 or not averages, "epochs", self.epochs, "at least 1 for averages")
        _require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        _require(0 <= self.mixup < inf, "mixup", self.mixup, "0 or more")
        _require(0 <= self.cutmix < inf, "cutmix", self.cutmix, "0 or more")
        _require(
            0 <= self.label_smoothing < 1,
            "label_smoothing",
            self.label_smoothing,
            "0 or more and less than 1",
        )
        _require(0 <= self.random_erasing <= 1, "random_erasing", self.random_erasing, "a probability")
        _require(self.rand_augment >= 0, "rand_augment", self.rand_augment, "0 or more")
        magnitude = self.rand_augment_magnitude
        _require(0 <= magnitude <= 9, "rand_augment_magnitude", magnitude, "0 to 9")
        _require(
            self.layer_decay is None or 0 < self.layer_decay <= 1,
            "layer_decay",
            self.layer_decay,
            "above 0, up to 1",
        )
        _require(self.seed >= 0, "seed", self.seed, "0 or more")
        _require(self.snapshot_every >= 0, "snapshot_every", self.snapshot_every, "0 or more")


@dataclass(frozen=True, kw_only=True)
class FinetuneSweep(OutputOptions, TrainOptions, AveragingOptions, RunOptions, DataOptions, ModelOptions):
    """Fine-tune one base many times with drawn hyper-parameters: the ingredients of a soup.

    A drawn option is a number, or a range: log(1e-5,1e-3), uniform(0,0.1), int(4,16), choice(0,0.1,0.2); it
    may depend on others: 'log(1e-5,1e-3) if optimizer=adamw else log(1e-3,1e-1)'. Finished runs are skipped;
    a killed sweep continues; a run that diverges or whose worker dies is trained again.

    Example: soupkit finetune-sweep base --data digits --num-runs 12 --lr 'log(1e-4,1e-2)' --out runs/sweep
    """

    base: str = argument(help="checkpoint that every run starts from")
    num_runs: int = option(12, help="runs; with --draw grid, at most this many of the grid (0: all of it)")
    draw: Literal["random", "sobol", "grid"] = option("random", help="how hyper-parameters are drawn")
    seed: int = option(0, help="seed of the draws; run i trains with seed + i unless --run-seed draws it")
    jobs: int = option(
        1,
        help="runs at a time, each in its own process with one thread; 0: one per core, or per CPU of "
        "the Ray cluster",
    )
    retries: int = option(
        2,
        help="how often a run is trained again: with half the learning rate when it diverged, as it is "
        "when it died",
    )
    ray: str | None = option(
        None,
        help="train on a Ray cluster: its address, auto, or local to start one here (pip install "
        "'soupkit[ray]')",
    )
    lp_epochs: int = option(
        0, help="first train the head alone for so many epochs, once; every run starts from there (LP-FT)"
    )
    lp_lr: float = option(1e-3, help="learning rate of that linear probe")
    resume: bool = option(True, help="skip finished runs; --no-resume --overwrite trains all of them again")
    plots: bool = option(
        True, help="draw hyper_parameters.png: each hyper-parameter against the held-out score"
    )
    lr: str = option("log(1e-5,1e-3)", help="learning rate")
    weight_decay: str = option("log(1e-4,0.5)", help="weight decay")
    epochs: str = option("int(4,16)", help="epochs")
    mixup: str = option("0", help="mixup α; 0 is off")
    cutmix: str = option("0", help="CutMix α; 0 is off")
    label_smoothing: str = option("choice(0,0.1)", help="label smoothing")
    random_erasing: str = option("0", help="probability of random erasing")
    rand_augment: str = option("0", help="RandAugment operations per image, N; 0 is off")
    rand_augment_magnitude: str = option("9", help="RandAugment magnitude M, 0 to 9")
    layer_decay: str = option("none", help="factor on the learning rate per layer; none is off")
    optimizer: str = option("adamw", help="any optimizer of timm's factory, or choice(adamw,sgd,…)")
    run_seed: str = option("none", help="seed of each run; none: seed + run number")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_averaging(self)
        _require(self.jobs >= 0, "jobs", self.jobs, "0 or more")
        _require(self.retries >= 0, "retries", self.retries, "0 or more")
        _require(self.lp_epochs >= 0, "lp_epochs", self.lp_epochs, "0 or more")
        _require(0 < self.lp_lr < inf, "lp_lr", self.lp_lr, "above 0")


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise RecipeError(f"{name} is {value}, expected {expected}")
