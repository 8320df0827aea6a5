"""A population in training: updates of every member, pulls towards the mean, replacements after epochs.

PAPA: Jolicoeur-Martineau et al. 2024 (TMLR), arXiv:2304.03094. Shape suffix: n members.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from soupkit.errors import TaskError
from soupkit.events import Finished, Report, Warned
from soupkit.jsons import Json
from soupkit.recipe.population import TrainPopulation
from soupkit.task.score import Score
from soupkit.train.loop import LOWER_RATE, SKIPPED, Progress
from soupkit.train.population.exchange import Pull, gram, similarity
from soupkit.train.population.flat import Flat
from soupkit.train.population.grid import Grid
from soupkit.train.population.members import Member
from soupkit.train.population.merging import merges_after, pull_strength
from soupkit.train.population.regularise import member_name
from soupkit.train.population.replacement import replace_members
from soupkit.train.population.vectorised import Advance, one_by_one

MEASUREMENTS = 100
"""Similarities of the members are measured at most about this often."""
Named = Mapping[str, Tensor]


class Judge(Protocol):
    """Scores weights on held-out data."""

    def __call__(self, tensors: Named, metric: str) -> Score: ...


@dataclass(frozen=True)
class Seams:
    """What the population cannot do itself; None: it is not done.

    judge: scores named tensors on held-out data (greedy, tournament, selection). greedy: names and a scorer
    of a row of coefficients → the picks. align: named tensors of all members, permuted in place before they
    are mixed. repair: (children, parents, coefficients[n × n]), children corrected in place after they were
    mixed.
    """

    judge: Judge | None = None
    greedy: Callable[[Sequence[str], Callable[[np.ndarray], Score]], Sequence[int]] | None = None
    align: Callable[[Sequence[Named]], None] | None = None
    repair: Callable[[Sequence[Named], Sequence[Named], np.ndarray], None] | None = None


@dataclass
class History:
    """What happened: mean loss of every member per epoch, similarity of the members over updates,
    replacements."""

    losses: list[list[float]] = field(default_factory=list)
    similarity: list[dict[str, float]] = field(default_factory=list)
    replacements: list[Json] = field(default_factory=list)


class Population:
    """This rank's members of a population, and what all of them do together.

    The same seed and recipe train the same population whatever the ranks are, up to the order of sums.
    num_done: updates so far. totals, counts: the losses of the epoch under way, per member of this rank.
    """

    def __init__(
        self,
        members: Sequence[Member],
        flat: Flat,
        recipe: TrainPopulation,
        grid: Grid,
        *,
        seams: Seams = Seams(),
    ) -> None:
        self.members, self.flat, self.recipe, self.grid, self.seams = members, flat, recipe, grid, seams
        self.per_epoch, self.num_updates = members[0].per_epoch, members[0].num_updates
        self.pull = Pull(flat, grid)
        self.history = History()
        self.num_done = 0
        self.totals = [torch.zeros((), dtype=torch.float64, device=member.device) for member in members]
        self.counts = [0 for _ in members]

    def train(
        self,
        report: Report,
        *,
        advance: Advance = one_by_one,
        after_update: Callable[[Population], None] = lambda _: None,
    ) -> None:
        """Train until the last update, from wherever the population is; afterwards the models are in eval
        mode.

        advance: one update of every member of this rank. after_update: called when an update and what follows
        it are done, to save the state. Raises TaskError as soon as an epoch's loss, or a trained weight, is
        not finite.
        """
        for member in self.members:
            member.begin()
        progress = Progress(report, self.num_updates, done=self.num_done)
        if self.num_done == 0:
            self._measure()
        while self.num_done < self.num_updates:
            self._update(advance)
            progress.advance(self._note())
            after_update(self)
        report(Finished("train"))
        for place, member in enumerate(self.members):
            member.updater.check_skipped()
            if skipped := member.updater.num_skipped:
                report(Warned(f"{member_name(member.number)}: {skipped} updates were skipped: {SKIPPED}"))
            if not all(row.isfinite().all() for row in self.flat.row(place).values()):
                raise TaskError(
                    f"{member_name(member.number)} is not finite after the last update", hint=LOWER_RATE
                )
            member.model.eval()

    def _update(self, advance: Advance) -> None:
        rate = self.members[0].rate
        for place, (loss, count) in enumerate(advance(self.members)):
            self.totals[place] += loss
            self.counts[place] += count
        self.num_done += 1
        self._exchange(rate)
        if self.num_done % self.per_epoch == 0:
            self._end_epoch(self.num_done // self.per_epoch - 1)
        for member in self.members:
            member.average()

    def _exchange(self, rate: float) -> None:
        """Pull every average_every updates; a late one is finished async_average updates after it was
        begun."""
        late = self.recipe.async_average
        if self.pull.pending and self.num_done - self.pull.since >= late:
            self.pull.finish()
        if self.recipe.pulls and self.num_done % self.recipe.average_every == 0:
            share = pull_strength(self.recipe, rate)
            self.pull.begin(share, update=self.num_done) if late else self.pull.now(share)
        if self.num_done == self.num_updates:
            self.pull.finish()

    def _end_epoch(self, epoch: int) -> None:
        self._note_losses(epoch)
        if merges_after(self.recipe, epoch):
            self.pull.finish()
            self.history.replacements.append(replace_members(self, epoch))
        if (epoch + 1) % math.ceil(self.recipe.epochs / MEASUREMENTS) == 0 or epoch + 1 == self.recipe.epochs:
            self._measure()

    def _note_losses(self, epoch: int) -> None:
        """Mean losses of the epoch; refuse what is not finite."""
        sums = self.summed_losses()
        losses = (sums[:, 0] / sums[:, 1]).tolist()
        for number, loss in enumerate(losses):
            if not math.isfinite(loss):
                where = f"{member_name(number)} became {loss} in epoch {epoch + 1} of {self.recipe.epochs}"
                raise TaskError(f"the training loss of {where}", hint=LOWER_RATE)
        self.history.losses.append(losses)
        self.put_losses(np.zeros_like(sums))

    def summed_losses(self) -> NDArray[np.float64]:
        """Losses of the epoch under way and the number of examples, over all parts of the batches: float64[n
        × 2]."""
        own = [
            (m.number, float(t), c) for m, t, c in zip(self.members, self.totals, self.counts, strict=True)
        ]
        sums = np.zeros((self.grid.num_members, 2))
        for found in self.grid.world.gather(own):
            for number, total, count in found:
                sums[number] += total, count
        return sums

    def put_losses(self, sums: NDArray[np.float64]) -> None:
        """Go on from losses that were summed; the first of a member's ranks takes all of them."""
        for place, number in enumerate(self.grid.members):
            self.totals[place].fill_(sums[number, 0] if self.grid.leads else 0)
            self.counts[place] = int(sums[number, 1]) if self.grid.leads else 0

    def _measure(self) -> None:
        cosine, distance = similarity(gram(self.flat, self.grid))
        self.history.similarity.append({"update": self.num_done, "cosine": cosine, "distance": distance})

    def _note(self) -> str:
        epoch = min(self.num_done // self.per_epoch + 1, self.recipe.epochs)
        last = f", loss {np.mean(self.history.losses[-1]):.3f}" if self.history.losses else ""
        return f"epoch {epoch}/{self.recipe.epochs}{last}"
