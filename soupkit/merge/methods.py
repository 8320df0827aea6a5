"""The table of methods that need a function per tensor: what each reads, takes, and costs.

The functions are generators over the pieces of one tensor (see pieces.py); per_tensor.py does all the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from soupkit.checkpoint.dtypes import Array
from soupkit.errors import RecipeError
from soupkit.merge.families import (
    between,
    breadcrumbs,
    dare,
    della,
    model_stock,
    sce,
    spherical,
    statistics,
    task_arithmetic,
    ties,
)

PIECE = "a piece of 32,768 elements per ingredient and thread"
CUT = "a piece, and up to 8 MB per thread to find the cut"
ROW = "a piece, or one row where that is longer"


@dataclass(frozen=True)
class Parameter:
    """A number that a method takes: one for each ingredient, or one for all; between low and high."""

    per_ingredient: bool = False
    low: float = -float("inf")
    high: float = float("inf")
    above_low: bool = False
    kind: type = float

    def check(self, name: str, value: float) -> None:
        """Raise RecipeError for a value out of range."""
        if not self.low <= value <= self.high or (self.above_low and value == self.low) or value != value:
            opening = "(" if self.above_low else "["
            raise RecipeError(f"{name} is {value:g}, expected a number in {opening}{self.low:g}, {self.high:g}]")


@dataclass(frozen=True)
class MergeMethod:
    """One method of merging.

    function(pieces, **parameters) yields merged values. reads: what the pieces hold: weights, or task vectors (weights
    minus base). base: whether there is one; with "optional", task vectors are read when it is given. random: takes
    `draws`. pieces: "stratum" (any size), "row" (whole rows) or "tensor". statistics: takes per-ingredient statistics
    files, as "pieces" of the same shapes or as whole "arrays". inputs: least and most, without the base. mean: the
    weights are divided by their sum.
    """

    name: str
    function: Callable[..., Iterator[Array]]
    paper: str
    memory: str
    reads: Literal["weights", "task_vectors"] = "task_vectors"
    base: Literal["required", "optional", "none"] = "required"
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    random: bool = False
    pieces: Literal["stratum", "row", "tensor"] = "stratum"
    statistics: Literal["pieces", "arrays"] | None = None
    inputs: tuple[int, int | None] = (1, None)
    order_matters: bool = False
    mean: bool = False

    @property
    def scales(self) -> bool:
        """Whether λ multiplies the merged task vector."""
        return self.reads == "task_vectors" and self.base == "required"


WEIGHT = Parameter(per_ingredient=True)
SHARE = Parameter(per_ingredient=True, low=0)
DENSITY = Parameter(per_ingredient=True, low=0, high=1, above_low=True)
FLAG = Parameter(low=0, high=1, kind=bool)
FRACTION = Parameter(per_ingredient=True, low=0, high=1)
COUNT = Parameter(low=1, kind=int)
_LINEAR = {"weight": WEIGHT, "normalize": FLAG}
_SPARSE = _LINEAR | {"density": DENSITY}
_RANDOM = _SPARSE | {"rescale": FLAG}

METHODS: dict[str, MergeMethod] = {
    method.name: method
    for method in (
        MergeMethod(
            "linear",
            task_arithmetic.linear,
            "Wortsman et al. 2022",
            PIECE,
            reads="weights",
            base="none",
            parameters=_LINEAR,
        ),
        MergeMethod(
            "slerp",
            spherical.slerp,
            "Shoemake 1985",
            PIECE,
            reads="weights",
            base="none",
            parameters={"t": Parameter(), "rows": FLAG},
            inputs=(2, 2),
            order_matters=True,
        ),
        MergeMethod(
            "nuslerp",
            spherical.nuslerp,
            "Goddard 2024 (mergekit)",
            PIECE,
            base="optional",
            parameters={"weight": WEIGHT, "rows": FLAG},
            inputs=(2, 2),
            mean=True,
        ),
        MergeMethod(
            "multislerp",
            spherical.multislerp,
            "Goddard 2024",
            PIECE,
            base="optional",
            parameters={"weight": WEIGHT},
            mean=True,
        ),
        MergeMethod(
            "karcher",
            spherical.karcher,
            "Karcher 1977",
            PIECE,
            base="optional",
            parameters={"weight": SHARE, "iterations": COUNT, "tolerance": Parameter(low=0)},
            mean=True,
        ),
        MergeMethod(
            "task-arithmetic", task_arithmetic.task_arithmetic, "Ilharco et al. 2023", PIECE, parameters=_LINEAR
        ),
        MergeMethod("ties", ties.ties, "Yadav et al. 2023", CUT, parameters=_SPARSE),
        MergeMethod("dare-linear", dare.dare_linear, "Yu et al. 2024", PIECE, parameters=_RANDOM, random=True),
        MergeMethod("dare-ties", dare.dare_ties, "Yu et al. 2024", PIECE, parameters=_RANDOM, random=True),
        MergeMethod(
            "della-linear",
            della.della_linear,
            "Deep et al. 2024",
            ROW,
            parameters=_RANDOM | {"epsilon": FRACTION},
            random=True,
            pieces="row",
        ),
        MergeMethod(
            "della-ties",
            della.della_ties,
            "Deep et al. 2024",
            ROW,
            parameters=_RANDOM | {"epsilon": FRACTION},
            random=True,
            pieces="row",
        ),
        MergeMethod(
            "breadcrumbs",
            breadcrumbs.breadcrumbs,
            "Davari & Belilovsky 2023",
            CUT,
            parameters=_SPARSE | {"gamma": FRACTION},
        ),
        MergeMethod(
            "breadcrumbs-ties",
            breadcrumbs.breadcrumbs_ties,
            "Davari & Belilovsky 2023",
            CUT,
            parameters=_SPARSE | {"gamma": FRACTION},
        ),
        MergeMethod(
            "model-stock",
            model_stock.model_stock,
            "Jang et al. 2024",
            PIECE,
            parameters={"rows": FLAG},
            inputs=(2, None),
        ),
        MergeMethod(
            "sce",
            sce.sce,
            "Wan et al. 2024",
            CUT,
            parameters={"density": Parameter(low=0, high=1, above_low=True), "normalize": FLAG},
        ),
        MergeMethod(
            "consensus",
            task_arithmetic.consensus,
            "Wang et al. 2024",
            PIECE,
            parameters=_LINEAR | {"threshold": Parameter(low=0), "agree": COUNT},
        ),
        MergeMethod(
            "tall-mask",
            task_arithmetic.tall_mask,
            "Wang et al. 2024",
            PIECE,
            parameters={"task": Parameter(low=0, kind=int), "threshold": Parameter(low=0)},
            inputs=(2, None),
            order_matters=True,
        ),
        MergeMethod(
            "nearswap", between.nearswap, "alchemonaut 2024", PIECE, parameters={"t": Parameter(low=0)}, inputs=(1, 1)
        ),
        MergeMethod(
            "fusion",
            between.fusion,
            "Arcee 2025",
            f"{ROW}; up to 8 MB per thread to find the quartiles",
            reads="weights",
            base="none",
            parameters={"fence": Parameter()},
            pieces="row",
            inputs=(2, 2),
            order_matters=True,
        ),
        MergeMethod(
            "passthrough",
            task_arithmetic.scaled,
            "Goddard 2023 (mergekit)",
            PIECE,
            reads="weights",
            base="none",
            parameters={"scale": Parameter()},
            inputs=(1, 1),
        ),
        MergeMethod(
            "fisher",
            statistics.fisher,
            "Matena & Raffel 2022",
            f"{PIECE}, twice",
            reads="weights",
            base="none",
            parameters={"weight": SHARE, "floor": Parameter(low=0, above_low=True)},
            statistics="pieces",
            mean=True,
        ),
        MergeMethod(
            "regmean",
            statistics.regmean,
            "Jin et al. 2023",
            "one tensor and its Gram matrix per ingredient",
            reads="weights",
            base="none",
            parameters={"weight": SHARE, "shrink": Parameter(low=0, high=1)},
            pieces="tensor",
            statistics="arrays",
            mean=True,
        ),
    )
}
