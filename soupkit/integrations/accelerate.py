"""Averages in a loop of accelerate.

model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
averages = averages_of(accelerator, model, optimizer, {"ema": Ema.of_half_life(2000)})
...                                              # train as before; the averages follow every step
accelerator.save_state(folder)                   # they are saved with it, and load_state goes on exactly
averages.write(folder / "ema", "ema")
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from soupkit.integrations.averages import DEFAULT, Averages, Options
from soupkit.merge.running import Rule


def averages_of(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    rules: Mapping[str, Rule] = DEFAULT,
    **options: Unpack[Options],
) -> Averages:
    """Averages of a prepared model that follow its prepared optimizer and go along with the accelerator's
    states.

    A step that a scaler leaves out is not averaged. options: those of soupkit.integrations.Averages.
    """
    averages = Averages(accelerator.unwrap_model(model), rules, **options)
    optimizer.optimizer.register_step_post_hook(lambda *_: averages.update())
    accelerator.register_for_checkpointing(averages)
    return averages
