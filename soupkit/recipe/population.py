"""Recipe of `soupkit train-population`."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

from soupkit.errors import RecipeError
from soupkit.recipe.averages import AveragingOptions, check_averaging
from soupkit.recipe.fields import option
from soupkit.recipe.shared import BatchNormOptions, DataOptions, ModelOptions, OutputOptions
from soupkit.recipe.train import TrainOptions

Method = Literal["papa", "papa-all", "papa-2", "pair-75", "many-half", "many-75", "random", "greedy", "none"]
PAIRED = ("papa-2", "pair-75")
PUBLISHED_DECAY = 0.99


@dataclass(frozen=True, kw_only=True)
class ExchangeOptions:
    """How members learn from each other."""

    method: Method = option(
        "papa",
        help="papa pulls every member towards the mean; the others replace members after an epoch: papa-all "
        "by the mean, papa-2 by means of random pairs, pair-75 by ¾ + ¼ of pairs, many-half and many-75 by ½ "
        "or ¾ of themselves and the others, random by random weights, greedy by a greedy soup; none leaves "
        "them alone",
    )
    decay: float | None = option(
        None, help="what a member keeps of itself in a pull; 0.99 with papa, else no pulls"
    )
    average_every: int = option(10, help="updates between pulls towards the mean")
    lr_scaling: Literal["linear", "sqrt", "none"] = option(
        "linear", help="pulls weaken as the learning rate falls: in proportion, as its root, or not"
    )
    async_average: int = option(
        0, help="updates that a pull may come late, so that ranks need not wait; 0: none"
    )
    merge_every: int = option(5, help="epochs between the replacements of members")
    merge_first: bool = option(True, help="replace members after the first epoch too")
    merge_range: tuple[float, ...] = option(
        (0.0, 1.0), help="share of the training in which members are replaced"
    )
    align: bool = option(
        False,
        help="permute the members' units to match before they are mixed; their optimizers' state is not",
    )
    repair: Literal["off", "forward", "scale", "closed", "bn"] = option(
        "off",
        help="give children the statistics of their parents (REPAIR), measured on --bn-batches "
        "training batches",
    )
    tournament: bool = option(False, help="pairs are drawn by fitness on held-out data: p ∝ 1/loss")
    selection: bool = option(
        False, help="the fittest of parents and children live on, by loss on held-out data"
    )
    elitism: float = option(
        0.6, help="with selection: share of the next members that are the fittest; others by lot"
    )
    num_children: int = option(6, help="with selection: children per member and generation")
    mutation_sigma: float = option(0.0, help="noise on children: this by the generation's number; 0: none")
    mutation_normalize: bool = option(False, help="noise is a share of each tensor's root mean square")


@dataclass(frozen=True, kw_only=True)
class StateOptions:
    """How training goes on after an interruption."""

    resume: bool = option(True, help="continue an unfinished run in --out; --no-resume starts anew")
    save_every: int = option(0, help="updates between saved states; 0: by --save-minutes alone")
    save_minutes: float = option(10.0, help="minutes between saved states; 0: by --save-every alone")


@dataclass(frozen=True, kw_only=True)
class TrainPopulation(
    OutputOptions,
    ExchangeOptions,
    StateOptions,
    TrainOptions,
    AveragingOptions,
    DataOptions,
    BatchNormOptions,
    ModelOptions,
):
    """Train a population of models that learn from each other's weights (PAPA), and make its soups.

    Members have their own data order, augmentation and regularisation; lists such as --mixup 0,0.5,1 give
    each member one combination. A killed run continues with the same command. With torchrun, members are
    spread over the ranks. Averages (EMA, SWA) are kept of each member and written beside it.

    Example: soupkit train-population --model timm:test_resnet,img_size=32 --data digits --epochs 20 --out
    runs/papa
    """

    base: str | None = option(
        None, help="checkpoint that every member starts from; without it, random weights"
    )
    num_members: int = option(5, help="members")
    same_init: bool = option(False, help="all members start from the same random weights")
    seed: int = option(1, help="seed of initialisation, data order, augmentation and averaging")
    epochs: int = option(20, help="epochs")
    batch_size: int = option(64, help="examples per update and per forward pass")
    optimizer: str = option(
        "momentum", help="any optimizer of timm's factory: momentum (SGD), sgd (Nesterov), adamw, …"
    )
    lr: float = option(0.1, help="learning rate")
    min_lr: float = option(1e-4, help="learning rate at the end of the cosine")
    warmup_epochs: float = option(0.0, help="epochs of linear warmup; at most half of the training")
    weight_decay: float = option(1e-4, help="weight decay")
    mixup: tuple[float, ...] = option((0.0,), help="mixup α of the members, a list to combine")
    label_smoothing: tuple[float, ...] = option((0.0,), help="label smoothing, a list to combine")
    cutmix: tuple[float, ...] = option((0.0,), help="CutMix α, a list to combine")
    random_erasing: tuple[float, ...] = option(
        (0.0,), help="probability of random erasing, a list to combine"
    )
    rand_augment: int = option(0, help="RandAugment operations per image, N; 0 is off")
    rand_augment_magnitude: int = option(9, help="RandAugment magnitude M, 0 to 9")
    linear_probe: float = option(
        0.0, help="share of the training, at its start, in which only the head learns"
    )
    stem: Literal["native", "small"] = option(
        "native",
        help="small: images are enlarged by the stride of the model's stem, so that its first stage sees "
        "their own resolution, as with a CIFAR stem, in an architecture that timm still loads; needs "
        "img_size in --model",
    )
    ranks_per_member: int = option(
        0, help="ranks that share the batches of one member; 0: as many as there are"
    )
    vectorize: Literal["auto", "on", "off"] = option(
        "auto",
        help="members of a rank as one vectorised model (torch.func); auto: on a GPU, where the model "
        "allows it",
    )
    threads: int = option(0, help="threads of torch on the CPU; 0 takes every core")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_averaging(self)
        if self.posthoc_sigma:
            raise RecipeError(
                "a population keeps no snapshots for post-hoc EMA", hint="--ema-decay, or soupkit finetune"
            )
        for name, holds, expected in self._rules():
            if not holds:
                raise RecipeError(f"{name} is {getattr(self, name)}, expected {expected}")
        if self.tournament and self.method not in PAIRED:
            raise RecipeError(
                f"tournament chooses pairs, but method {self.method} has none", hint="--method papa-2"
            )
        if (self.selection or self.mutation_sigma) and not self.merges:
            raise RecipeError(f"selection and mutation need children, but method {self.method} makes none")
        if (self.align or self.repair != "off") and not self.merges:
            raise RecipeError(
                f"align and repair come with the replacement of members, but method {self.method} has none",
                hint="--method papa-all, papa-2, …",
            )
        if self.method == "greedy" and self.selection:
            raise RecipeError(
                "method greedy makes one child, so there is nothing to select", hint="leave one out"
            )

    @property
    def pulls(self) -> float:
        """1 − α: how far a member is pulled towards the mean at the full learning rate; 0 when it is not."""
        decay = PUBLISHED_DECAY if self.decay is None and self.method == "papa" else self.decay
        return 0.0 if decay is None else 1 - decay

    @property
    def judges(self) -> bool:
        """Whether held-out data choose among members while they are trained."""
        return self.method == "greedy" or self.tournament or self.selection

    @property
    def merges(self) -> bool:
        """Whether members are replaced after epochs."""
        return self.method not in ("papa", "none")

    def _rules(self) -> list[tuple[str, bool, str]]:
        low, high = self.merge_range if len(self.merge_range) == 2 else (1.0, 0.0)
        lists = ("mixup", "label_smoothing", "cutmix", "random_erasing")
        return [
            ("num_members", self.num_members >= 1, "at least 1"),
            ("seed", self.seed >= 0, "0 or more"),
            ("decay", self.decay is None or 0 <= self.decay <= 1, "between 0 and 1"),
            ("average_every", self.average_every >= 1, "at least 1"),
            ("async_average", 0 <= self.async_average < self.average_every, "less than average_every"),
            ("merge_every", self.merge_every >= 1, "at least 1"),
            ("merge_range", 0 <= low < high <= 1, "two shares of the training, 0 <= from < to <= 1"),
            ("elitism", 0 <= self.elitism <= 1, "a share"),
            ("num_children", self.num_children >= 1, "at least 1"),
            ("mutation_sigma", 0 <= self.mutation_sigma < inf, "0 or more"),
            ("linear_probe", 0 <= self.linear_probe < 1, "a share of the training, less than 1"),
            ("ranks_per_member", self.ranks_per_member >= 0, "0 or more"),
            ("save_every", self.save_every >= 0, "0 or more"),
            ("save_minutes", 0 <= self.save_minutes < inf, "0 or more"),
            *((name, bool(getattr(self, name)), "at least one value") for name in lists),
        ]
