"""`cache`: what is remembered, and a way to forget it."""

from __future__ import annotations

from soupkit.errors import OutputError
from soupkit.events import Report, Table, Told
from soupkit.jsons import Json
from soupkit.recipe.cache import Cache
from soupkit.remembered import KINDS, clear, usage
from soupkit.world import World, cache_folder


def cache(recipe: Cache, _world: World, report: Report) -> Json:
    """Files and bytes of each kind, counted before anything is removed. Raises OutputError for what cannot be
    removed.

    Returns {"folder", "kinds": {kind: {files, bytes}}, "cleared"}.
    """
    folder = _folder()
    kinds = [usage(kind) for kind in KINDS if recipe.kind in ("all", kind)]
    rows = tuple((each.kind, each.num_files, each.num_bytes) for each in kinds)
    report(Table(folder, ("kind", "files", "bytes"), rows))
    clears = recipe.clear and not recipe.dry_run
    left = [failed for each in kinds if clears for failed in clear(each.kind)]
    if left:
        path, why = left[0]
        raise OutputError(
            f"{path}: cannot be removed: {why}", hint=f"{len(left)} files are left; remove them yourself"
        )
    total = sum(each.num_files for each in kinds)
    if recipe.clear:
        report(Told(f"{'removed' if clears else 'would remove'} {total} files"))
    values = {each.kind: {"files": each.num_files, "bytes": each.num_bytes} for each in kinds}
    return {"folder": folder, "kinds": values, "cleared": clears}


def _folder() -> str:
    try:
        return str(cache_folder())
    except RuntimeError:
        raise OutputError(
            "there is no home folder to remember anything in", hint="set SOUPKIT_CACHE"
        ) from None
