"""Recipe of `soupkit merge passthrough`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.fields import option
from soupkit.recipe.method_options import MethodRecipe


@dataclass(frozen=True, kw_only=True)
class MergePassthrough(MethodRecipe):
    """Stack ranges of layers into one deeper or shallower model (frankenmerge).

    What stands before the layers comes from the first checkpoint, what stands after from the last.

    Example: soupkit merge passthrough a b --layers 0:16 --layers 8:24 --out soups/deep
    """

    FAMILY = "task_arithmetic"
    INPUTS = (1, 1)

    layers: tuple[str, ...] = option(
        (),
        help="START:STOP of the layers to take, one per checkpoint, in their order; of one checkpoint, "
        "default: all",
    )
    scale: float = option(1.0, help="factor of every weight; --set 'o_proj: {scale: 0.5}' for some")
