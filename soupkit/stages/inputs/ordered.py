"""The order of checkpoints where it has a meaning: what was taken is said, and what has no place is
refused."""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from typing import Any, Literal

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.hub import hub
from soupkit.checkpoint.order import last_number, shared_folder, without_number
from soupkit.checkpoint.reference import (
    expand,
    glob_paths,
    local_path,
    open_references,
    spelled_out,
    sweep_members,
)
from soupkit.errors import RecipeError
from soupkit.events import Report, Told
from soupkit.jsons import Json

Order = Literal["given", "number", "text"]


def open_in_order(
    refs: Sequence[str], order: Order, report: Report, *, stream: bool = False
) -> list[Checkpoint]:
    """Open the checkpoints of one training, first to last.

    given: references as they were given, what a pattern or a folder holds in natural order; number: all by
    the last number in their names, as they were typed or found on the disk; text: all by these names as text.
    Raises RecipeError for a name without a number where numbers tell the order, and for equal numbers.
    """
    if order == "given":
        refuse_unplaced(refs)
        say_order(refs, report, option="--order text")
        return open_references(refs, stream=stream)
    named = named_checkpoints(refs, stream=stream)
    names = [name for name, _ in named]
    key: Callable[[str], Any] = str if order == "text" else _numbers(names).__getitem__
    return [checkpoint for _, checkpoint in sorted(named, key=lambda pair: key(pair[0]))]


def named_checkpoints(refs: Sequence[str], *, stream: bool = False) -> list[tuple[str, Checkpoint]]:
    """Open references; each checkpoint with what it was typed as, or found as on the disk."""
    named: list[tuple[str, Checkpoint]] = []
    for ref in refs:
        texts = hub.expand_braces(ref) if hub.looks_like_hub(ref) else spelled_out(ref)
        for text in texts:
            opened = open_references([text], stream=stream)
            # what is opened on the Hub is called by its commit, whose digits say nothing
            named += [(text if each.remote and len(opened) == 1 else _inside(each), each) for each in opened]
    if stream:
        hub.share_buffers([checkpoint for _, checkpoint in named])
    return named


def _inside(checkpoint: Checkpoint) -> str:
    return checkpoint.reference.partition(":")[2] if checkpoint.remote else checkpoint.reference


def _numbers(names: Sequence[str]) -> Json:
    shared = len(shared_folder(names))
    numbers = {name: last_number(name[shared:]) for name in names}
    for name, number in numbers.items():
        if number is None:
            raise RecipeError(f"{name}: has no number to order it by", hint=_leave_out(name))
    if len(set(numbers.values())) < len(names):
        raise RecipeError(
            "two checkpoints have the same last number in their names",
            hint="leave --order out, and name them first to last",
        )
    return numbers


def refuse_unplaced(refs: Sequence[str]) -> None:
    """Raise RecipeError where a pattern or a folder holds `epoch_latest` beside numbers: is it after them, or
    one?"""
    for ref in refs:
        for name in without_number(_found(ref)):
            raise RecipeError(
                f"{name}: has no number, while others of {ref} have one: its place in the order is not known",
                hint=_leave_out(name),
            )


def _leave_out(name: str) -> str:
    return (
        f"leave {name.rpartition('/')[2]} out, with a pattern such as 'epoch_[0-9]*'; "
        "or name the checkpoints one by one, first to last"
    )


def say_order(refs: Sequence[str], report: Report, *, option: str = "") -> None:
    """Tell where numbers put what a pattern or a folder holds into another order than text would."""
    for ref in refs:
        names = _found(ref)
        text = sorted(names)
        if names != text:
            other = f"{option} takes " if option else "as text it would be "
            ends = f"{_last(names[0])} … {_last(names[-1])}"
            report(
                Told(f"{ref}: in the order of numbers, {ends}; {other}{_last(text[0])} … {_last(text[-1])}")
            )


def _found(ref: str) -> list[str]:
    """What one reference to this disk stands for, in the order that it is opened; empty when it is no
    pattern."""
    path = local_path(ref)
    if path.exists():
        return [str(member) for member in expand(ref)] if sweep_members(path) else []
    if hub.looks_like_hub(ref) or not glob.has_magic(ref):
        return []
    matches = glob_paths(ref)
    weights = [str(match) for match in matches if match.is_dir() or match.suffix == ".safetensors"]
    return weights or [str(match) for match in matches]


def _last(name: str) -> str:
    """The end of a path that tells it from others."""
    parent, _, last = name.rpartition("/")
    return f"{parent.rpartition('/')[2]}/{last}" if last.endswith(".safetensors") and parent else last
