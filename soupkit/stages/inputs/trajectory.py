"""The checkpoints of one training as they lie in its folder, each at its step, first to last."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.formats.foreign import glob_hint, is_pickled
from soupkit.checkpoint.order import last_number, natural_key, naturally, shared_folder
from soupkit.checkpoint.reference import local_path, sweep_members
from soupkit.errors import CheckpointError, RecipeError, ReferenceError
from soupkit.events import Report, Told
from soupkit.manifest import Manifest
from soupkit.stages.inputs.ordered import named_checkpoints, refuse_unplaced

INSIDE = ("", "checkpoints", "snapshots")
"""Where in the folder of a training its checkpoints lie: as HF Trainer and Lightning, accelerate, soupkit
do."""
SHARD = re.compile(r"-[0-9]+-of-[0-9]+$")
STEP_KEYS = ("update", "global_step", "step", "epoch")
"""What is counted, in soupkit's notes and beside converted weights, most telling first."""


@dataclass(frozen=True)
class Member:
    """A checkpoint, and the step (or epoch) of the training that it is of."""

    step: float
    checkpoint: Checkpoint


def open_trajectory(refs: Sequence[str], report: Report, *, stream: bool = False) -> list[Member]:
    """Open the checkpoints of one training and order them by their steps.

    A step is what trainer_state.json says (`global_step`), else what soupkit.json says, else the last number
    in the name: of one kind for all. Checkpoints that are named one by one and have no number count by their
    place. Raises RecipeError where one of them has no step, or two have the same, and what `open_references`
    raises.
    """
    spelled = [inner for ref in refs for inner in _spelled_out(ref, report)]
    refuse_unplaced(spelled)
    named = named_checkpoints(spelled, stream=stream)
    steps, told = _steps(named, num_given=len(refs))
    members = sorted(
        (Member(step, each) for step, (_, each) in zip(steps, named, strict=True)), key=lambda each: each.step
    )
    for before, after in pairwise(members):
        if before.step == after.step:
            raise RecipeError(
                f"{before.checkpoint.reference} and {after.checkpoint.reference} are both of step "
                f"{shown(after.step)}",
                hint="name the checkpoints of one training, each once",
            )
    ends = f"{shown(members[0].step)} … {shown(members[-1].step)}" if len(members) > 1 else shown(steps[0])
    report(Told(f"{len(members)} checkpoints at the steps {ends}, read from {told}"))
    return members


def shown(step: float) -> str:
    """A step as it was written: 1000, not 1000.0."""
    return str(int(step)) if step == int(step) else f"{step:g}"


def _spelled_out(ref: str, report: Report) -> list[str]:
    """The checkpoints in the folder of a training; anything else as it is."""
    path = local_path(ref)
    if not path.is_dir() or sweep_members(path):
        return [ref]
    for inner in INSIDE:
        folder = path / inner
        if inner and folder.is_dir() and sweep_members(folder):
            return [str(folder)]
        if folder.is_dir() and (found := _numbered(folder)):
            _tell_left_out(folder, found, report)
            return [str(each) for each in found]
    _refuse_pickles(path)
    return [ref]


def _refuse_pickles(folder: Path) -> None:
    """Of a folder that holds pickles alone, say how they become the members of a training."""
    files = [each for each in _listed(folder) if each.is_file()]
    pickles = [each for each in files if is_pickled(each)]
    if len(pickles) > 1 and not any(each.suffix == ".safetensors" for each in files):
        raise ReferenceError(
            f"{folder}: holds {len(pickles)} pickles, such as {min(pickles).name}",
            hint=glob_hint(str(folder / f"*{min(pickles).suffix}"), pickles),
        )


