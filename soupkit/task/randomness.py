"""Seeds: what is random in training depends on the recipe's seed, whoever else draws from a global
generator."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """What a seed is used for; each use has a stream of its own."""

    INITIALISATION = 0
    ORDER = 1
    AUGMENTATION = 2
    MIXING = 3
    FORWARD = 4
    REGULARISATION = 5
    MERGING = 6
    MUTATION = 7


@contextmanager
def seeded(seed: int, stream: Stream, *position: int, device: torch.device | None = None) -> Iterator[None]:
    """Inside, the global generators of Python, NumPy and torch start from (seed, stream, position).

    Afterwards they go on as if nothing had happened. timm's transforms and mixup draw from all three; a batch
    that sets them by its own number is the same batch in any process. `device`: a CUDA device whose generator
    is set too.
    """
    words = np.random.SeedSequence([seed, stream, *position]).generate_state(6)
    cuda = device if device is not None and device.type == "cuda" else None
    before = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    on_cuda = torch.cuda.get_rng_state(cuda) if cuda else None
    random.seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(words[2:4])
    torch.default_generator.manual_seed(int(words[4]) << 31 | int(words[5]))
    try:
        if cuda:
            with torch.cuda.device(cuda):
                torch.cuda.manual_seed(int(words[4]) << 31 | int(words[5]))
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.default_generator.set_state(before[2])
        if cuda and on_cuda is not None:
            torch.cuda.set_rng_state(on_cuda, cuda)


@contextmanager
def torch_threads(num_threads: int) -> Iterator[None]:
    """Inside, torch computes with `num_threads` threads on the CPU; sums depend on that number in their last
    bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
