"""Turn many model checkpoints into one better model.

    import soupkit
    soupkit.merge(["runs/a", "runs/b"], out="soups/uniform")
    best = soupkit.soups.greedy(["runs/a", "runs/b", "runs/c"], score=my_accuracy)
    best.save("soups/greedy")

Names are imported when they are first used: `import soupkit` alone loads neither numpy nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from soupkit import soups
    from soupkit.api import combine, merge, run
    from soupkit.checkpoint.checkpoint import Checkpoint
    from soupkit.checkpoint.reference import open_checkpoint, open_references
    from soupkit.errors import SoupkitError
    from soupkit.manifest import Manifest
    from soupkit.merge.mixture import Mixture

__all__ = [
    "Checkpoint",
    "Manifest",
    "Mixture",
    "SoupkitError",
    "__version__",
    "combine",
    "merge",
    "open_checkpoint",
    "open_references",
    "run",
    "soups",
]

_PLACES = {
    "Checkpoint": "soupkit.checkpoint.checkpoint",
    "Manifest": "soupkit.manifest",
    "Mixture": "soupkit.merge.mixture",
    "SoupkitError": "soupkit.errors",
    "combine": "soupkit.api",
    "merge": "soupkit.api",
    "open_checkpoint": "soupkit.checkpoint.reference",
    "open_references": "soupkit.checkpoint.reference",
    "run": "soupkit.api",
}


def __getattr__(name: str) -> Any:
    if name == "soups":
        return import_module("soupkit.soups")
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'soupkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