def _numbered(folder: Path) -> list[Path]:
    """Folders with weights, or weight files, whose names are alike but for numbers. Raises ReferenceError for
    several kinds of names: which are the training's?"""
    kinds: dict[str, list[Path]] = {}
    for name in naturally(str(each) for each in _weights_in(folder)):
        parts = natural_key(Path(name).name)[0]
        if any(not isinstance(part, str) for part in parts):
            kind = "#".join(part for part in parts if isinstance(part, str))
            kinds.setdefault(kind, []).append(Path(name))
    if len(kinds) > 1:
        first = " and ".join(found[0].name for found in list(kinds.values())[:2])
        raise ReferenceError(
            f"{folder}: holds checkpoints of {len(kinds)} kinds, such as {first}",
            hint="name those of the training by a pattern: "
            f"'{folder}/{_pattern(next(iter(kinds.values())))}'",
        )
    return next(iter(kinds.values()), [])


def _pattern(paths: Sequence[Path]) -> str:
    return re.sub(r"[0-9]+", "*", paths[0].name)


def _weights_in(folder: Path) -> Iterator[Path]:
    """Folders that hold safetensors; of files, those that are no shards and not alone."""
    inside = _listed(folder)
    folders = [
        each
        for each in inside
        if each.is_dir() and any(inner.suffix == ".safetensors" for inner in _listed(each))
    ]
    files = [each for each in inside if each.suffix == ".safetensors" and not SHARD.search(each.stem)]
    yield from folders or (files if len(files) > 1 else ())


def _listed(folder: Path) -> list[Path]:
    """What lies in a folder. Raises ReferenceError for one that cannot be read."""
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise ReferenceError(f"{folder}: cannot be read: {error.strerror}", hint="check the path") from error


def _tell_left_out(folder: Path, found: Sequence[Path], report: Report) -> None:
    """What else holds weights there is no member: the end of the training, or the best, or an average."""
    others = [each.name for each in _weights_in(folder) if each not in found]
    if found[0].is_dir():
        others += [each.name for each in _listed(folder) if each.suffix == ".safetensors"]
    if others:
        names = ", ".join(sorted(others)[:3]) + (" …" if len(others) > 3 else "")
        report(Told(f"{folder}: its {len(found)} numbered checkpoints are taken, not {names}"))


def _steps(named: Sequence[tuple[str, Checkpoint]], *, num_given: int) -> tuple[list[float], str]:
    """The step of each checkpoint, and where all of them were found."""
    names = [name for name, _ in named]
    shared = len(shared_folder(names)) if len(names) > 1 else names[0].rfind("/") + 1

    def by_name(name: str, _checkpoint: Checkpoint) -> float | None:
        number = last_number(name[shared:].removesuffix(".safetensors"))
        return None if number is None else float(number)

    ways: Mapping[str, Callable[[str, Checkpoint], float | None]] = {
        "trainer_state.json": _by_trainer,
        "soupkit.json": _by_manifest,
        "their names": by_name,
    }
    for told, way in ways.items():
        found = [way(name, checkpoint) for name, checkpoint in named]
        steps = [step for step in found if step is not None]
        if len(steps) == len(found):
            return steps, told
    if len(named) == num_given and all(step is None for step in found):
        return [float(place) for place in range(1, len(named) + 1)], "the order in which they were given"
    bare = next(name for (name, _), step in zip(named, found, strict=True) if step is None)
    raise RecipeError(
        f"{bare}: nothing says of which step it is",
        hint="a number in its name would (step-1000), or trainer_state.json beside its weights; else "
        "leave it out",
    )


def _by_trainer(_name: str, checkpoint: Checkpoint) -> float | None:
    """What the Trainer of transformers writes beside its weights."""
    path = checkpoint.directory / "trainer_state.json"
    try:
        return _number(json.loads(path.read_text(encoding="utf-8"))["global_step"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: says no global_step: {error!r}", hint="remove it where the names say the steps"
        ) from error


def _by_manifest(_name: str, checkpoint: Checkpoint) -> float | None:
    """What soupkit noted of a snapshot, or found beside the weights that it converted."""
    if checkpoint.remote:
        return None
    manifest = Manifest.read_if_any(checkpoint.directory)
    notes = manifest.notes if manifest else {}
    facts = notes.get("facts")
    for known in (notes, facts if isinstance(facts, Mapping) else {}):
        for key in STEP_KEYS:
            if (step := _number(known.get(key))) is not None:
                return step
    return None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
