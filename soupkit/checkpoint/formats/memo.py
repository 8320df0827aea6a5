"""The memo of a pickle: a kilobyte may number an entry so high that the reader in C takes 64 GB for its
table."""

from __future__ import annotations

import pickletools


def largest_entry(content: bytes) -> int:
    """The highest number under which a pickle keeps a value, -1 for none. Cost: one pass over its opcodes.

    A whole pickle numbers its values from 0 on, so that the number is less than its bytes. Raises ValueError
    for what is no pickle.
    """
    puts = (
        arg
        for opcode, arg, _ in pickletools.genops(content)
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT")
    )
    return max((arg for arg in puts if isinstance(arg, int)), default=-1)
