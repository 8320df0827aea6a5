"""Recipe of `soupkit align groups`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from soupkit.errors import RecipeError
from soupkit.recipe.fields import argument, option


@dataclass(frozen=True, kw_only=True)
class AlignGroups:
    """Show which units of a network may be permuted together, which axes must stay, and why; prove it.

    The groups are read off the network's graph, then checked: all permuted at random at once, on the weights
    as they are and on random ones, the outputs must stay the same. `--json` exports them; `--groups` reads
    such a file back.

    Example: soupkit align groups timm:resnet18
    Example: soupkit align groups runs/sweep/run-000 --pin 'head*' --json
    """

    name: str = argument(
        help="timm:NAME[,key=value], open_clip:NAME, a checkpoint directory, or org/name on the Hub"
    )
    model: str | None = option(
        None, help="timm:NAME or open_clip:NAME, when NAME is a checkpoint that does not say what it is"
    )
    groups: Path | None = option(None, help="check these groups, an earlier --json, instead of deriving them")
    pin: tuple[str, ...] = option(
        (), help="leave this group, family or tensor as it is; repeat for more; * and ? work"
    )
    tensors: bool = option(False, help="list every axis of every tensor")
    verify: bool = option(True, help="run the network to prove the groups")
    controls: int = option(
        16, help="families for which one tensor is left unpermuted, which the outputs must show"
    )
    seed: int = option(0, help="seed of the permutations and of the random weights of the proof")
    threads: int = option(0, help="threads of torch; 0 takes every core")

    def __post_init__(self) -> None:
        for name in ("controls", "seed"):
            if getattr(self, name) < 0:
                raise RecipeError(f"{name} is {getattr(self, name)}, expected 0 or more")
