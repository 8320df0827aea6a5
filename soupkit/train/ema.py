"""`EMAOptimizer`: an optimizer whose every step keeps an average of the weights too, for training loops of
your own.

optimizer = EMAOptimizer(torch.optim.AdamW(model.parameters(), lr=1e-3), model, decay=0.999)
...                                     # train as before: zero_grad, backward, step
with optimizer.swap_ema_weights():      # the model holds the average, batch-norm statistics included
    evaluate(model)
torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "last.pt")   # resumes exactly
torch.save(optimizer.ema_state_dict(), "ema.pt")                                             # the averaged
model
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from soupkit.errors import TaskError
from soupkit.merge.running import Ema
from soupkit.train.averaging import Averaging
from soupkit.train.live import Buffers

KEY = "soupkit.ema"
"""Where the average and its counter stand in the optimizer's state_dict; a second average's at KEY.2."""


class EMAOptimizer:
    """Any torch optimizer and an EMA of the model's weights; everything that is not said here is the
    optimizer's own.

    It hooks into the optimizer, so a learning-rate scheduler or GradScaler that holds the inner one
    (`.optimizer`, of which it is the wrapper) works as ever: a step that the scaler skips is not averaged.
    The options are those of soupkit.merge.running.Ema and soupkit.train.averaging.Averaging. Unlike the
    wrapper proposed for torch (PR 94820) it swaps batch-norm statistics too, and its state_dict() holds the
    average and the number of steps. While swapped, step(), state_dict() and model.state_dict() raise
    TaskError. One optimizer may have several, of other decays. copy.deepcopy and pickle copy optimizer, model
    and average together: the copy trains and averages a model of its own, `.averaging.source`. To copy it
    beside a model of yours, copy both at once: copy.deepcopy((model, optimizer)).
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        *,
        decay: float = 0.999,
        every: int = 1,
        start: int = 0,
        gamma: float | None = None,
        power: float = 2 / 3,
        buffers: Buffers = "average",
        ignore: Sequence[str] = (),
        device: torch.device | str | None = None,
        asynchronous: bool = False,
        switch_every: int = 0,
    ) -> None:
        trained = {id(each) for group in optimizer.param_groups for each in group["params"]}
        if trained.isdisjoint(map(id, model.parameters())):
            raise TaskError(
                "the optimizer trains none of the model's parameters, so their average would never move",
                hint="give the model that it trains; beside an optimizer of copies, update an Averaging",
            )
        self.optimizer = optimizer
        self.averaging = Averaging(
            model,
            Ema(decay, every=every, start=start, gamma=gamma, power=power),
            buffers=buffers,
            ignore=ignore,
            device=device,
            asynchronous=asynchronous,
            switch_every=switch_every,
        )
        self._hook_in()

    def _hook_in(self) -> None:
        """Follow what the inner optimizer does; its own copies lose their hooks."""
        number = getattr(self.optimizer, "num_averages", 0) + 1
        self.optimizer.num_averages = number  # type: ignore[attr-defined]
        self.key = KEY if number == 1 else f"{KEY}.{number}"
        self.averaging.attach(self.optimizer)
        self.optimizer.register_step_post_hook(lambda *_: self.averaging.update())
        self.optimizer.register_state_dict_post_hook(
            lambda _, state: state | {self.key: self.averaging.state()}
        )
        self.optimizer.register_load_state_dict_pre_hook(lambda _, state: self._load(state))

    def swap_ema_weights(
        self, *, refresh: Callable[[nn.Module], Any] | None = None
    ) -> AbstractContextManager[None]:
        """Inside, the model holds the averaged weights and buffers; afterwards its own, bit for bit.

        refresh: re-estimates batch-norm statistics of the averaged model, with buffers="refresh".
        """
        return self.averaging.swapped(refresh=refresh)

    def ema_state_dict(self) -> dict[str, Any]:
        """A copy of the averaged model's whole state, as model.state_dict() names it, which the model loads
        strictly.

        Tied names, shared modules and extra state are in it, buffers that are not persistent are not. A model
        in a wrapper (DistributedDataParallel, torch.compile) has the wrapper's names: give the model inside
        for plain ones. Raises TaskError while swapped.
        """
        return self.averaging.averaged_state()

    def _load(self, state: dict[str, Any]) -> dict[str, Any]:
        if self.key not in state:
            raise TaskError(
                "the optimizer's state has no average: it was saved without EMA",
                hint="load it into the inner optimizer before EMAOptimizer wraps it, to begin the "
                "average there",
            )
        saved: Mapping[str, Any] = state[self.key]
        self.averaging.load(saved)
        return {key: value for key, value in state.items() if key != self.key}

    def __getattr__(self, name: str) -> Any:
        if name == "optimizer" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)  # while a copy is made there is no optimizer yet
        return getattr(self.optimizer, name)

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer, "averaging": self.averaging}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._hook_in()

    def __copy__(self) -> EMAOptimizer:
        raise TaskError(
            "two EMAOptimizers cannot share one optimizer", hint="use copy.deepcopy, which copies all of it"
        )
