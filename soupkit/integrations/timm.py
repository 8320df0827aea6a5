"""An average in timm's training script: what it calls `model_ema`, with a counter that survives a resume.

optimizer = EMAOptimizer(create_optimizer_v2(model, **cfg), model, half_life=2000) model_ema =
ModelAverage(optimizer, model)      # in the place of ModelEmaV3 ...
# validate(model_ema, …), CheckpointSaver(…, model_ema=model_ema)
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from soupkit.train.ema import EMAOptimizer


class ModelAverage(nn.Module):
    """The average of an EMAOptimizer as a model: `module` is it as of now, and calling this calls that.

    The average is the optimizer's and is saved with its state, which timm does; `state_dict_ema` in a
    checkpoint is for whoever loads it. Memory: a copy of the model.
    """

    def __init__(self, optimizer: EMAOptimizer, model: nn.Module) -> None:
        super().__init__()
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self._averaging = [optimizer.averaging]  # in a list, so that its model is no submodule of this one
        self._as_of = -1

    @property
    def module(self) -> nn.Module:
        """The averaged model."""
        averaging = self._averaging[0]
        if averaging.num_steps != self._as_of:
            self.average.load_state_dict(averaging.averaged_state())
            self._as_of = averaging.num_steps
        return self.average

    def update(self, model: nn.Module, step: int | None = None) -> None:
        """Nothing: the average follows the optimizer's steps."""

    def set(self, model: nn.Module) -> None:
        """Nothing: the average is the optimizer's."""

    @torch.no_grad()
    def forward(self, *arguments: object, **options: object) -> object:
        """What the averaged model says."""
        return self.module(*arguments, **options)
