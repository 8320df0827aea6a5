"""Whether checkpoints were fitted to the examples that are now to choose among them, or to report on them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from soupkit.asked import ReadsData
from soupkit.checkpoint.seen import Entry, seen_of
from soupkit.checkpoint.source import Source
from soupkit.errors import SoupkitError, TaskError
from soupkit.events import Report, Told, Warned
from soupkit.jsons import Json, JsonView
from soupkit.task.images.data import Splits, open_data, overlap
from soupkit.task.images.sources import EMBEDDED, FACTORIES
from soupkit.task.task import Role

if TYPE_CHECKING:
    from soupkit.stages.scoring.scoring import SoupTask

VERBS = {"trained": "trained on", "selected": "selected on", "learned": "learned on"}
"""What the labels in tables say of a split, and the warnings of examples."""
NAMED = 3


@dataclass(frozen=True)
class _Division:
    """The options of data, as a manifest describes them."""

    data: str
    data_dir: Path | None
    num_train: int | None
    num_held_out: int | None
    num_test: int | None
    split_seed: int
    download: bool = False


def check_seen(
    sources: Iterable[Source],
    splits: Splits,
    recipe: ReadsData,
    report: Report,
    *roles: Role,
    selects: bool = True,
) -> None:
    """Warn of checkpoints that were trained, selected or learned on examples of these splits; with counts.

    selects: the command chooses or learns on held-out; where it only reports, a soup that was selected on
    held-out is no news on held-out. Raises TaskError under `strict_data`. Reads names of examples and no
    image.
    """
    roles = roles or ("held_out", "test")
    opened: dict[str, Splits | None] = {}
    found: dict[str, list[str]] = {}
    for source in sources:
        for line in _lines(seen_of(source), splits, recipe, roles, opened, selects=selects):
            found.setdefault(line, []).append(source.reference)
    for line, names in found.items():
        names = list(dict.fromkeys(names))
        text = f"{_listed(names)} {'was' if len(names) == 1 else 'were'} {line}"
        if line.startswith("perhaps"):
            report(Told(text))
        elif recipe.strict_data:
            raise TaskError(
                text, hint="other data or another --split-seed; without --strict-data this is a warning"
            )
        else:
            report(Warned(text))


def fitted_on(soup: SoupTask | None) -> Json:
    """The note of a command that chose on held-out: which examples, for whoever scores the soup later."""
    return {} if soup is None else chosen_on(soup.task.splits)


def chosen_on(splits: Splits) -> Json:
    """The same note, where there is no soup that is scored."""
    note = {"split": "held_out", "num_examples": len(splits.held_out), "data": splits.description}
    return {"selected_on": note}


def _lines(
    entries: Sequence[Entry],
    splits: Splits,
    recipe: ReadsData,
    roles: Sequence[Role],
    opened: dict[str, Splits | None],
    *,
    selects: bool,
) -> list[str]:
    """What is to be said of one checkpoint: per way of having seen and role, the union over its entries."""
    lines = []
    masks: dict[tuple[str, Role], np.ndarray] = {}
    told: dict[tuple[str, Role], list[str]] = {}
    for entry in entries:
        if not _may_be_same(entry["data"], splits.description):
            continue
        then = _opened(entry["data"], splits, recipe, opened)
        if then is None:
            if _is_same_name(entry["data"], splits.description):
                lines.append(
                    f"perhaps {VERBS[entry['how']]} some of these examples: its data are no longer as "
                    f"they were"
                )
            continue
        for role in roles:
            if entry["how"] != "trained" and role == "held_out" and not selects:
                continue
            mask = overlap(then, entry["split"], splits, role)
            if mask.any():
                key = (entry["how"], role)
                masks[key] = masks.get(key, np.zeros(len(mask), bool)) | mask
                told.setdefault(key, []).append(_division(entry))
    for (how, role), mask in masks.items():
        name, each = role.replace("_", "-"), list(dict.fromkeys(told[how, role]))
        more = f" and {len(each) - 1} more" if len(each) > 1 else ""
        lines.append(f"{VERBS[how]} {mask.sum():,} of the {len(mask):,} {name} examples: {each[0]}{more}")
    return lines


def _division(entry: Entry) -> str:
    seed, size = entry["data"]["split_seed"], entry["data"]["sizes"][entry["split"]]
    kind = {"train": "training", "held_out": "held-out"}.get(entry["split"], entry["split"])
    return f"its split had seed {seed} and {size:,} {kind} examples"


def _may_be_same(then: JsonView, now: JsonView) -> bool:
    """Folders may hold the same files under any name; other data sets are the same by their names."""
    return _is_same_name(then, now) or (_is_folder(then) and _is_folder(now))


def _is_same_name(then: JsonView, now: JsonView) -> bool:
    return str(then["data"]).lower() == str(now["data"]).lower() or (
        "place" in now and then.get("place") == now["place"]
    )


def _is_folder(description: JsonView) -> bool:
    data = str(description["data"])
    return "place" in description or not (data in EMBEDDED or data.partition("/")[0].lower() in FACTORIES)


def _opened(
    then: JsonView, splits: Splits, recipe: ReadsData, opened: dict[str, Splits | None]
) -> Splits | None:
    """The division that a manifest describes: these splits, or found again where it lay or where the data lie
    now."""
    if then["digest"] == splits.description["digest"]:
        return splits
    key = repr((then["digest"], then["data"]))
    if key not in opened:
        places = (
            [then.get("place"), then["data"], splits.description["data"]]
            if _is_folder(then)
            else [then["data"]]
        )
        found = (_open(place, then, recipe) for place in dict.fromkeys(filter(None, map(_text, places))))
        opened[key] = next((each for each in found if each is not None), None)
    return opened[key]


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _open(place: str, then: JsonView, recipe: ReadsData) -> Splits | None:
    sizes = then["sizes"]
    division = _Division(
        place,
        recipe.data_dir,
        sizes["train"],
        sizes["held_out"],
        sizes["test"],
        split_seed=then["split_seed"],
    )
    try:
        splits = open_data(division)
    except SoupkitError:
        return None
    return splits if splits.description["digest"] == then["digest"] else None


def _listed(names: Sequence[str]) -> str:
    shown, rest = list(names[:NAMED]), len(names) - NAMED
    if rest > 0:
        return f"{', '.join(shown)} and {rest} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
