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

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from soupkit.errors import TaskError
from soupkit.jsons import Json, JsonView
from soupkit.merge.running import Ema, Rule
from soupkit.train.averaging import Averaging
from soupkit.train.live import Buffers

KEY = "soupkit.ema"
"""Where the average and its counter stand in the optimizer's state_dict; a second average's at KEY.2."""


class EMAOptimizer(torch.optim.Optimizer):
    """Any torch optimizer and an average of the model's weights; everything that is not said here is the
    optimizer's own.

    It is a torch.optim.Optimizer to whoever asks (schedulers, GradScaler, the Trainer of transformers,
    accelerate, Lightning), and hooks into the one that it wraps (`.optimizer`), so that a step of either is
    averaged, and one that a scaler skips is not. The options are those of soupkit.merge.running.Ema and
    soupkit.train.averaging.Averaging. half_life: steps in which a weight halves, in the place of decay; rule:
    any other rule of soupkit.merge.running (Bema, Swa, Planned, PowerEma) in the place of all that describes
    an EMA. Unlike the wrapper proposed for torch (PR 94820) it swaps batch-norm statistics too, and its
    state_dict() holds the average and the number of steps. While swapped, step(), state_dict() and
    model.state_dict() raise TaskError. One optimizer may have several, of other decays. copy.deepcopy and
    pickle copy optimizer, model and average together: the copy trains and averages a model of its own,
    `.averaging.source`. To copy it beside a model of yours, copy both at once: copy.deepcopy((model,
    optimizer)).
    """

    _step_supports_amp_scaling = False
    """A scaler decides before the step whether there is one, else a skipped one would be averaged."""

    def __init__(  # the wrapped optimizer keeps groups and states: torch's own __init__ would make others
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        *,
        decay: float = 0.999,
        half_life: float | None = None,
        rule: Rule | None = None,
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
        if rule is not None and (decay, half_life, every, start, gamma) != (0.999, None, 1, 0, None):
            raise TaskError("rule stands in the place of decay, half_life, every, start and gamma")
        if half_life is not None and decay != 0.999:
            raise TaskError("decay and half_life say the same", hint="give one of them")
        self.optimizer = optimizer
        if half_life is not None:
            decay = Ema.of_half_life(half_life, every=every).decay
        self.averaging = Averaging(
            model,
            rule or Ema(decay, every=every, start=start, gamma=gamma, power=power),
            buffers=buffers,
            ignore=ignore,
            device=device,
            asynchronous=asynchronous,
            switch_every=switch_every,
        )
        self._hook_in()

    @property
    def state(self) -> defaultdict[Tensor, Json]:
        """The optimizer's own, as are the groups and the defaults."""
        return self.optimizer.state

    @state.setter
    def state(self, state: defaultdict[Tensor, Json]) -> None:
        self.optimizer.state = state

    @property
    def param_groups(self) -> list[Json]:
        """The optimizer's own."""
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[Json]) -> None:
        self.optimizer.param_groups = groups

    @property
    def defaults(self) -> Json:
        """The optimizer's own."""
        return self.optimizer.defaults

    @defaults.setter
    def defaults(self, defaults: Json) -> None:
        self.optimizer.defaults = defaults

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """A step of the optimizer, and with it of the average."""
        return self.optimizer.step(closure) if closure is not None else self.optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the optimizer does."""
        self.optimizer.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: Json) -> None:
        """To the optimizer; what is averaged is the model's."""
        self.optimizer.add_param_group(param_group)

    def state_dict(self) -> Json:
        """The optimizer's, with the average and its counter."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: Json) -> None:
        """Into the optimizer, and into the average. Raises TaskError for a state without one."""
        self.optimizer.load_state_dict(state_dict)

    def __repr__(self) -> str:
        return f"EMAOptimizer({self.optimizer!r})"

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
        self, *, refresh: Callable[[nn.Module], object] | None = None
    ) -> AbstractContextManager[None]:
        """Inside, the model holds the averaged weights and buffers; afterwards its own, bit for bit.

        refresh: re-estimates batch-norm statistics of the averaged model, with buffers="refresh".
        """
        return self.averaging.swapped(refresh=refresh)

    def ema_state_dict(self) -> Json:
        """A copy of the averaged model's whole state, as model.state_dict() names it, which the model loads
        strictly.

        Tied names, shared modules and extra state are in it, buffers that are not persistent are not. A model
        in a wrapper (DistributedDataParallel, torch.compile) has the wrapper's names: give the model inside
        for plain ones. Raises TaskError while swapped.
        """
        return self.averaging.averaged_state()

    def _load(self, state: Json) -> Json:
        if self.key not in state:
            raise TaskError(
                "the optimizer's state has no average: it was saved without EMA",
                hint="load it into the inner optimizer before EMAOptimizer wraps it, to begin the "
                "average there",
            )
        saved: JsonView = state[self.key]
        self.averaging.load(saved)
        return {key: value for key, value in state.items() if key != self.key}

    def __getattr__(self, name: str) -> Any:
        if name == "optimizer" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)  # while a copy is made there is no optimizer yet
        return getattr(self.optimizer, name)

    def __getstate__(self) -> Json:
        return {"optimizer": self.optimizer, "averaging": self.averaging}

    def __setstate__(self, state: Json) -> None:
        self.__dict__.update(state)
        self._hook_in()

    def __copy__(self) -> EMAOptimizer:
        raise TaskError(
            "two EMAOptimizers cannot share one optimizer", hint="use copy.deepcopy, which copies all of it"
        )
