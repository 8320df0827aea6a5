"""Downloading ingredients from the Hub before work that reads them, with a bar and a look at the disk."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from soupkit.checkpoint.hub.remote import HubFiles
from soupkit.checkpoint.output import SPARE_BYTES
from soupkit.checkpoint.source import Source
from soupkit.checkpoint.views.view import checkpoint_of
from soupkit.errors import OutputError
from soupkit.events import Advanced, Finished, Report, Started, Told

TASK = "downloading"


def download(sources: Sequence[Source], report: Report) -> None:
    """Bring the weights of Hub checkpoints to disk, but for those that are streamed. Nothing to do for local
    ones.

    Weights that are not downloaded here come when they are first read, unannounced. Raises OutputError when
    the disk of the cache is too small, ReferenceError and CheckpointError for what goes wrong on the way.
    """
    found = [checkpoint.remote for each in sources if (checkpoint := checkpoint_of(each)) is not None]
    remotes = [remote for remote in found if isinstance(remote, HubFiles) and not remote.streams]
    missing = {
        (remote.directory, name): size for remote in remotes for name, size in remote.missing().items()
    }
    total = sum(missing.values())
    if not total:
        return
    _check_disk(remotes[0], total)
    report(Told(f"{len(missing)} weight files come from the Hub"))
    report(Started(TASK, total, "bytes"))
    for remote in remotes:
        remote.fetch(weights=True, advance=lambda num_bytes: report(Advanced(TASK, num_bytes)))
    report(Finished(TASK))


def _check_disk(remote: HubFiles, total: int) -> None:
    folder = next(parent for parent in remote.directory.parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if total + SPARE_BYTES > free:
        raise OutputError(
            f"{folder}: the weights to download take {total / 1e9:.2f} GB, {free / 1e9:.2f} GB are free",
            hint="free some space, set HF_HOME to another disk, or merge with --stream, which stores "
            "no inputs",
        )
