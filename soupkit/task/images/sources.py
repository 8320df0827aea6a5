"""Where labelled images come from: embedded sets, folders, and whatever timm's data set factory opens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import timm.data

from soupkit.errors import TaskError
from soupkit.jsons import Json
from soupkit.task.images.absent import has_no
from soupkit.task.images.pools import ArrayImages, FactoryImages, FileImages, Glyphs, LabelledImages
from soupkit.task.task import Role

EMBEDDED = ("digits", "glyphs")
FACTORIES = ("torch", "hfds", "hfids", "tfds", "wds")
FOLDERS: dict[Role, tuple[str, ...]] = {
    "train": ("train", "training"),
    "held_out": ("val", "valid", "validation", "eval", "evaluation"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class Source:
    """A data set as it is kept, before soupkit splits it.

    pools: what it keeps apart itself, "train" always; a missing "held_out" or "test" is drawn from "train".
    origin: the data set's own word for each pool. num_test: default size of a test split that has to be
    drawn. place: the folder that it is, resolved.
    """

    pools: Mapping[Role, LabelledImages]
    class_names: tuple[str, ...]
    origin: Mapping[Role, str]
    characters: bool = False
    num_test: int = 0
    place: Path | None = None


def open_source(
    data: str, *, data_dir: Path | None, download: bool, sizes: Mapping[Role, int | None]
) -> Source:
    """Find the data set named `data`. Reads names and labels, no image. Raises TaskError with a hint.

    sizes: what will be asked of it; glyphs are drawn on demand, and streams are read no further.
    """
    if data == "digits":
        return _digits()
    if data == "glyphs":
        return _drawn_glyphs(sizes)
    library, slash, _ = data.partition("/")
    if slash and library.lower() in FACTORIES and not Path(data).is_dir():
        return _from_factory(data, data_dir, download, sizes)
    if Path(data).is_dir():
        return _from_folder(Path(data))
    raise TaskError(
        f"there is no data set {data!r}: it is not a directory, nor one of {', '.join(EMBEDDED)}",
        hint=f"sets of timm's factory have a prefix: torch/{data.rpartition('/')[2]}, hfds/…, tfds/…, wds/…",
    )


@cache
def _digits() -> Source:
    """scikit-learn's 1,797 handwritten digits (UCI, Alpaydin and Kaynak 1998): 8 × 8 counts of 0..16, here
    0..255."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.round(found.images * (255 / 16)).astype(np.uint8)
    pool = ArrayImages(images, found.target.astype(np.int64))
    return Source({"train": pool}, _DIGITS, {"train": "digits"}, characters=True, num_test=797)


def _drawn_glyphs(sizes: Mapping[Role, int | None]) -> Source:
    defaults: dict[Role, int] = {"train": 8000, "held_out": 1000, "test": 1000}
    pools: dict[Role, LabelledImages] = {}
    for stream, (role, default) in enumerate(defaults.items()):
        asked = sizes.get(role)
        pools[role] = Glyphs(default if asked is None else asked, stream)
    return Source(
        pools, _DIGITS, {role: f"glyphs, stream {i}" for i, role in enumerate(pools)}, characters=True
    )


_DIGITS = tuple("0123456789")


def _from_folder(root: Path) -> Source:
    """DIR/train with DIR/val and DIR/test, either of which may be missing, or DIR/<class> alone.

    With a single evaluation folder, that is the test split whatever it is called, and held-out comes from
    train: as ImageNet is used by Wortsman et al. 2022.
    """
    found = _split_folders(root) or {"train": root}
    if "test" not in found and "held_out" in found:
        found["test"] = found.pop("held_out")
    pools: dict[Role, LabelledImages] = {}
    class_names: tuple[str, ...] = ()
    for role, folder in found.items():
        pools[role], class_names = _list_folder(folder, class_names)
    origin = {role: folder.name for role, folder in found.items()}
    return Source(pools, class_names, origin, num_test=round(0.2 * len(pools["train"])), place=root.resolve())


def _split_folders(root: Path) -> dict[Role, Path]:
    """The folders that are called as a split is, in any case; none where classes lie in the root.

    Raises TaskError for what would make examples of one split those of another: one that cannot be opened,
    two of one split, an evaluation folder without one to train on.
    """
    entries = sorted(root.iterdir())
    found: dict[Role, Path] = {}
    for role, names in FOLDERS.items():
        for path in (entry for entry in entries if entry.name.lower() in names):
            if not path.is_dir():
                raise TaskError(f"{path} is no folder that can be opened", hint="mount it, or remove it")
            if role in found:
                raise TaskError(
                    f"{root} has {found[role].name} and {path.name}, which stand for the same split",
                    hint="keep one of them there",
                )
            found[role] = path
    if found and "train" not in found:
        first = next(iter(found.values()))
        raise TaskError(
            f"{root} has {first.name}, but no folder of the name train",
            hint=f"name the folder of training images train, or give {first} alone",
        )
    return found


