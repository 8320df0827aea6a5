"""Mutates small pickles and reads them, for a process of its own: torch's reader must not crash either."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import torch

from soupkit.checkpoint.formats.convert import read_pickled
from soupkit.checkpoint.formats.pickles import flat_array
from soupkit.errors import SoupkitError


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Some bytes changed, a piece cut out, or a piece repeated."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        position = draw.randrange(len(data))
        kind = draw.randrange(4)
        if kind == 0:
            data[position] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[position] = draw.choice(b"\x00\xff.}]Rbc0qQ")
        elif kind == 2:
            del data[position : position + draw.randint(1, 16)]
        else:
            data[position:position] = data[position : position + draw.randint(1, 16)]
    return bytes(data)


def run(folder: Path, count: int, seed: int) -> None:
    """Read so many mutations of a zip and of an old pickle; the outcomes are left in outcomes.json."""
    draw = random.Random(seed)
    value = {
        "state_dict": {"a": torch.rand(3, 2), "b": torch.ones(4).half()},
        "args": {"lr": 0.1, "name": "x"},
    }
    outcomes: Counter[str] = Counter()
    for legacy in (False, True):
        path = folder / f"{legacy}.pt"
        torch.save(value, path, _use_new_zipfile_serialization=not legacy)
        content = path.read_bytes()
        for _ in range(count):
            path.unlink()  # a mapped file must not change, so each is another
            path.write_bytes(mutated(content, draw))
            try:
                pickled = read_pickled(path)
                outcomes["read"] += sum(flat_array(tensor).size for tensor in pickled.tensors.values()) >= 0
            except SoupkitError as error:
                outcomes[type(error).__name__] += 1
    (folder / "outcomes.json").write_text(json.dumps(outcomes))
