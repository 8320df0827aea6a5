"""mergekit's methods in soupkit's words: names, parameters, what they need, and where the definitions
differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from soupkit.recipe.mergekit.values import Kind


@dataclass(frozen=True)
class Parameter:
    """A parameter of mergekit's: what soupkit calls it ("" where it changes nothing), its type, and its
    default.

    own: it may be said under a model; otherwise mergekit reads it from a slice or the whole file alone.
    default None: soupkit's own, which is the same. factor: soupkit's number over mergekit's.
    """

    ours: str
    kind: Kind = "number"
    own: bool = False
    required: bool = False
    default: float | None = None
    factor: float = 1


@dataclass(frozen=True)
class Method:
    """One of mergekit's methods.

    base: whether base_model is needed, may be given, or is one model like the others ("ignored"). base_first:
    soupkit takes it as the first reference, not as --base. least, most: how many models are merged, the base
    apart where it is not ignored. notes: where the definitions differ.
    """

    command: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    base: Literal["required", "optional", "ignored"] = "required"
    base_first: bool = False
    least: int = 1
    most: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def required(self) -> tuple[str, ...]:
        """The parameters without a default."""
        return tuple(name for name, parameter in self.parameters.items() if parameter.required)


_COUNT = "soupkit keeps round(density · n) entries of a tensor, mergekit int(density · n): at most one more"
_OUTLIERS = "soupkit rounds the number of largest entries too, mergekit cuts it off"
_RESCALE = "soupkit rescales by the probability, as published; mergekit restores each tensor's L1 norm"
_RANDOM = "the draws are soupkit's own (--seed); mergekit's come from torch's global generator"
_CANCEL = "where signs cancel exactly soupkit elects none, mergekit plus"
_INERT = Parameter("", "boolean")
_WEIGHT = Parameter("weight", own=True, required=True)
_DENSITY = Parameter("density", own=True, default=1.0)
_GAMMA = Parameter("gamma", own=True, default=0.01)
_EPSILON = Parameter("epsilon", own=True, default=0.15, factor=2)


def _on_base(*, normalize: bool, **more: Parameter) -> dict[str, Parameter]:
    """What all of mergekit's sums of task vectors take."""
    return {
        "weight": _WEIGHT,
        "normalize": Parameter("normalize", "boolean", default=normalize),
        "lambda": Parameter("lambda", default=1.0),
        "int8_mask": _INERT,
        **more,
    }


_RANDOMLY = {"density": _DENSITY, "rescale": Parameter("rescale", "boolean")}
_UNSCALED = {"density": _DENSITY, "rescale": _INERT}

METHODS: dict[str, Method] = {
    "linear": Method(
        "merge weighted",
        {
            "weight": Parameter("coefficient", own=True, required=True),
            "normalize": Parameter("normalize", "boolean", default=True),
        },
        base="ignored",
    ),
    "slerp": Method(
        "merge slerp",
        {"t": Parameter("t", required=True)},
        base_first=True,
        most=1,
        notes=(
            "mergekit takes the straight line where |cos| > 0.9995, soupkit only where both are equal "
            "numerically",
        ),
    ),
    "nuslerp": Method(
        "merge nuslerp",
        {
            "weight": _WEIGHT,
            "nuslerp_flatten": Parameter("rows", "boolean"),
            "nuslerp_row_wise": _INERT,
        },
        base="optional",
        least=2,
        most=2,
    ),
    "multislerp": Method(
        "merge multislerp",
        {"weight": _WEIGHT, "normalize_weights": _INERT, "eps": Parameter("")},
        base="optional",
    ),
    "karcher": Method(
        "merge karcher",
        {
            "max_iter": Parameter("iterations", "integer", default=10),
            "tol": Parameter("tolerance", default=1e-5),
        },
        base="ignored",
    ),
    "task_arithmetic": Method(
        "merge task-arithmetic",
        _on_base(normalize=False, density=Parameter("", own=True), rescale=_INERT),
    ),
    "ties": Method("merge ties", _on_base(normalize=True, **_UNSCALED), notes=(_COUNT, _CANCEL)),
    "dare_linear": Method(
        "merge dare-linear", _on_base(normalize=False, **_RANDOMLY), notes=(_RANDOM, _RESCALE)
    ),
    "dare_ties": Method(
        "merge dare-ties", _on_base(normalize=False, **_RANDOMLY), notes=(_RANDOM, _RESCALE, _CANCEL)
    ),
    "della_linear": Method(
        "merge della-linear",
        _on_base(normalize=False, epsilon=_EPSILON, **_RANDOMLY),
        notes=(_RANDOM, _RESCALE),
    ),
    "della": Method(
        "merge della-ties",
        _on_base(normalize=True, epsilon=_EPSILON, **_RANDOMLY),
        notes=(_RANDOM, _RESCALE, _CANCEL),
    ),
    "breadcrumbs": Method(
        "merge breadcrumbs", _on_base(normalize=False, gamma=_GAMMA, **_UNSCALED), notes=(_COUNT, _OUTLIERS)
    ),
    "breadcrumbs_ties": Method(
        "merge breadcrumbs-ties",
        _on_base(normalize=False, gamma=_GAMMA, **_UNSCALED),
        notes=(_COUNT, _OUTLIERS, _CANCEL),
    ),
    "model_stock": Method("merge model-stock", {"filter_wise": Parameter("rows", "boolean")}, least=2),
    "sce": Method(
        "merge sce",
        {"select_topk": Parameter("density", default=1.0), "int8_mask": _INERT},
        notes=("soupkit counts k over all entries of a tensor, mergekit over those with any variance",),
    ),
    "nearswap": Method("merge nearswap", {"t": Parameter("t", required=True)}, most=1),
    "arcee_fusion": Method(
        "merge fusion",
        base_first=True,
        most=1,
        notes=("soupkit's quartiles are exact, mergekit's of a random sample",),
    ),
    "ram": Method("merge ram", {"epsilon": Parameter("epsilon", default=1e-5)}),
    "ramplus_tl": Method(
        "merge ram-plus",
        {
            "epsilon": Parameter("epsilon", default=1e-5),
            "r": Parameter("gain", default=0.1),
            "alpha": Parameter("clip", default=0.2),
        },
    ),
    "passthrough": Method(
        "merge passthrough", {"scale": Parameter("scale", own=True)}, base="ignored", most=1
    ),
}
