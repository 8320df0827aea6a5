"""Averages that stand inside a model's own state dict, beside the weights that they average."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from soupkit.checkpoint.formats.places import COUNTERS, says_averaged


@dataclass(frozen=True)
class InnerAverage:
    """Names of a state dict that are an average of others.

    prefix: what they begin with; targets: {their name: the name of what they average}; counters: what counts
    them; raw_prefix: for a wrapper that holds nothing else (ema-pytorch), what the trained weights' names
    begin with; is_certain: False where names do not tell which of the two is the average.
    """

    prefix: str
    targets: Mapping[str, str]
    counters: tuple[str, ...] = ()
    raw_prefix: str | None = None
    is_certain: bool = True


def find_inner_average(shapes: Mapping[str, tuple[int, ...]]) -> InnerAverage | None:
    """The average among the tensors of these names and shapes, by the layouts in use; None when there is
    none.

    ema-pytorch (`ema_model.`, `online_model.`), modules called by an average beside their originals
    (`ema.net.w` and `net.w`), LitEma of Stable Diffusion 1 (`model_ema.` and the name without dots), mmcv 1
    (`ema_` and the name with underscores: its hook swaps both, or not, by its priority, so which is which is
    not certain).
    """
    return _ema_pytorch(shapes) or _mmcv(shapes) or next(_modules(shapes), None)


def _ema_pytorch(names: Collection[str]) -> InnerAverage | None:
    averaged = [name for name in names if name.startswith("ema_model.")]
    raw = {name for name in names if name.startswith("online_model.")}
    counters = tuple(name for name in names if name in ("initted", "step"))
    if not averaged or not counters or len(averaged) + len(raw) + len(counters) < len(names):
        return None
    targets = {name: "online_model." + name.removeprefix("ema_model.") for name in averaged}
    return InnerAverage("ema_model.", targets, counters, raw_prefix="online_model." if raw else "")


def _mmcv(names: Collection[str]) -> InnerAverage | None:
    flat = {f"ema_{name.replace('.', '_')}": name for name in names if "." in name}
    targets = {name: flat[name] for name in names if name in flat}
    return InnerAverage("ema_", targets, is_certain=False) if targets else None


def _modules(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[InnerAverage]:
    """Groups of names below a module that is called by an average, each with its original elsewhere."""
    for prefix in _averaged_prefixes(shapes):
        group = [name for name in shapes if name.startswith(prefix)]
        counters = tuple(name for name in group if name.removeprefix(prefix) in COUNTERS)
        averaged = [name for name in group if name not in counters]
        others = [name for name in shapes if not name.startswith(prefix)]
        for inner in (prefix, f"{prefix}module."):
            if averaged and all(name.startswith(inner) for name in averaged):
                endings = [name.removeprefix(inner) for name in averaged]
                targets = dict(zip(averaged, _originals(endings, others, _parent(prefix)), strict=False))
                if targets and all(shapes[name] == shapes[original] for name, original in targets.items()):
                    yield InnerAverage(prefix, targets, counters)


def _averaged_prefixes(names: Collection[str]) -> list[str]:
    """Modules that are called an average: `ema.`, `model_ema.`, `student.swa_copy.`; not `avg_pool.`."""
    prefixes: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        for number, part in enumerate(parts[:-1], start=1):
            if says_averaged(part) and ("avg" not in part or "model" in part):
                prefixes[".".join(parts[:number]) + "."] = None
    return list(prefixes)


def _parent(prefix: str) -> str:
    """The module that a module is in: `a.` for `a.b.`, nothing for `a.`."""
    return prefix[: prefix.rstrip(".").rfind(".") + 1]


def _originals(endings: Sequence[str], others: Sequence[str], parent: str) -> list[str]:
    """The names that end so, all below `parent` or one module in it; spelled alike, or without the dots. Else
    none."""
    for spelled in (_as_it_is, _without_dots):
        for start in _starts(endings[0], others, spelled):
            if start != parent and _parent(start) != parent:
                continue
            by_ending = {spelled(name[len(start) :]): name for name in others if name.startswith(start)}
            if all(ending in by_ending for ending in endings):
                return [by_ending[ending] for ending in endings]
    return []


def _as_it_is(name: str) -> str:
    return name


def _without_dots(name: str) -> str:
    return name.replace(".", "")


def _starts(ending: str, others: Sequence[str], spelled: Callable[[str], str]) -> list[str]:
    """What may stand before an ending in one of the other names."""
    found: dict[str, None] = {}
    for name in others:
        cuts = [0, *(at + 1 for at, letter in enumerate(name) if letter == ".")]
        for at in cuts:
            if spelled(name[at:]) == ending:
                found[name[:at]] = None
    return list(found)
