"""Deterministic train / held-out / test splits: train fits, held-out selects, test reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from soupkit.asked import NamesData
from soupkit.errors import TaskError
from soupkit.identity import data_identity, digest
from soupkit.jsons import Json
from soupkit.task.images.pools import Example, FileImages, LabelledImages, content_of
from soupkit.task.images.sources import Source, open_source
from soupkit.task.task import Role

ROLES: tuple[Role, ...] = ("train", "held_out", "test")


class Part:
    """Some examples of a pool, in the order of `indices`."""

    def __init__(self, pool: LabelledImages, indices: np.ndarray) -> None:
        self.pool, self.indices = pool, indices

    @property
    def targets(self) -> np.ndarray | None:
        """int64[N], None where only decoding tells."""
        targets = self.pool.targets
        return None if targets is None else targets[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.pool[int(self.indices[index])]


@dataclass(frozen=True)
class Splits:
    """Three disjoint sets of (PIL image, class).

    characters: mirrored or cropped images would be other classes. description: JSON-able, stored with a run:
    the data, the sizes, the seed and a digest of which examples are where.
    """

    train: Part
    held_out: Part
    test: Part
    class_names: tuple[str, ...]
    characters: bool
    description: Json
    data_dir: Path | None = None

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    def part(self, role: Role) -> Part:
        """The split of that name."""
        return {"train": self.train, "held_out": self.held_out, "test": self.test}[role]

    def identity(self) -> str:
        """What the examples are by their content, and which of them is where. Reads the files, or their
        times."""
        pools = {id(part.pool): part.pool for part in (self.train, self.held_out, self.test)}
        contents = [content_of(pool) for pool in pools.values()]
        return digest(data_identity(str(self.description["data"]), self.data_dir), contents, self.description)


def open_data(options: NamesData) -> Splits:
    """Find the data and split it; no image is decoded. Raises TaskError when the data or enough of it is
    missing.

    Held-out (default: 10 %) and train are drawn from the training split by `split_seed`, balanced over the
    classes, from the two ends of one order. So is test, unless the data set has its own; a third split of its
    own is held-out.
    """
    if options.data is None:
        raise TaskError(
            "no data is named", hint="give --data digits, a directory of images by class, or torch/cifar10"
        )
    sizes: dict[Role, int | None] = {
        "train": options.num_train,
        "held_out": options.num_held_out,
        "test": options.num_test,
    }
    for role, size in sizes.items():
        if size is not None and size < 1:
            raise TaskError(f"num_{role} is {size}, expected at least 1")
    source = open_source(options.data, data_dir=options.data_dir, download=options.download, sizes=sizes)
    parts = split(source, sizes, seed=options.split_seed, name=options.data)
    _refuse_shared(parts, options.data)
    return Splits(
        **parts,
        class_names=source.class_names,
        characters=source.characters,
        description=_describe(options, source, parts),
        data_dir=options.data_dir,
    )


def split(source: Source, sizes: Mapping[Role, int | None], *, seed: int, name: str) -> dict[Role, Part]:
    """Draw the three parts. Raises TaskError, naming the numbers, when more is asked for than there is."""
    pools = source.pools
    order = balanced_order(pools["train"], seed)
    parts: dict[Role, Part] = {}
    if "test" in pools:
        parts["test"] = _subset(pools["test"], sizes["test"], seed=seed, what=f"{name}: test")
        reserved = 0
    else:
        num_test = source.num_test if sizes["test"] is None else sizes["test"]
        _enough(name, len(order), {"train": sizes["train"], "held_out": sizes["held_out"], "test": num_test})
        parts["test"] = Part(pools["train"], order[len(order) - num_test :])
        # As long as they are not needed, the examples that are tested by default are neither fitted nor
        # selected with: then another --num-test in another command does not make a test of what was seen.
        asked = (sizes["train"] or 0) + (sizes["held_out"] or 0)
        reserved = max(num_test, min(source.num_test, len(order) - asked))
    order = order[: len(order) - reserved]
    if "held_out" in pools:
        parts["held_out"] = _subset(pools["held_out"], sizes["held_out"], seed=seed, what=f"{name}: held-out")
        num_held_out = 0
    else:
        num_held_out = sizes["held_out"] or max(1, round(0.1 * len(order)))
        _enough(name, len(order), {"train": sizes["train"], "held_out": num_held_out})
        parts["held_out"] = Part(pools["train"], order[len(order) - num_held_out :])
    _enough(name, len(order), {"train": sizes["train"]})
    parts["train"] = Part(pools["train"], order[: sizes["train"] or len(order) - num_held_out])
    return parts


def balanced_order(images: LabelledImages, seed: int) -> np.ndarray:
    """A random order int64[N] in which every stretch has about the classes' shares of the whole.

    Each class is shuffled and spread evenly, with jitter, over the order. Where labels are not known without
    decoding, a plain shuffle.
    """
    random, targets = np.random.default_rng(seed), images.targets
    if targets is None:
        return random.permutation(len(images))
    position = np.empty(len(targets))
    for number in np.unique(targets):
        members = random.permutation(np.flatnonzero(targets == number))
        position[members] = (np.arange(len(members)) + random.random(len(members))) / len(members)
    return np.argsort(position, kind="stable")


def overlap(then: Splits, split: Role, now: Splits, role: Role) -> np.ndarray:
    """Which examples of `now`'s role are in a split of another division, bool[N], whatever the data are
    called.

    Files are the same by what the file system knows them by, links included, and copies by what they are
    called and hold; other examples by data set and number.
    """
    mine, other = now.part(role), then.part(split)
    if isinstance(mine.pool, FileImages) and isinstance(other.pool, FileImages):
        files = _same_files(mine, other)
        if mine.pool.root.resolve() == other.pool.root.resolve():
            return files
        files |= mine.pool.copies(mine.indices, other.pool, other.indices)
        return files
    same = [str(each["data"]).lower() for each in (then.description, now.description)]
    if same[0] != same[1] or then.description["origin"][split] != now.description["origin"][role]:
        return np.zeros(len(mine), bool)
    return np.isin(mine.indices, other.indices)


def _same_files(mine: Part, other: Part) -> np.ndarray:
    """Which files of one part are in another, bool[N]; none where they are no files."""
    if not (isinstance(mine.pool, FileImages) and isinstance(other.pool, FileImages)):
        return np.zeros(len(mine), bool)
    return np.isin(mine.pool.identities[mine.indices], other.pool.identities[other.indices])


def _refuse_shared(parts: Mapping[Role, Part], name: str) -> None:
    """Raise TaskError for links by which a file is in two parts."""
    pairs: tuple[tuple[Role, Role], ...] = (("test", "train"), ("test", "held_out"), ("held_out", "train"))
    for role, other in pairs:
        shared = int(_same_files(parts[role], parts[other]).sum())
        if shared:
            raise TaskError(
                f"{name}: {shared:,} of the {len(parts[role]):,} {role.replace('_', '-')} images are "
                f"{other.replace('_', '-')} images too, by links",
                hint="a file belongs into one folder: remove the links",
            )


def _subset(pool: LabelledImages, size: int | None, *, seed: int, what: str) -> Part:
    if size is None:
        return Part(pool, np.arange(len(pool)))
    if size > len(pool):
        raise TaskError(f"{what} has {len(pool)} examples, {size} were asked for")
    return Part(pool, balanced_order(pool, seed)[:size])


def _enough(name: str, available: int, wanted: Mapping[str, int | None]) -> None:
    named = {role: size for role, size in wanted.items() if size}
    total = sum(named.values())
    if total > available or (total == available and not wanted["train"]):
        listed = " + ".join(f"{size} {role.replace('_', '-')}" for role, size in named.items())
        raise TaskError(
            f"{name} has {available} examples to split, {listed} = {total} were asked for",
            hint="ask for fewer: --num-train, --num-held-out, --num-test",
        )


def _describe(options: NamesData, source: Source, parts: Mapping[Role, Part]) -> Json:
    place = {"place": str(source.place)} if source.place is not None else {}
    return {
        "data": options.data,
        **place,
        "split_seed": options.split_seed,
        "num_classes": len(source.class_names),
        "sizes": {role: len(parts[role]) for role in ROLES},
        "origin": {role: source.origin.get(role, source.origin["train"]) for role in ROLES},
        "digest": {role: _digest(parts[role]) for role in ROLES},
    }


def _digest(part: Part) -> str:
    """Which examples, in which order: files by their paths, others by their numbers in a pool of that
    size."""
    state = xxhash.xxh3_128(str(len(part.pool)).encode())
    if isinstance(part.pool, FileImages):
        names = list(part.pool.names())
        for index in part.indices:
            state.update(f"{names[index]}\n".encode())
    else:
        state.update(part.indices.astype("<i8").tobytes())
    return f"xxh3-128:{state.hexdigest()}"