def _list_folder(folder: Path, class_names: tuple[str, ...]) -> tuple[FileImages, tuple[str, ...]]:
    """The images below `folder` and their classes, in timm's order, or numbered as in `class_names`."""
    try:
        reader = timm.data.create_dataset("", root=str(folder), search_split=False).reader
    except RuntimeError as error:
        raise TaskError(
            f"{folder} holds no images", hint="expected DIR/<class>/<image> or DIR/train/…"
        ) from error
    names = tuple(sorted(reader.class_to_idx, key=reader.class_to_idx.__getitem__))
    unknown = sorted(set(names) - set(class_names or names))
    if unknown:
        raise TaskError(
            f"{folder} has the class {unknown[0]!r}, which the training folder lacks",
            hint="every folder needs the class folders of the first",
        )
    _refuse_scattered(folder, [Path(path) for path, _ in reader.samples])
    numbers = {name: number for number, name in enumerate(class_names or names)}
    return FileImages(folder, [(path, numbers[names[t]]) for path, t in reader.samples]), class_names or names


def _refuse_scattered(folder: Path, paths: Sequence[Path]) -> None:
    """Raise TaskError where a class lies in several folders: they are splits under other names, or folds."""
    places: dict[str, Path] = {}
    for parent in dict.fromkeys(path.parent for path in paths):
        other = places.setdefault(parent.name, parent)
        if other != parent:
            both = " and ".join(each.relative_to(folder).as_posix() for each in (other, parent))
            raise TaskError(
                f"{folder}: the class {parent.name!r} lies in {both}",
                hint="if these are splits, name their folders train, val and test; a class has one folder",
            )


def _from_factory(
    data: str, data_dir: Path | None, download: bool, sizes: Mapping[Role, int | None]
) -> Source:
    """What timm's factory keeps as "train", "validation" and "test"; torchvision's sets have one for
    evaluation."""
    library, _, name = data.lower().partition("/")
    asked = (sizes.get("train"), sizes.get("held_out"))
    limit = None if None in asked else sum(size or 0 for size in asked)
    train = _create(data, "train", data_dir, download)
    pools: dict[Role, LabelledImages] = {"train": FactoryImages(train, limit=limit)}
    origin: dict[Role, str] = {"train": "train"}
    if library == "torch":
        evaluation = {"validation": _create(data, "validation", data_dir, download)}
    else:
        evaluation = _those_that_exist(data, data_dir, download)
    roles: tuple[Role, ...] = ("test", "held_out")
    for role, split in zip(roles, reversed(evaluation), strict=False):
        pools[role] = FactoryImages(evaluation[split], limit=sizes.get(role))
        origin[role] = split
    return Source(
        pools,
        _class_names(train, pools["train"]),
        origin,
        characters="mnist" in name and "fashion" not in name,
        num_test=round(0.2 * len(pools["train"])),
    )


def _those_that_exist(data: str, data_dir: Path | None, download: bool) -> Json:
    """The evaluation splits that the data set has. Raises TaskError where one cannot be opened for another
    reason.

    A test split drawn from train because the data set's own was out of reach would not be the test that is
    reported.
    """
    found = {}
    for split in ("validation", "test"):
        try:
            found[split] = _create(data, split, data_dir, download)
        except TaskError as error:
            if not has_no(split, error.__cause__):
                raise
    return found


def _create(data: str, split: str, data_dir: Path | None, download: bool) -> Any:
    root = None if data_dir is None else str(data_dir)
    if root is None and data.lower().startswith(("torch/", "wds/")):
        raise TaskError(f"{data} needs a place on disk", hint="give --data-dir")
    try:
        return timm.data.create_dataset(data, root=root, split=split, download=download)
    except Exception as error:  # five libraries raise here whatever they like
        lines = str(error).splitlines() or [type(error).__name__]
        missing = isinstance(error, ImportError) or "install" in lines[0]
        hint = (
            f"install what {data.partition('/')[0]}/ needs"
            if missing
            else "check --data-dir, or give --download"
        )
        raise TaskError(f"timm cannot open {data}, split {split!r}: {lines[0]}", hint=hint) from error


def _class_names(dataset: Any, images: LabelledImages) -> tuple[str, ...]:
    if hasattr(dataset, "classes"):
        return tuple(str(name) for name in dataset.classes)
    numbers = getattr(getattr(dataset, "reader", None), "class_to_idx", None)
    if numbers:
        return tuple(sorted(numbers, key=numbers.__getitem__))
    targets = images.targets
    if targets is None:
        raise TaskError("the data set does not say what its classes are", hint="give --class-names")
    return tuple(str(number) for number in range(int(targets.max()) + 1))
