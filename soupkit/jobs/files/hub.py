"""`pull` and `push`: checkpoints from the Hugging Face Hub and to it."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.config.companions import copy_files
from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.hub.errors import endpoint, explained, retried
from soupkit.checkpoint.hub.hub import parse_hub
from soupkit.checkpoint.hub.remote import HubFiles
from soupkit.checkpoint.output import OutputDirectory
from soupkit.checkpoint.reference import open_references, sweep_members
from soupkit.errors import CheckpointError, RecipeError, ReferenceError
from soupkit.events import Advanced, Finished, Report, Started, Table, Told, Wrote
from soupkit.jsons import Json
from soupkit.manifest import MANIFEST_NAME, Manifest
from soupkit.recipe.hub import Pull, Push
from soupkit.recipe.parse import recipe_to_json
from soupkit.report.card import model_card
from soupkit.stages.inputs.download import download
from soupkit.stages.outputs.described import describe_inputs, describe_outputs
from soupkit.world import World

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi

CARD = "README.md"


def pull(recipe: Pull, world: World, report: Report) -> Json:
    """Download checkpoints into the cache; with `out`, copy them into a plain directory as well.

    Returns {"checkpoints": [{reference, commit, directory, bytes}]}, or the manifest of `out`.
    """
    checkpoints = open_references(recipe.refs)
    for checkpoint in checkpoints:
        if checkpoint.remote is None:
            raise RecipeError(f"{checkpoint.reference}: is on this disk already", hint="pull takes org/name")
    if recipe.dry_run:
        return _report_pulled(checkpoints, "plan: no weights were downloaded", report)
    download(checkpoints, report)
    for checkpoint in checkpoints:
        checkpoint.fetch()
    if recipe.out is None:
        return _report_pulled(checkpoints, "", report)
    return _copy(checkpoints, recipe, recipe.out, world, report)


def _report_pulled(checkpoints: Sequence[Checkpoint], title: str, report: Report) -> Json:
    values = [
        {
            "reference": checkpoint.reference,
            "commit": checkpoint.remote.commit if checkpoint.remote else None,
            "directory": str(checkpoint.directory),
            "bytes": checkpoint.num_bytes,
        }
        for checkpoint in checkpoints
    ]
    rows = tuple((entry["reference"], entry["bytes"], entry["directory"]) for entry in values)
    report(Table(title, ("checkpoint", "bytes", "directory"), rows))
    return {"checkpoints": values}


def _copy(checkpoints: Sequence[Checkpoint], recipe: Pull, out: Path, world: World, report: Report) -> Json:
    """Each checkpoint as a directory with its manifest; OUT appears when the last is whole."""
    size = sum(checkpoint.num_bytes for checkpoint in checkpoints)
    names = _folders(checkpoints)
    with OutputDirectory(out, overwrite=recipe.overwrite, num_bytes=size) as directory:
        manifests = []
        for checkpoint, name in zip(checkpoints, names, strict=True):
            target = directory / name
            target.mkdir(parents=True, exist_ok=True)
            manifests.append(_copy_one(checkpoint, target, recipe, out, world))
        manifest = manifests[0]
        if len(checkpoints) > 1:
            manifest = Manifest(
                command="pull",
                recipe=recipe_to_json(recipe),
                inputs=[entry for each in manifests for entry in each.inputs],
                outputs={name: each.outputs for name, each in zip(names, manifests, strict=True)},
                notes={"members": names},
            )
            manifest.write(directory)
    report(Wrote(out, size))
    return manifest.to_json()


def _copy_one(checkpoint: Checkpoint, target: Path, recipe: Pull, out: Path, world: World) -> Manifest:
    """A soup keeps its own manifest, as long as its weights are what that records."""
    assert isinstance(checkpoint.remote, HubFiles)
    files = [
        *checkpoint.files,
        *checkpoint.companions,
        *([checkpoint.remote.index] if checkpoint.remote.index else []),
    ]
    copy_files(files, checkpoint.directory, target)
    content = content_hash(Checkpoint(target), threads=world.num_threads)
    own = Manifest.read_if_any(checkpoint.directory)
    if own is not None and own.outputs.get("content") == content:
        shutil.copyfile(checkpoint.directory / MANIFEST_NAME, target / MANIFEST_NAME)
        return own
    manifest = Manifest(
        command="pull",
        recipe=recipe_to_json(recipe),
        inputs=describe_inputs([checkpoint], out, [content]),
        outputs=describe_outputs(target, content),
    )
    manifest.write(target)
    return manifest


def _folders(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Where each goes inside OUT: nowhere else for one; by folder or repository, and commit where those are
    equal."""
    if len(checkpoints) == 1:
        return ["."]
    found = [parse_hub(checkpoint.reference) for checkpoint in checkpoints]
    names = [
        (each.inside or each.name).rpartition("/")[2].removesuffix(".safetensors") for each in found if each
    ]
    counts = Counter(names)
    revisions = [(each.revision or "")[:8] for each in found if each]
    names = [
        f"{name}-{rev}" if counts[name] > 1 else name for name, rev in zip(names, revisions, strict=True)
    ]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ReferenceError(f"{twice} stands for several of the checkpoints", hint="pull them one by one")
    return names


