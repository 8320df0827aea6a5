"""A member: one model of a population, and all that trains it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from soupkit.recipe.train import Finetune
from soupkit.task.images.task import saved
from soupkit.train.averages import averagings
from soupkit.train.batches import Place, finisher, loader, num_batches, train_transform
from soupkit.train.loop import TrainingData, Updater
from soupkit.train.population.grid import Grid
from soupkit.train.probe import Probe
from soupkit.train.randomness import Stream, seeded


class Batch(NamedTuple):
    """One rank's part of a batch: images, soft targets, and what its gradient is multiplied by."""

    images: Tensor
    targets: Tensor
    weight: float


class Member:
    """Number `number` of the population: its model, its own data order, augmentation, optimizer and schedule.

    All of its randomness is keyed by (recipe.seed, update), so it needs no state and does not depend on the
    rank. Call `begin` before the first `advance`, and `average` after each. averages: EMA and SWA of the
    member's weights.
    """

    def __init__(
        self,
        number: int,
        recipe: Finetune,
        model: nn.Module,
        data: TrainingData,
        *,
        grid: Grid,
        device: torch.device,
    ) -> None:
        self.number, self.recipe, self.model, self.data = number, recipe, model, data
        self.grid, self.device = grid, device
        self.per_epoch = num_batches(len(data.examples), recipe.batch_size)
        self.num_updates = recipe.epochs * self.per_epoch
        self.updater = Updater(
            model, recipe, device=device, num_updates=self.num_updates, updates_per_epoch=self.per_epoch
        )
        self.averages = averagings(
            recipe, saved(model), epochs=recipe.epochs, updates_per_epoch=self.per_epoch
        )
        for average in self.averages.values():
            average.attach(self.updater.optimizer)
        self.probe: Probe | None = None
        self.probe_updates = 0
        self.finish = finisher(data.settings, recipe, num_classes=data.num_classes, device=device)
        self.batches: Iterator[tuple[Place, Tensor, Tensor]] = iter(())
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
        transform = train_transform(self.data.settings, self.recipe, characters=self.data.characters)
        pin_memory, first = self.device.type == "cuda", self.updater.num_tried
        self.batches = loader(self.data.examples, transform, self.recipe, pin_memory=pin_memory, first=first)
        self.model.train()
        self._switch()

    @property
    def probing(self) -> bool:
        """Whether only the head learns in the coming update."""
        return self.updater.num_tried < self.probe_updates

    def advance(self) -> tuple[Tensor, int]:
        """One update: the loss before it, summed over this rank's part of the batch, and the size of that
        part."""
        return self.learn(self.next_batch())

    def next_batch(self) -> Batch:
        """This rank's part of the coming batch, on the device."""
        self._switch()
        return Batch(*self.grid.share(*self.finish(*next(self.batches))))

    def learn(self, batch: Batch) -> tuple[Tensor, int]:
        """The update that a batch makes; returns as `advance`."""
        with self.forward_randomness():
            loss = self.updater(batch.images, batch.targets, weight=batch.weight)
        return loss.double() * len(batch.images), len(batch.images)

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
            self.updater.model = self.grid.shared(self.model)
