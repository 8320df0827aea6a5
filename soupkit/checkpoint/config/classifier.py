"""A learned head beside CLIP, by the names of its tensors, and where a configuration says of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from soupkit.errors import CheckpointError

SECTION = "classifier"
"""Of open_clip_config.json; open_clip itself passes over it."""
HEAD = "classification_head"
"""What the tensors of the head are called, in the published files as here."""
TOWER = "visual"


def parts_of(names: Iterable[str]) -> tuple[str, ...]:
    """The parts of CLIP beside its image tower and a head, by the names of a checkpoint's tensors."""
    words = (name.partition(".")[0] for name in names)
    return tuple(dict.fromkeys(word for word in words if word not in (TOWER, HEAD)))


def published_prefix(names: Iterable[str]) -> str | None:
    """What stands before the names of CLIP beside a learned head: `model.` in the files of model-soups.

    None for a checkpoint of another form.
    """
    names = list(names)
    rest = [name for name in names if not name.startswith(f"{HEAD}.")]
    prefixes = {name.partition(f"{TOWER}.")[0] for name in rest if f"{TOWER}." in name}
    prefix = prefixes.pop() if len(prefixes) == 1 else None
    held = f"{HEAD}.weight" in names and prefix is not None and (not prefix or prefix.endswith("."))
    return prefix if held and all(name.startswith(prefix or "") for name in rest) else None


def head_shape(shapes: Mapping[str, Sequence[int]]) -> tuple[int, int]:
    """(classes, features) of the head among a checkpoint's tensors. Raises CheckpointError."""
    shape = tuple(shapes[f"{HEAD}.weight"])
    extra = [n for n in shapes if n.startswith(f"{HEAD}.") and n not in (f"{HEAD}.weight", f"{HEAD}.bias")]
    if len(shape) != 2 or extra or tuple(shapes.get(f"{HEAD}.bias", shape[:1])) != shape[:1]:
        what = extra[0] if extra else f"{HEAD}.weight of shape {list(shape)}"
        raise CheckpointError(f"{what} is no part of a linear head", hint=f"leave it out: --drop {HEAD}.")
    return shape[0], shape[1]
