"""A member: one model of a population, and all that trains it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

from torch import Tensor

from soupkit.recipe.train import Finetune
from soupkit.task.epochs import Place, num_batches
from soupkit.task.randomness import Stream, seeded
from soupkit.task.task import Batch, Task
from soupkit.train.averages import averagings
from soupkit.train.loop import Updater
from soupkit.train.population.grid import Grid
from soupkit.train.probe import Probe


class Member:
    """Number `number` of the population: its model, its own data order, augmentation, optimizer and schedule.

    All of its randomness is keyed by (recipe.seed, update), so it needs no state and does not depend on the
    rank. Call `begin` before the first `advance`, and `average` after each. averages: EMA and SWA of the
    member's weights.
    """

    def __init__(self, number: int, recipe: Finetune, task: Task, *, grid: Grid) -> None:
        self.number, self.recipe, self.task, self.grid = number, recipe, task, grid
        self.model, self.device = task.model, task.device
        self.per_epoch = num_batches(len(task.train), recipe.batch_size)
        self.num_updates = recipe.epochs * self.per_epoch
        self.updater = Updater(task, recipe, num_updates=self.num_updates, updates_per_epoch=self.per_epoch)
        self.averages = averagings(recipe, task.saved, epochs=recipe.epochs, updates_per_epoch=self.per_epoch)
        for average in self.averages.values():
            average.attach(self.updater.optimizer)
        self.probe: Probe | None = None
        self.probe_updates = 0
        self.batches: Iterator[tuple[Place, Batch]] = iter(())
        self._probing: bool | None = None

    @property
    def rate(self) -> float:
        """The learning rate of the coming update as a share of the highest, layer decay aside."""
        group = self.updater.optimizer.param_groups[0]
        return float(group["lr"]) / float(group.get("lr_scale", 1.0)) / self.recipe.lr

    def probe_for(self, share: float) -> None:
        """Let only the head learn in this share of the updates, the first ones. Raises RecipeError without a
        head."""
        self.probe_updates = round(share * self.num_updates)
        self.probe = Probe(self.model) if self.probe_updates else None

    def begin(self) -> None:
        """Make ready for update number `updater.num_tried`: its batches and modes."""
        self.batches = self.task.training(self.recipe, first=self.updater.num_tried)
        self.model.train()
        self._switch()

    @property
    def probing(self) -> bool:
        """Whether only the head learns in the coming update."""
        return self.updater.num_tried < self.probe_updates

    def advance(self) -> tuple[Tensor, int]:
        """One update: the loss before it, summed over this rank's part of the batch, and the size of that
        part."""
        return self.learn(*self.next_batch())

    def next_batch(self) -> tuple[Batch, float]:
        """This rank's part of the coming batch, and what its gradient is multiplied by."""
        self._switch()
        _, batch = next(self.batches)
        return self.grid.share(batch)

    def learn(self, batch: Batch, weight: float) -> tuple[Tensor, int]:
        """The update that a batch makes; returns as `advance`."""
        with self.forward_randomness():
            loss = self.updater(batch, weight=weight)
        return loss.double() * len(batch), len(batch)

    def forward_randomness(self) -> AbstractContextManager[None]:
        """The generators that dropout and stochastic depth draw from in the coming update."""
        return seeded(
            self.recipe.seed, Stream.FORWARD, self.updater.num_tried, self.grid.part, device=self.device
        )

    def average(self) -> None:
        """Let the averages take in the weights as they are now, unless the update was skipped."""
        if not self.updater.stepped:
            return
        for average in self.averages.values():
            average.update()

    def _switch(self) -> None:
        """Probe or not; what shares the gradients must be made anew when other parameters get one."""
        if self.probing != self._probing:
            self._probing = self.probing
            if self.probe is not None:
                self.probe.switch(probing=self.probing)
            self.updater.task = self.task.around(self.grid.shared(self.task))
