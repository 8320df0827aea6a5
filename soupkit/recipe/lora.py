"""Recipe of `soupkit extract-lora`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from soupkit.errors import RecipeError
from soupkit.recipe.fields import argument, option
from soupkit.recipe.shared import MISMATCH, OutputOptions


@dataclass(frozen=True, kw_only=True)
class ExtractLora(OutputOptions):
    """Approximate what fine-tuning changed by a LoRA adapter in PEFT's format.

    Example: soupkit extract-lora fine-tuned --base base --rank 16 --out adapters/task
    """

    ref: str = argument(help="the fine-tuned checkpoint")
    base: str = option(help="the checkpoint that it was fine-tuned from")
    rank: int = option(16, help="rank of every factor pair")
    only: tuple[str, ...] = option(
        (), help="patterns of the matrices to adapt, such as '*_proj'; default: all; repeat"
    )
    others: Literal["drop", "save"] = option(
        "drop",
        help="changes of everything else (norms, biases, embeddings): leave out, or save whole modules",
    )
    dtype: Literal["float32", "float16", "bfloat16"] = option("float32", help="dtype of the factors")
    seed: int = option(0, help="seed of the randomized decomposition of large matrices")
    mismatch: Literal["error", "warn"] = option("error", help=MISMATCH)
    threads: int = option(0, help="worker threads; 0 takes every core")

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise RecipeError(f"rank is {self.rank}, expected at least 1")
