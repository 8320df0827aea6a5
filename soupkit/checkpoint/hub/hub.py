"""Checkpoints on the Hugging Face Hub: `org/name[@revision][:subfolder]`, through huggingface_hub alone.

Its cache, tokens, proxies, `HF_ENDPOINT` and `HF_HUB_OFFLINE` hold here as everywhere. A revision is resolved
to a commit once, and everything is read at that commit, whatever happens to the branch meanwhile. Opening
reads a file list, the configuration and the headers; weights come when they are read.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.formats.convert import PICKLE_INDEX, choose_pickle, shard_names
from soupkit.checkpoint.formats.foreign import PICKLES
from soupkit.checkpoint.hub.errors import endpoint, explained, not_cached, retried
from soupkit.checkpoint.hub.ranges import window_bytes
from soupkit.checkpoint.hub.remote import HubFiles
from soupkit.checkpoint.hub.repository import HubFile, Repository
from soupkit.checkpoint.layout import choose_weights, is_companion
from soupkit.errors import ReferenceError, brief
from soupkit.manifest import MANIFEST_NAME, Manifest

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

_NAME = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_FORM = re.compile(rf"(?P<name>{_NAME})(@(?P<revision>[^:\s]+))?(:(?P<inside>[^:]+))?")
_URL = re.compile(
    rf"hf://(models/)?(?P<name>{_NAME})(@(?P<revision>refs/(pr|convert)/[\w.-]+|[^:/\s]+))?([:/](?P<inside>[^:]+))?"
)
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?[0-9]{1,18})\.\.(-?[0-9]{1,18})(?:\.\.(-?[0-9]{1,18}))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
MOST_BRANCHES = 10_000
FILE_SUFFIXES = (".safetensors", ".json", ".yaml", *PICKLES)


@dataclass(frozen=True)
class HubReference:
    """A repository, a revision (None: its main branch) and a folder or file inside it."""

    name: str
    revision: str | None = None
    inside: str = ""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.name}{revision}" + (f":{self.inside}" if self.inside else "")


def parse_hub(ref: str) -> HubReference | None:
    """Read a reference without braces; None when it has not the form of one."""
    match = _URL.fullmatch(ref) or _FORM.fullmatch(ref)
    if match is None or ".." in (match["inside"] or "").split("/"):
        return None
    return HubReference(match["name"], match["revision"], (match["inside"] or "").strip("/"))


def looks_like_hub(ref: str) -> bool:
    """Whether a string that names nothing on this disk may name a repository.

    Not when its first part is a folder here, or its name that of a file: then it is a misspelled path, which
    is nobody else's business.
    """
    if ref.startswith("hf://"):
        return True
    plain = _BRACES.sub("0", ref)
    found = parse_hub(plain)
    if found is None or found.name.endswith(FILE_SUFFIXES):
        return False
    return not os.path.exists(plain.partition("/")[0])  # noqa: PTH110  (False for a name too long)


def expand_braces(ref: str) -> list[str]:
    """`a@step{1000..3000..1000}` → a@step1000, a@step2000, a@step3000; `{x,y}` → x, y. As in a shell, zeros
    pad."""
    return ["".join(combination) for combination in itertools.product(*check_braces(ref))]


def check_braces(ref: str, *, times: int = 1) -> list[list[str]]:
    """The choices for every part of a reference. Raises ReferenceError when they are too many, each `times`
    over."""
    parts = _BRACES.split(ref)
    choices = [_choices(part, ref) if number % 2 else [part] for number, part in enumerate(parts)]
    if times * math.prod(map(len, choices)) > MOST_BRANCHES:
        raise too_many(ref)
    return choices


def too_many(ref: str) -> ReferenceError:
    """The error for braces that stand for more checkpoints than anyone means."""
    return ReferenceError(
        f"{brief(ref)}: names more than {MOST_BRANCHES} checkpoints",
        hint="use a larger step, or fewer ranges",
    )


def _choices(text: str, ref: str) -> list[str]:
    match = _RANGE.fullmatch(text)
    if not match:
        return text.split(",")
    first, last = int(match[1]), int(match[2])
    step = abs(int(match[3] or 1)) or 1
    if abs(last - first) // step >= MOST_BRANCHES:
        raise too_many(ref)
    numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    padded = any(re.match(r"-?0\d", end) for end in match.groups()[:2])
    width = max(len(match[1]), len(match[2])) if padded else 0
    return [str(number).zfill(width) for number in numbers]


def open_hub(ref: str, *, stream: bool = False) -> list[Checkpoint]:
    """Open what a reference names: its files are listed and headers are read; no weights are downloaded.

    stream: read weights by ranges instead of downloading files that are not in the cache. Raises
    ReferenceError (no such repository, revision or folder; gated; no safetensors; offline and not in the
    cache), CheckpointError.
    """
    return [checkpoint for each in expand_braces(ref) for checkpoint in _open(each, stream)]


def fetch_pickles(ref: str) -> list[tuple[str, Path, Path]]:
    """Download the pickled weights of repositories, with their companions: (pinned reference, file, folder)
    of each.

    The file is the pickle, or the index of its shards. Raises ReferenceError, CheckpointError.
    """
    return [_fetch_pickle(each) for each in expand_braces(ref)]


def _fetch_pickle(ref: str) -> tuple[str, Path, Path]:
    reference = _parsed(ref)
    with explained(ref, typed=not ref.startswith("hf://")):
        repository = look_up(reference)
        pinned = replace(reference, revision=repository.commit)
        inside = PurePosixPath(reference.inside)
        alone = reference.inside in repository.files
        folder = str(inside.parent if alone else inside).strip(".")
        names = repository.names_in(folder)
        name = (
            inside.name
            if alone
            else choose_pickle(names, str(pinned), separator="/" if folder else ":", globs=False)
        )
        prefix = f"{folder}/" if folder else ""
        file = repository.download(prefix + name)
        shards = shard_names(file, names) if name.endswith(PICKLE_INDEX) else []
        for each in [*shards, *(name for name in names if is_companion(name))]:
            repository.download(prefix + each)
    return str(pinned), file, repository.snapshot / folder if folder else repository.snapshot


def share_buffers(checkpoints: Sequence[Checkpoint]) -> None:
    """Divide the memory for reading ahead among the checkpoints of one merge."""
    for checkpoint in checkpoints:
        if isinstance(checkpoint.remote, HubFiles):
            checkpoint.remote.windows.window = window_bytes(len(checkpoints))


def _open(ref: str, stream: bool) -> Iterator[Checkpoint]:
    reference = _parsed(ref)
    with explained(ref, typed=not ref.startswith("hf://")):
        repository = look_up(reference)
        yield from _open_at(replace(reference, revision=repository.commit), repository, stream)


def _parsed(ref: str) -> HubReference:
    reference = parse_hub(ref)
    if reference is None:
        raise ReferenceError(
            f"{ref}: is not a reference to the Hub", hint="write org/name[@revision][:subfolder]"
        )
    return reference


def _open_at(reference: HubReference, repository: Repository, stream: bool) -> Iterator[Checkpoint]:
    if reference.inside in repository.files:
        weights = PurePosixPath(reference.inside)
        folder = "" if str(weights.parent) == "." else str(weights.parent)
        yield _checkpoint(reference, repository, folder, weights.name, stream)
        return
    names = repository.names_in(reference.inside)
    if not names:
        folders = sorted({name.partition("/")[0] for name in repository.files if "/" in name})
        raise ReferenceError(
            f"{reference}: there is no folder or file {reference.inside!r}",
            hint=f"there are {', '.join(folders[:10])}" if folders else "leave the part after the colon out",
        )
    for member in _members(reference, repository, names):
        inside = f"{reference.inside}/{member}".strip("/")
        yield from _open_at(replace(reference, inside=inside), repository, stream)
        names = []
    if names:
        weights_name = _choose(reference, names)
        yield _checkpoint(reference, repository, reference.inside, weights_name, stream)


def _choose(reference: HubReference, names: Sequence[str]) -> str:
    separator = "/" if reference.inside else ":"
    return choose_weights(names, str(reference), separator=separator, globs=False)


def _members(reference: HubReference, repository: Repository, names: Sequence[str]) -> list[str]:
    """The folders of a pushed sweep; empty for a checkpoint."""
    if MANIFEST_NAME not in names or any(name.endswith(".safetensors") for name in names):
        return []
    manifest = repository.download(f"{reference.inside}/{MANIFEST_NAME}".strip("/"))
    members = Manifest.read(manifest.parent).notes.get("members", [])
    return [
        name
        for name in members
        if isinstance(name, str) and repository.names_in(f"{reference.inside}/{name}")
    ]


def _checkpoint(
    reference: HubReference, repository: Repository, folder: str, weights: str, stream: bool
) -> Checkpoint:
    files = HubFiles(repository, folder, weights, reference=str(reference), stream=stream)
    path = files.directory / weights if reference.inside.endswith(weights) else files.directory
    return Checkpoint(path, reference=str(reference), remote=files)


def look_up(reference: HubReference) -> Repository:
    """The commit that a revision means now, and the files at it: asked from the Hub, or from the cache when
    offline."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return _look_up_offline(reference)
    timeout, revision = constants.HF_HUB_DOWNLOAD_TIMEOUT, reference.revision
    api = HfApi()
    try:
        info = retried(
            lambda: api.model_info(reference.name, revision=revision, files_metadata=True, timeout=timeout)
        )
        commit, files = info.sha or "", _files(info.siblings or [])
    except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
        raise _no_hub(reference) from error
    if not _COMMIT.fullmatch(commit) or info.siblings is None:
        raise _no_hub(reference)
    repository = Repository(reference.name, commit, files)
    repository.remember(reference.revision)
    return repository


def _no_hub(reference: HubReference) -> ReferenceError:
    return ReferenceError(
        f"{reference}: {endpoint()} does not answer as a Hub does", hint="check HF_ENDPOINT"
    )


def _files(siblings: Sequence[RepoSibling]) -> Mapping[str, HubFile]:
    return {
        each.rfilename: HubFile(each.size, each.lfs.sha256 if each.lfs else None, each.blob_id)
        for each in siblings
    }


def _look_up_offline(reference: HubReference) -> Repository:
    commit = Repository(reference.name, "", {}).remembered(reference.revision)
    repository = Repository(reference.name, commit or "", {})
    if not commit or not repository.snapshot.is_dir():
        raise not_cached(str(reference))
    found = {
        path.relative_to(repository.snapshot).as_posix(): HubFile()
        for path in repository.snapshot.rglob("*")
        if path.is_file()
    }
    return replace(repository, files=found)
