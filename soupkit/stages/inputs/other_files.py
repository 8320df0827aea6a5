"""Checkpoints of other programs, opened for `convert`: pickles, what is read where it lies, arrays named
anew."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from soupkit.checkpoint.config.classifier import published_prefix
from soupkit.checkpoint.formats.convert import (
    Pickled,
    pickled_as,
    pickled_files,
    read_checkpoint,
    read_pickled,
)
from soupkit.checkpoint.formats.numpy_files import is_npz
from soupkit.checkpoint.formats.opened import is_foreign
from soupkit.checkpoint.formats.selection import Selection
from soupkit.checkpoint.hub import hub
from soupkit.checkpoint.reference import glob_paths, local_path
from soupkit.checkpoint.tensors import Plan, parse_bytes, plan_files
from soupkit.errors import RecipeError, ReferenceError
from soupkit.events import Advanced, Finished, Report, Started
from soupkit.recipe.hub import Convert


@dataclass(frozen=True)
class OtherFile:
    """A pickle: what it is called, where it is, and where its companions are when it is one of many files
    there."""

    reference: str
    path: Path
    directory: Path | None = None

    @property
    def on_hub(self) -> hub.HubReference | None:
        """The pinned reference of what came from the Hub."""
        return hub.parse_hub(self.reference) if self.directory else None

    def names(self) -> tuple[str, str]:
        """What to call its folder, and what when that is taken."""
        name = self.path.name.removesuffix(".index.json").removesuffix(".tar")
        stem = name if self.path.is_dir() else Path(name).stem
        if self.on_hub:
            repository = self.on_hub.name.rpartition("/")[2]
            return repository, f"{repository}-{(self.on_hub.revision or '')[:8]}"
        return stem, f"{self.path.resolve().parent.name}-{stem}"


def sources_of(ref: str) -> list[OtherFile]:
    """The pickles behind one reference, on this disk or on the Hub."""
    path = local_path(ref)
    if not path.exists() and not glob.has_magic(ref) and hub.looks_like_hub(ref):
        return [OtherFile(*fetched) for fetched in hub.fetch_pickles(ref)]
    if path.exists() or not glob.has_magic(ref):
        return [OtherFile(ref, path)]
    matches = [OtherFile(str(match), match) for match in glob_paths(ref)]
    if not matches:
        raise ReferenceError(f"{ref}: matches nothing", hint="check the pattern")
    return matches


def open_all(sources: Sequence[OtherFile], recipe: Convert, report: Report) -> list[tuple[Pickled, Plan]]:
    """Read and check every file, which takes one pass over their bytes."""
    in_place = [_lies_as_read(source.path, recipe) for source in sources]
    pickles = [source.path for source, lies in zip(sources, in_place, strict=True) if not lies]
    files = [file for path in pickles for file in pickled_files(path)]
    report(Started("checking", sum(file.stat().st_size for file in files), "bytes"))
    opened = [
        _open(source, recipe, report, in_place=lies) for source, lies in zip(sources, in_place, strict=True)
    ]
    report(Finished("checking"))
    return opened


def _lies_as_read(path: Path, recipe: Convert) -> bool:
    """Whether a path is no pickle: what merges read too, safetensors among it where they are to change."""
    safetensors = path.suffix == ".safetensors" or any(path.glob("*.safetensors"))
    if safetensors and (recipe.to == "dcp" or _selection(recipe) != Selection()):
        return True
    return is_foreign(path)


def _selection(recipe: Convert) -> Selection:
    return Selection(
        key=recipe.key,
        prefer=recipe.prefer,
        strip=recipe.strip,
        drop=recipe.drop,
        rename=recipe.rename,
        ignore=recipe.ignore,
        empty=recipe.empty,
    )


def _open(source: OtherFile, recipe: Convert, report: Report, *, in_place: bool) -> tuple[Pickled, Plan]:
    selection = _selection(recipe)
    if recipe.model and recipe.model.startswith("timm:") and is_npz(source.path):
        pickled = _named_as_timm(source.path, recipe, selection)
    elif in_place:
        if recipe.ignore:
            raise RecipeError(
                f"{source.path}: no class of it has to be left out: none is ever made",
                hint="leave --ignore out",
            )
        pickled = read_checkpoint(source.path, selection)
    else:
        pickled = read_pickled(
            source.path,
            selection,
            directory=source.directory,
            advance=lambda num_bytes: report(Advanced("checking", num_bytes)),
        )
    named = recipe.model or ("open_clip:" if published_prefix(pickled.slots) == "" else "")
    with_clip = named.startswith("open_clip:")
    plan = plan_files(
        pickled.slots,
        file_name="open_clip_model.safetensors" if with_clip else "model.safetensors",
        max_shard_bytes=parse_bytes(recipe.max_shard_size),
        metadata=pickled.ties,
    )
    return pickled, plan


def _named_as_timm(path: Path, recipe: Convert, selection: Selection) -> Pickled:
    """Arrays of JAX under the names that timm's own loader gives them."""
    import soupkit.task.torchvision_ops  # noqa: F401  (before timm)
    from soupkit.task.images.npz import named_as_timm
    from soupkit.task.spec import parse_model

    if selection != Selection():
        raise RecipeError(
            f"{path}: timm names its arrays: no option chooses among them",
            hint="leave options of names and places out, or leave --model out",
        )
    spec = parse_model(str(recipe.model))
    return pickled_as(named_as_timm(spec, path), path, f"its arrays have the names of timm's {spec.name}")
