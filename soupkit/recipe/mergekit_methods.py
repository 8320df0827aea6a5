"""mergekit's methods in soupkit's words: names, parameters, defaults, and where the definitions differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Method:
    """One of mergekit's methods in soupkit's words.

    parameters: {mergekit's: soupkit's}; defaults: what mergekit takes where a file is silent; on_base: the base is not
    one of the models that are merged. notes: where the definitions differ.
    """

    command: str
    parameters: Mapping[str, str]
    defaults: Mapping[str, float] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    on_base: bool = True
    notes: tuple[str, ...] = ()


_COUNT = "soupkit keeps round(density · n) entries of a tensor, mergekit int(density · n): at most one more"
_RESCALE = "soupkit rescales by the probability, as published; mergekit restores each tensor's L1 norm"
_RANDOM = "the draws are soupkit's own (--seed); mergekit's come from torch's global generator"
_TASK = {"weight": "weight", "normalize": "normalize", "lambda": "lambda"}
_SUMS = {"normalize": 0.0, "lambda": 1.0}
_SPARSE = _TASK | {"density": "density"}
_DARE = _SPARSE | {"rescale": "rescale"}

METHODS: dict[str, Method] = {
    "linear": Method(
        "merge weighted",
        {"weight": "coefficient", "normalize": "normalize"},
        {"normalize": 1.0},
        required=("weight",),
        on_base=False,
    ),
    "slerp": Method(
        "merge slerp",
        {"t": "t"},
        required=("t",),
        on_base=False,
        notes=("mergekit takes the straight line where |cos| > 0.9995, soupkit only where both are equal numerically",),
    ),
    "nuslerp": Method("merge nuslerp", {"weight": "weight"}, required=("weight",)),
    "multislerp": Method("merge multislerp", {"weight": "weight"}, required=("weight",)),
    "karcher": Method(
        "merge karcher", {"max_iter": "iterations", "tol": "tolerance"}, {"max_iter": 10, "tol": 1e-5}, on_base=False
    ),
    "task_arithmetic": Method("merge task-arithmetic", _TASK, _SUMS, required=("weight",)),
    "ties": Method(
        "merge ties",
        _SPARSE,
        {"density": 1.0, "normalize": 1.0, "lambda": 1.0},
        required=("weight",),
        notes=(_COUNT, "where signs cancel exactly soupkit elects none, mergekit plus"),
    ),
    "dare_linear": Method(
        "merge dare-linear", _DARE, {"density": 1.0, **_SUMS}, required=("weight",), notes=(_RANDOM, _RESCALE)
    ),
    "dare_ties": Method(
        "merge dare-ties", _DARE, {"density": 1.0, **_SUMS}, required=("weight",), notes=(_RANDOM, _RESCALE)
    ),
    "della_linear": Method(
        "merge della-linear",
        _DARE | {"epsilon": "epsilon"},
        {"density": 1.0, "epsilon": 0.15, **_SUMS},
        required=("weight",),
        notes=(_RANDOM, _RESCALE),
    ),
    "della": Method(
        "merge della-ties",
        _DARE | {"epsilon": "epsilon"},
        {"density": 1.0, "epsilon": 0.15, "normalize": 1.0, "lambda": 1.0},
        required=("weight",),
        notes=(_RANDOM, _RESCALE),
    ),
    "breadcrumbs": Method(
        "merge breadcrumbs",
        _SPARSE | {"gamma": "gamma"},
        {"density": 1.0, "gamma": 0.01, **_SUMS},
        required=("weight",),
        notes=(_COUNT,),
    ),
    "breadcrumbs_ties": Method(
        "merge breadcrumbs-ties",
        _SPARSE | {"gamma": "gamma"},
        {"density": 1.0, "gamma": 0.01, **_SUMS},
        required=("weight",),
        notes=(_COUNT,),
    ),
    "model_stock": Method("merge model-stock", {"filter_wise": "rows"}),
    "sce": Method(
        "merge sce",
        {"select_topk": "density"},
        {"select_topk": 1.0},
        notes=("soupkit counts k over all entries of a tensor, mergekit over those with any variance",),
    ),
    "nearswap": Method("merge nearswap", {"t": "t"}, required=("t",)),
    "arcee_fusion": Method(
        "merge fusion", {}, on_base=False, notes=("soupkit's quartiles are exact, mergekit's of a random sample",)
    ),
    "passthrough": Method("merge passthrough", {"scale": "scale"}, on_base=False),
}
