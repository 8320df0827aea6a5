"""Recipes of `soupkit env` and `soupkit methods`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.fields import option


@dataclass(frozen=True, kw_only=True)
class Env:
    """Print versions, platform, devices and folders: what a bug report needs.

    Example: soupkit env --json
    """


@dataclass(frozen=True, kw_only=True)
class Methods:
    """List the methods of merging: paper, needs, number of checkpoints, peak memory.

    Example: soupkit methods --markdown
    """

    markdown: bool = option(False, help="print the table as Markdown, with a link to each paper")
