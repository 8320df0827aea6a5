"""Recipe of `soupkit env`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Env:
    """Print versions, platform, devices and folders: what a bug report needs.

    Example: soupkit env --json
    """


@dataclass(frozen=True, kw_only=True)
class Methods:
    """List the methods of merging: paper, needs, number of checkpoints, peak memory.

    Example: soupkit methods --json
    """
