"""Which examples make up which batch of a training: the same for the same seed, whoever reads them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from soupkit.recipe.train import Finetune
from soupkit.task.randomness import Stream


class Place(NamedTuple):
    """Which examples make up batch `number` of epoch `epoch`."""

    epoch: int
    number: int
    indices: tuple[int, ...]


def num_batches(num_examples: int, batch_size: int) -> int:
    """Updates per epoch."""
    return math.ceil(num_examples / batch_size)


def epoch_places(num_examples: int, batch_size: int, *, seed: int, epoch: int, even: bool) -> list[Place]:
    """Every example once, in a new order each epoch, in batches whose sizes differ by at most one.

    A short last batch would weigh its examples more and estimate batch-norm statistics from few. even: mixing
    takes pairs, so a batch of an odd size repeats its first example.
    """
    order = np.random.default_rng([seed, Stream.ORDER, epoch]).permutation(num_examples)
    split = [part.tolist() for part in np.array_split(order, num_batches(num_examples, batch_size))]
    if even:
        split = [part + part[:1] if len(part) % 2 else part for part in split]
    return [Place(epoch, number, tuple(part)) for number, part in enumerate(split)]


class Epochs:
    """The places of all epochs from the batch `first` on, made when they are needed."""

    def __init__(self, num_examples: int, recipe: Finetune, *, first: int = 0, even: bool = False) -> None:
        self.num_examples, self.recipe, self.first, self.even = num_examples, recipe, first, even

    def __iter__(self) -> Iterator[Place]:
        size, seed = self.recipe.batch_size, self.recipe.seed
        epoch, skipped = divmod(self.first, num_batches(self.num_examples, size))
        for number in range(epoch, self.recipe.epochs):
            places = epoch_places(self.num_examples, size, seed=seed, epoch=number, even=self.even)
            yield from places[skipped if number == epoch else 0 :]

    def __len__(self) -> int:
        return self.recipe.epochs * num_batches(self.num_examples, self.recipe.batch_size) - self.first
