"""Averages in Lightning: a callback (`pip install lightning`).

trainer = Trainer(..., callbacks=[AveragesCallback({"ema": Ema.of_half_life(2000)}, evaluate="ema")])
trainer.fit(module, ckpt_path="last")

A checkpoint holds the averages' state, from which training goes on exactly, and `NAME_state_dict`: the
averaged weights, which `soupkit convert --key NAME_state_dict` takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Unpack

from lightning.pytorch import Callback, LightningModule, Trainer

from soupkit.errors import TaskError
from soupkit.integrations.averages import DEFAULT, Averages, Options
from soupkit.jsons import Json
from soupkit.merge.running import Rule


class AveragesCallback(Callback):
    """Averages follow every optimizer step (one that a scaler leaves out counts, for Lightning does not say
    so).

    rules and options: those of soupkit.integrations.Averages. evaluate: the average that validation is of.
    Raises TaskError.
    """

    def __init__(
        self, rules: Mapping[str, Rule] = DEFAULT, *, evaluate: str | None = None, **options: Unpack[Options]
    ) -> None:
        if evaluate is not None and evaluate not in rules:
            raise TaskError(f"there is no average {evaluate!r}", hint=f"there are: {', '.join(rules)}")
        self.rules, self.options, self.evaluate = rules, options, evaluate
        self.averages: Averages | None = None
        self._steps = 0
        self._swapped = ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The averages are there before a checkpoint is restored into them."""
        if stage == "fit":
            self.averages = Averages(pl_module, self.rules, **self.options)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from where the training is."""
        self._steps = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Average when there was a step: not while gradients accumulate."""
        if self.averages is not None and trainer.global_step != self._steps:
            self._steps = trainer.global_step
            self.averages.update()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the average."""
        if self.averages is not None and self.evaluate is not None and not trainer.sanity_checking:
            self._swapped.enter_context(self.averages.swapped(self.evaluate))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The weights are back before any checkpoint is saved."""
        self._swapped.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The weights are back whatever ended the validation."""
        self._swapped.close()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: Json) -> None:
        """Put the averaged weights beside the trained ones."""
        for name in self.averages.ready if self.averages is not None else ():
            assert self.averages is not None
            checkpoint[f"{name}_state_dict"] = self.averages.averaged(name)

    def state_dict(self) -> Json:
        """What an exact resume needs."""
        return self.averages.state_dict() if self.averages is not None else {}

    def load_state_dict(self, state_dict: Json) -> None:
        """Go on from a checkpoint."""
        if self.averages is not None and state_dict:
            self.averages.load_state_dict(state_dict)
