"""Which instructions this machine computes with: what the last bits of a network's pass depend on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

_LEVELS = ("avx512f", "avx2", "avx", "sse4_1", "sve", "asimd")
_LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "OPENBLAS_CORETYPE", "MKL_ENABLE_INSTRUCTIONS")


def instruction_set() -> str:
    """For example `x86_64 avx2`, and the environment's limits on it; the architecture alone where no more is
    known.

    oneDNN, ATen, MKL and OpenBLAS each sum in an order that their widest instructions suggest, so two
    processors of one set give the same bits for the same versions and threads, and two of different sets may
    not.
    """
    flags = _flags()
    level = next((level for level in _LEVELS if level in flags), "")
    limits = [f"{name}={os.environ[name]}" for name in _LIMITS if os.environ.get(name)]
    return " ".join(filter(None, [platform.machine(), level, *limits]))


def _flags() -> set[str]:
    """What Linux says that the first processor can do; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return set()
    return next(
        (set(line.split()) for line in lines if line.lower().startswith(("flags", "features"))), set()
    )
