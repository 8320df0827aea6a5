"""What test_points_ranks.py runs in real ranks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from soupkit.events import silent
from soupkit.jobs.curves.chain import chain
from soupkit.recipe.curve import Chain
from soupkit.world import World


def chain_in_rank(refs: tuple[str, ...], out: Path, cache: Path, options: dict[str, Any]) -> tuple[Any, int]:
    """The metrics that this rank knows, and how many points its own cache holds."""
    world = World("cpu", threads=1)
    own = cache / f"rank-{world.rank}"  # as on two machines
    os.environ["SOUPKIT_CACHE"] = str(own)
    with world.group():
        manifest = chain(Chain(refs=refs, out=out, **options), world, silent)
    return manifest["metrics"], len(list((own / "points").iterdir()))
