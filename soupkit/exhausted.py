"""Memory that ran out, told as an error that names the options that take less."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from soupkit.errors import TaskError

SIGNS = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
"""What torch, its allocators and CUDA's libraries say: they raise RuntimeErrors of several types."""
DETAILS = " Including non-PyTorch memory"
LONGEST = 240


@contextmanager
def explained(recipe: object) -> Iterator[None]:
    """Inside, memory that runs out, on a device or not, is a TaskError with what this recipe could ask for.

    A SoupkitError leaves nothing half written, as any exception; what a search remembers stays.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise TaskError(f"memory ran out: {_said(error)}", hint=_hint(recipe, error)) from error


def ran_out(error: BaseException) -> bool:
    """Whether an exception is about memory: that of the machine or of a device."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in SIGNS)


def _said(error: BaseException) -> str:
    line = str(error).partition(DETAILS)[0].partition("\n")[0]
    return line[:LONGEST] or "Python had none left"


def _hint(recipe: object, error: BaseException) -> str:
    """What takes less, as far as the recipe has it."""
    batch_size, jobs = getattr(recipe, "batch_size", 1), getattr(recipe, "jobs", 1)
    found = [
        f"--batch-size {batch_size // 2}" if batch_size > 1 else "",
        "--max-memory with less than is free" if hasattr(recipe, "max_memory") else "",
        "--model-batch with fewer models" if hasattr(recipe, "model_batch") else "",
        "--jobs 1" if jobs != 1 else "",
        "--amp bfloat16" if getattr(recipe, "amp", "") == "off" else "",
        "--device cpu" if hasattr(recipe, "device") and re.search("CU(DA|BLAS|DNN)", str(error)) else "",
        "--threads 1" if getattr(recipe, "threads", 1) != 1 and isinstance(error, MemoryError) else "",
    ]
    options = [each for each in found if each]
    return f"take less at a time: {', or '.join(options)}" if options else "free some memory, and try again"
