"""Averages of weights along training (EMA, SWA), and the recipes that average checkpoints of a trajectory."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, sqrt
from pathlib import Path
from typing import Literal

from soupkit.errors import RecipeError
from soupkit.recipe.fields import argument, option
from soupkit.recipe.shared import (
    DataOptions,
    HubOptions,
    ModelOptions,
    OutputOptions,
    RememberOptions,
    ScoreOptions,
    WeightOptions,
)

FLATTEST = 1 / sqrt(12)
"""The relative width of the plain mean of all weights."""
SHAPES = ("uniform", "linear", "minus-sqrt", "cosine", "power", "ema", "bema")
"""Of `merge trajectory`; any other is a file."""


@dataclass(frozen=True, kw_only=True)
class AveragingOptions:
    """Averages that are kept while a model is trained, and written beside it: OUT/ema, OUT/swa,
    OUT/posthoc."""

    ema_decay: float | None = option(
        None, help="keep an exponential moving average with this decay, such as 0.999"
    )
    ema_gamma: float | None = option(
        None, help="warm the decay up: at most 1 − (1 + t/γ)^(−p) after t updates; 1 is usual, none is off"
    )
    ema_power: float = option(2 / 3, help="p of the warmup")
    ema_every: int = option(1, help="updates between two averagings")
    ema_start: int = option(0, help="updates before the average begins")
    ema_switch_every: int = option(
        0, help="write the average back into the model every so many updates (Switch EMA); 0 never"
    )
    ema_ignore: tuple[str, ...] = option(
        (), help="regular expression of names that are not averaged; repeat for more"
    )
    swa_start: float | None = option(
        None, help="keep the mean of the weights (SWA) from this share of the epochs on, such as 0.75"
    )
    swa_lr: float | None = option(None, help="learning rate from swa_start on; none keeps the schedule")
    swa_anneal_epochs: float = option(
        1.0, help="epochs in which the learning rate moves to swa_lr, along a cosine"
    )
    swa_every: int = option(0, help="updates between two averagings; 0: one at the end of each epoch")
    posthoc_sigma: tuple[float, ...] = option(
        (), help="keep power-function EMAs of these relative widths, such as 0.05,0.1, for merge posthoc-ema"
    )
    posthoc_every: int = option(1, help="epochs between two snapshots of them")
    average_buffers: Literal["auto", "average", "copy", "refresh"] = option(
        "auto",
        help="batch-norm statistics of an average: averaged too, the model's, or re-estimated on training "
        "data; auto: averaged with EMA, re-estimated with SWA",
    )
    average_device: Literal["model", "cpu"] = option(
        "model", help="where averages are kept: cpu spares a GPU's memory"
    )
    average_async: bool = option(
        False, help="average beside the next batch: on a CUDA stream, or in a thread"
    )


def check_averaging(recipe: AveragingOptions) -> None:
    """Raise RecipeError for options that are out of range, or that would do nothing."""
    decay, gamma, start = recipe.ema_decay, recipe.ema_gamma, recipe.swa_start
    _require(decay is None or 0 <= decay < 1, "ema_decay", decay, "0 or more and less than 1")
    _require(gamma is None or 0 < gamma < inf, "ema_gamma", gamma, "above 0")
    _require(0 < recipe.ema_power < inf, "ema_power", recipe.ema_power, "above 0")
    _require(recipe.ema_every >= 1, "ema_every", recipe.ema_every, "at least 1")
    for name in ("ema_start", "ema_switch_every", "swa_every"):
        _require(getattr(recipe, name) >= 0, name, getattr(recipe, name), "0 or more")
    _require(
        start is None or 0 <= start < 1,
        "swa_start",
        start,
        "a share of the epochs, 0 or more and less than 1",
    )
    _require(recipe.swa_lr is None or 0 < recipe.swa_lr < inf, "swa_lr", recipe.swa_lr, "above 0")
    _require(0 <= recipe.swa_anneal_epochs < inf, "swa_anneal_epochs", recipe.swa_anneal_epochs, "0 or more")
    _require(recipe.posthoc_every >= 1, "posthoc_every", recipe.posthoc_every, "at least 1")
    for sigma in recipe.posthoc_sigma:
        _require(0 < sigma < FLATTEST, "posthoc_sigma", sigma, f"widths above 0 and below {FLATTEST:.4f}")
    _check_used(recipe)


def _check_used(recipe: AveragingOptions) -> None:
    ema = ("ema_gamma", "ema_every", "ema_start", "ema_switch_every", "ema_ignore")
    swa = ("swa_lr", "swa_every")
    for needed, names in (("ema_decay", ema), ("swa_start", swa)):
        for name in names:
            unused = getattr(recipe, name) != type(recipe).__dataclass_fields__[name].default
            if getattr(recipe, needed) is None and unused:
                raise RecipeError(
                    f"{name} is {getattr(recipe, name)}, but {needed} is not given",
                    hint=f"--{needed.replace('_', '-')} turns the average on",
                )


@dataclass(frozen=True, kw_only=True)
class TrajectoryOptions:
    """Which checkpoints of one training are averaged, and in which order."""

    refs: tuple[str, ...] = argument(
        help="checkpoints of one training, first to last: directories, globs, snapshot directories, "
        "Hub revisions"
    )
    order: Literal["given", "number", "text"] = option(
        "given",
        help="as given, what a glob or folder holds by its numbers (900 before 1000); all by the last number "
        "in their names; all as text",
    )
    bn: Literal["average", "refresh", "last"] = option(
        "average",
        help="batch-norm statistics: averaged alike, re-estimated on training data, or the last checkpoint's",
    )
    bn_batches: int = option(20, help="training batches for --bn refresh")


@dataclass(frozen=True, kw_only=True)
class MergeSwa(OutputOptions, TrajectoryOptions, WeightOptions, HubOptions, DataOptions, ModelOptions):
    """Average the checkpoints of one training: SWA after the fact.

    Example: soupkit merge swa 'runs/long/epoch-*' --start 15 --bn refresh --data digits --out soups/swa
    """

    start: int = option(0, help="checkpoints to leave out before the first that counts")
    every: int = option(1, help="take every so-manieth checkpoint from there on, the last of each stretch")

    def __post_init__(self) -> None:
        _require(self.start >= 0, "start", self.start, "0 or more")
        _require(self.every >= 1, "every", self.every, "at least 1")


@dataclass(frozen=True, kw_only=True)
class MergeEma(OutputOptions, TrajectoryOptions, WeightOptions, HubOptions, DataOptions, ModelOptions):
    """Exponential moving average over the checkpoints of one training, the last weighing most.

    Example: soupkit merge ema 'org/model@step{1000..9000..1000}' --decay 0.8 --stream --out soups/ema
    """

    decay: float = option(0.9, help="share that the average keeps from one checkpoint to the next")
    gamma: float | None = option(None, help="warm the decay up: at most 1 − (1 + t/γ)^(−p); none is off")
    power: float = option(2 / 3, help="p of the warmup")
    start: int = option(0, help="checkpoints to leave out before the first that counts")
    every: int = option(1, help="take every so-manieth checkpoint from there on")

    def __post_init__(self) -> None:
        _require(0 <= self.decay < 1, "decay", self.decay, "0 or more and less than 1")
        _require(self.gamma is None or 0 < self.gamma < inf, "gamma", self.gamma, "above 0")
        _require(0 < self.power < inf, "power", self.power, "above 0")
        _require(self.start >= 0, "start", self.start, "0 or more")
        _require(self.every >= 1, "every", self.every, "at least 1")


@dataclass(frozen=True, kw_only=True)
class MergePosthocEma(OutputOptions, TrajectoryOptions, WeightOptions, HubOptions, DataOptions, ModelOptions):
    """Synthesise an EMA of any length from the snapshots that --posthoc-sigma kept during training, which are
    on disk.

    Example: soupkit merge posthoc-ema runs/long/posthoc --sigma-rel 0.08 --out soups/ema-0.08
    """

    sigma_rel: float = option(
        help="width of the wanted EMA as a share of the training until then, such as 0.08; 0.2887 is "
        "the plain mean"
    )
    at: int | None = option(
        None, help="the update at which the EMA is wanted; default: that of the last snapshot"
    )

    def __post_init__(self) -> None:
        _require(
            0 < self.sigma_rel < FLATTEST, "sigma_rel", self.sigma_rel, f"above 0 and below {FLATTEST:.4f}"
        )
        _require(self.at is None or self.at >= 1, "at", self.at, "at least 1")


@dataclass(frozen=True, kw_only=True)
class MergeTrajectory(
    OutputOptions,
    WeightOptions,
    HubOptions,
    DataOptions,
    ModelOptions,
    ScoreOptions,
    RememberOptions,
):
    """Average the checkpoints of one training in place of a learning-rate decay: WSM, PMA, LAWA, EMA, BEMA,
    SWAD.

    Members are the numbered checkpoints in the folder of a training, or what directories, globs, snapshot
    directories and Hub revisions name; their steps are read from trainer_state.json, soupkit.json or names.
    Every --window is combined with every --shape, all from one read of the checkpoints. Several need either
    data, and then the best on held-out is written, or --write all.

    A window is from one step to another (40k..880k, 40k..), of shares of the steps (50%..100%), of tokens
    (1Btok..2Btok, with --tokens-per-step), the last ones (last10), or swad (with --losses). A shape is the
    mean (uniform); the decay that is simulated: linear, minus-sqrt, cosine, power (1 − s^p), or a FILE of
    lines `share-of-window learning-rate`; or an average: ema, bema.

    Example: soupkit merge trajectory runs/long --window 50%.. --window last5 --shape uniform --shape
    minus-sqrt --data digits --out soups/decayed
    """

    refs: tuple[str, ...] = argument(help="folder of a training, or checkpoints")
    window: tuple[str, ...] = option(("..",), help="40k..880k, 50%.., last10, swad; repeatable")
    shape: tuple[str, ...] = option(("uniform",), help="linear, minus-sqrt, cosine, ema, …")
    half_life: str | None = option(
        None, help="of ema: steps (20k), a share of the window (10%) or tokens (2Btok) in which weights halve"
    )
    debias: bool = option(False, help="ema begins as zero and is divided by what it has seen")
    power: float | None = option(None, help="p of the shape power")
    bema: tuple[float, ...] = option(
        (0.5, 0.2, 10.0), help="powers of bema's average and of its correction, and its lag"
    )
    tokens_per_step: float | None = option(
        None, help="tokens of one step, for windows and half-lives in tokens"
    )
    losses: Path | None = option(
        None, help="validation losses for the window swad: lines `step loss`, or a trainer_state.json"
    )
    swad: tuple[float, ...] = option(
        (3, 6, 1.3),
        help="swad begins at the least of so many losses, ends before so many above so many times it",
    )
    write: Literal["best", "all"] = option(
        "best", help="write the best on held-out data, or each as OUT/SHAPE-FIRST-LAST"
    )
    optimizer: bool = option(
        False,
        help="also merge the optimizer states beside the weights (optimizer.pt, optimizer.bin), and copy the "
        "rest of the last checkpoint's training state, so that training can go on",
    )
    bn: Literal["average", "refresh", "last"] = option(
        "average",
        help="batch-norm statistics: averaged alike, re-estimated on training data, or the last checkpoint's",
    )
    bn_batches: int = option(20, help="training batches for --bn refresh")
    test: bool = option(True, help="report the written soup on the test split too")
    plots: bool = option(True, help="draw coefficients.png and windows.png")

    def __post_init__(self) -> None:
        for name in ("window", "shape"):
            values = getattr(self, name)
            _require(bool(values), name, "empty", "at least one")
            _require(len(set(values)) == len(values), name, ", ".join(values), "each once")
        _require(self.power is None or 0 < self.power < inf, "power", self.power, "above 0")
        _require(len(self.bema) == 3 and min(self.bema) > 0, "bema", self.bema, "three numbers above 0")
        tokens = self.tokens_per_step
        _require(tokens is None or 0 < tokens < inf, "tokens_per_step", tokens, "above 0")
        _require(_is_swad(self.swad), "swad", self.swad, "two whole numbers above 0, and a factor above 1")
        self._check_used()

    def _check_used(self) -> None:
        """Nothing that was given is without effect."""
        defaults = type(self).__dataclass_fields__
        for name, where, needed in (
            ("half_life", "shape", "ema"),
            ("debias", "shape", "ema"),
            ("power", "shape", "power"),
            ("bema", "shape", "bema"),
            ("losses", "window", "swad"),
            ("swad", "window", "swad"),
        ):
            if getattr(self, name) != defaults[name].default and needed not in getattr(self, where):
                raise RecipeError(f"{name} is given, but no --{where} {needed}", hint=f"--{where} {needed}")
        for name, where in (("half_life", "ema"), ("power", "power")):
            if where in self.shape and getattr(self, name) is None:
                raise RecipeError(f"shape {where} needs {name}", hint=f"--{name.replace('_', '-')} says it")
        if "swad" in self.window and self.losses is None:
            raise RecipeError("window swad needs losses", hint="--losses FILE gives one per step")
        if self.bn == "refresh" and not self.data:
            raise RecipeError("--bn refresh needs --data", hint="name the data, or use --bn average")


def _is_swad(values: tuple[float, ...]) -> bool:
    return len(values) == 3 and all(each >= 1 and each == int(each) for each in values[:2]) and values[2] > 1


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise RecipeError(f"{name} is {value}, expected {expected}")