def push(recipe: Push, world: World, report: Report) -> Json:
    """Check a directory, make the repository where there is none, upload file by file, and commit once.

    Files that an interrupted push has uploaded are not sent again. Raises CheckpointError when weights are
    not what the manifest records, ReferenceError for what the Hub refuses.
    """
    members = [Checkpoint(path) for path in sweep_members(recipe.directory) or [recipe.directory]]
    for checkpoint in members:
        _check_recorded(checkpoint, world)
    reference = parse_hub(recipe.repository)
    if reference is None or reference.revision or reference.inside:
        raise RecipeError(
            f"repository is {recipe.repository!r}, expected org/name", hint="name a branch by --revision"
        )
    files = _files(recipe.directory, members[0])
    total = sum(
        len(content) if isinstance(content, bytes) else content.stat().st_size for content in files.values()
    )
    if recipe.dry_run:
        rows = tuple(
            (name, "new" if isinstance(content, bytes) else str(content)) for name, content in files.items()
        )
        report(Table(f"plan: nothing was uploaded to {reference.name}", ("file", "from"), rows))
        return {"plan": {"repository": reference.name, "files": list(files), "bytes": total}}
    with explained(reference.name):
        return _upload(reference.name, files, total, recipe, report)


def _check_recorded(checkpoint: Checkpoint, world: World) -> None:
    manifest = Manifest.read_if_any(checkpoint.directory)
    if manifest is None or "content" not in manifest.outputs:
        return
    content = content_hash(checkpoint, threads=world.num_threads)
    if content != manifest.outputs["content"]:
        raise CheckpointError(
            f"{checkpoint.reference}: the weights are not those that {MANIFEST_NAME} records",
            hint=f"see what changed: soupkit verify {checkpoint.reference}",
        )


def _files(directory: Path, first: Checkpoint) -> dict[str, Path | bytes]:
    """{path in the repository: file or content}: all but hidden files, and a model card where there is
    none."""
    files: dict[str, Path | bytes] = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            files[name.as_posix()] = path
    if CARD not in files:
        manifest = Manifest.read_if_any(directory) or Manifest(command="push", recipe={})
        files[CARD] = model_card(manifest, directory.resolve(), first).encode()
    return files


def _upload(
    repository: str, files: dict[str, Path | bytes], total: int, recipe: Push, report: Report
) -> Json:
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    disable_progress_bars()
    api = HfApi()
    _check_card(files[CARD], repository)
    if not recipe.pr:
        _prepare(api, repository, recipe)
    additions = [
        CommitOperationAdd(name, str(file) if isinstance(file, Path) else file)
        for name, file in files.items()
    ]
    where: Json = {"revision": recipe.revision, "create_pr": recipe.pr}
    report(Started("uploading", total, "bytes"))
    for addition in additions:
        retried(lambda one=addition: api.preupload_lfs_files(repository, [one], free_memory=False, **where))  # type: ignore[misc]
        report(Advanced("uploading", addition.upload_info.size, addition.path_in_repo))
    report(Finished("uploading"))
    message = recipe.message or f"Upload {recipe.directory.resolve().name} with soupkit"

    def commit() -> CommitInfo:
        return api.create_commit(repository, additions, commit_message=message, **where)

    done = commit() if recipe.pr else retried(commit)  # a second try might open a second pull request
    report(Told(f"pushed to {done.pr_url or done.commit_url}"))
    return {"repository": repository, "commit": done.oid, "url": done.commit_url, "pull_request": done.pr_url}


def _check_card(card: Path | bytes, repository: str) -> None:
    """Let the Hub read the model card's metadata before anything is uploaded. Raises CheckpointError."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    text = card.decode() if isinstance(card, bytes) else card.read_text(encoding="utf-8", errors="replace")

    def ask() -> tuple[int, str]:
        url, values = f"{endpoint()}/api/validate-yaml", {"content": text, "repoType": "model"}
        answer = get_session().post(url, json=values, timeout=60)
        if answer.status_code != 400:
            hf_raise_for_status(answer)
        return answer.status_code, answer.text

    status, said = retried(ask)
    if status == 400:
        raise CheckpointError(
            f"{repository}: the Hub cannot read the head of {CARD}: {said}",
            hint=f"correct the YAML in {CARD}",
        )


def _prepare(api: HfApi, repository: str, recipe: Push) -> None:
    """Make the repository and the branch where there are none. Private weights never go where all can read
    them."""
    retried(lambda: api.create_repo(repository, private=recipe.private or None, exist_ok=True))
    if recipe.private and not retried(lambda: api.model_info(repository)).private:
        raise RecipeError(
            f"{repository}: exists already and is public; --private only makes new repositories private",
            hint="leave --private out, or push to another repository",
        )
    if branch := recipe.revision:
        retried(lambda: api.create_branch(repository, branch=branch, exist_ok=True))
