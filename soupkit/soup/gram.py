"""The Gram matrix of checkpoints, streamed: all inner products, with never more than a few MB of weights in
memory.

Shape suffixes: K checkpoints, N = K + 1 (their differences to the mean, then the mean), B blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from soupkit.checkpoint.dtypes import NUMPY_DTYPES, Array
from soupkit.checkpoint.source import read_chunk, slots_of
from soupkit.events import Advanced, Finished, Report, Started, silent
from soupkit.soup.blocks import Layout
from soupkit.world import ALONE, World

BUFFER = 1 << 22
"""Elements of all checkpoints together that are in memory at a time: 32 MB, however many checkpoints there
are."""


def gram_matrix(
    checkpoints: Sequence[Mapping[str, Array]],
    layout: Layout,
    *,
    world: World = ALONE,
    report: Report = silent,
) -> np.ndarray:
    """A Aᵀ of each block, float64[B, N, N], with A = (w_1 − c, …, w_K − c, c) and c the mean of the
    checkpoints.

    Differences are what a basis of late checkpoints is about: the products of nearly equal vectors would
    drown them. All in float64, or the dependence of the differences on each other would be lost in rounding.
    Ranks take shares of the chunks. Memory: 32 MB, and B · N² numbers. Cost: every checkpoint is read once;
    K² D multiplications.
    """
    num = len(checkpoints)
    gram_BNN = np.zeros((layout.num_blocks, num + 1, num + 1))
    chunks = list(_chunks(layout, max(1, BUFFER // max(1, num))))
    share = world.share(len(chunks))
    report(Started("inner products", len(share), "chunks"))
    slots = [slots_of(checkpoint) for checkpoint in checkpoints]
    buffer = np.empty((num + 1, max(size for *_, size in chunks)))
    for number in share:
        name, block, start, size = chunks[number]
        rows = buffer[:, :size]
        for k, checkpoint in enumerate(checkpoints):
            values = np.empty(size, NUMPY_DTYPES[slots[k][name].dtype])
            read_chunk(checkpoint, name, start, values)
            rows[k] = values
        rows[:num].mean(0, out=rows[num])
        rows[:num] -= rows[num]
        gram_BNN[block] += rows @ rows.T
        report(Advanced("inner products"))
    report(Finished("inner products"))
    total = torch.from_numpy(gram_BNN)
    world.all_reduce(total)
    return gram_BNN


def _chunks(layout: Layout, limit: int) -> Iterator[tuple[str, int, int, int]]:
    """(tensor, block, first element, elements) of every chunk."""
    for span in layout.spans:
        for start in range(0, span.num_elements, limit):
            yield span.name, span.block, start, min(limit, span.num_elements - start)
