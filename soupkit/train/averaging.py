"""Averages of the weights along training: SWA, EMA and power-function EMA, beside the model that is
trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from soupkit.errors import TaskError
from soupkit.jsons import Json, JsonView
from soupkit.merge.running import Bema, Rule
from soupkit.train.live import Buffers, Guard, copied_state, getters_of, is_buffer, split_names
from soupkit.train.overlap import Lane, corrected, lane_for


class Averaging:
    """One running average of a model's state, by a rule of soupkit.merge.running; the model itself is not
    touched.

    Call `update()` after each optimizer step. The step is counted here and is part of `state()`, so warmups
    survive a resume. Floating parameters are averaged in at least float32: in bfloat16 a decay of 0.999 moves
    nothing.

    buffers: what becomes of batch-norm statistics and other floating buffers. "average": as the weights;
    "copy": those of the live model at the time of use; "refresh": as "copy", until `swapped(refresh=…)`
    estimates them again. Integers (counters) are always the live model's. ignore: patterns (regular
    expressions, searched) of names that are not averaged but the live model's too. device: where the average
    is kept ("cpu" takes it off a GPU); None: beside each tensor. asynchronous: on a side CUDA stream or in a
    thread; then `release()` must come before the next optimizer step, which `attach(optimizer)` sees to.
    A Bema's correction is that of the weights at the time of use; buffers have none.
    switch_every: write the average back into the model after every so many steps (Switch EMA: Li et al. 2024,
    arXiv:2402.09240, do so after each epoch); 0: never.

    source: a module, or the tensors of its state by name (they must stay the same objects). A deep or pickled
    copy averages its own copy of the source; an optimizer that was attached is not.
    Memory: one copy of what is averaged (two with Bema), from the first averaging on; while swapped, another.
    Cost per averaging: one read of the weights, one read and write of the average.
    """

    def __init__(
        self,
        source: nn.Module | Mapping[str, Tensor],
        rule: Rule,
        *,
        buffers: Buffers = "average",
        ignore: Sequence[str] = (),
        device: torch.device | str | None = None,
        asynchronous: bool = False,
        switch_every: int = 0,
    ) -> None:
        self.source, self.rule, self.buffers = source, rule, buffers
        self.device, self.asynchronous, self.switch_every = device, asynchronous, switch_every
        self.num_steps = 0
        self.ignore = tuple(ignore)
        self._average: list[Tensor] = []
        self._origin: list[Tensor] = []
        self._begin()

    def _begin(self) -> None:
        """Look the tensors up, whose places are those of this very source."""
        self._getters = dict(getters_of(self.source))
        self._averaged, self._by_forward = split_names(self.source, self._getters, self.buffers, self.ignore)
        self._lane: Lane | None = None
        self._swapped = False

    def __getstate__(self) -> Json:
        self._refuse_swapped("copied")
        self.finish()
        kept = (
            "source",
            "rule",
            "buffers",
            "ignore",
            "device",
            "asynchronous",
            "switch_every",
            "num_steps",
            "_average",
            "_origin",
        )
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: Json) -> None:
        self.__dict__.update(state)
        self._begin()

    def __copy__(self) -> Averaging:
        raise TaskError(
            "two averages cannot share one model's average", hint="use copy.deepcopy, which copies both"
        )

    @property
    def names(self) -> list[str]:
        """What is averaged."""
        return [*self._averaged, *self._by_forward]

    @property
    def is_ready(self) -> bool:
        """Whether anything has been averaged yet; until then the average is the live model."""
        return bool(self._average)

    def update(self) -> None:
        """Take note of one optimizer step, and average if it is time. Raises TaskError while swapped."""
        self._refuse_swapped("updated")
        self.num_steps += 1
        rate = self.rule.rate(self.num_steps)
        if rate is not None:
            self._move(rate)
        if self.switch_every and self.num_steps % self.switch_every == 0:
            self.switch()

    @torch.no_grad()
    def switch(self) -> None:
        """Write the average into the live model."""
        self.finish()
        if self._average:
            torch._foreach_copy_(self._live(), self._corrected())

    def release(self) -> None:
        """Return when the weights may change. Raises TaskError while swapped, when they must not."""
        self._refuse_swapped("trained")
        if self._lane is not None:
            self._lane.release()

    def finish(self) -> None:
        """Return when the average is up to date; every method that reads it does so."""
        if self._lane is not None:
            self._lane.finish()

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Let every step of `optimizer` call `release` first."""
        optimizer.register_step_pre_hook(lambda *_: self.release())

    def tensors(self) -> dict[str, Tensor]:
        """The averaged model's whole state, names as in its state_dict: the average where there is one, else
        live.

        References, not copies, in the dtypes of the average. Raises TaskError while swapped.
        """
        self._refuse_swapped("read")
        self._refuse_changed()
        self.finish()
        average = dict(zip(self.names, self._corrected(), strict=True)) if self._average else {}
        return {name: average.get(name, get().detach()) for name, get in self._getters.items()}

    def state(self) -> Json:
        """What a resume needs: {"num_steps", "average": {name: tensor}}, of a Bema "origin" too; references.

        Raises TaskError while swapped: the weights of the model are then not those that are trained.
        """
        self._refuse_swapped("saved")
        self._refuse_changed()
        self.finish()
        names = self.names if self._average else []
        kept = {"num_steps": self.num_steps, "average": dict(zip(names, self._average, strict=True))}
        if isinstance(self.rule, Bema):
            kept["origin"] = dict(zip(self._averaged, self._origin, strict=False))
        return kept

    @torch.no_grad()
    def load(self, state: JsonView) -> None:
        """Go on from `state()`. Raises TaskError for a state of another model, and then changed nothing."""
        self._refuse_swapped("loaded")
        self.finish()
        if isinstance(self.rule, Bema) != ("origin" in state):
            raise TaskError(
                "the saved average is of another rule", hint="resume with the options it was made with"
            )
        saved, shapes = state["average"], {name: self._getters[name]().shape for name in self.names}
        if saved and {name: tensor.shape for name, tensor in saved.items()} != shapes:
            raise TaskError(
                "the saved average is of another model", hint="resume with the options it was made with"
            )
        self.num_steps = int(state["num_steps"])
        pairs = zip(self.names, self._live(), strict=True)
        self._average = [self._kept(saved[name], live) for name, live in pairs] if saved else []
        origins = state["origin"] if isinstance(self.rule, Bema) else {}
        self._origin = [
            self._kept(origins[name], self._getters[name]()) for name in self._averaged if origins
        ]
        self._lane = None

    @contextmanager
    def swapped(self, *, refresh: Callable[[nn.Module], Any] | None = None) -> Iterator[None]:
        """Inside, the model holds the averaged weights and buffers; afterwards its own again, bit for bit.

        refresh: estimates batch-norm statistics again, for `buffers="refresh"`, as
        soupkit.task.batch_norm.refresh. While swapped, `state()`, `update()` and the model's own state_dict()
        raise TaskError: a checkpoint saved now would hold the average in the place of the weights.
        `averaged_state` is how to get it.
        """
        self._refuse_swapped("swapped in again")
        self._refuse_changed()
        self.finish()
        live = self._live() if self._average else []
        buffers = self._live_buffers() if refresh else []
        aside = [tensor.detach().clone() for tensor in (*live, *buffers)]
        self._swapped, self._unguard = True, self._guard()
        try:
            with torch.no_grad():
                if live:
                    torch._foreach_copy_(live, self._corrected())
            if refresh and isinstance(self.source, nn.Module):
                refresh(self.source)
            yield
        finally:
            self._unguard()
            self._swapped = False
            with torch.no_grad():
                for tensor, was in zip((*live, *buffers), aside, strict=True):
                    tensor.copy_(was)

    def averaged_state(self, *, refresh: Callable[[nn.Module], Any] | None = None) -> Json:
        """A copy of what the averaged model's state_dict() is, in the model's dtypes, which the model loads
        strictly.

        Every name that the model gives itself, tied ones and shared modules' among them (their copies are
        tied too), and its extra state; with re-estimated statistics if asked. A wrapped model's names are the
        wrapper's.
        """
        with self.swapped(refresh=refresh):
            if isinstance(self.source, nn.Module):
                with self._unguarded():
                    return copied_state(self.source)
            return {name: get().detach().clone() for name, get in self._getters.items()}

    def _move(self, rate: float) -> None:
        self._refuse_changed()
        live = self._live()
        for name, tensor, average in zip(self.names, live, self._average, strict=False):
            if tensor.shape != average.shape:
                raise TaskError(
                    f"{name} has the shape {list(tensor.shape)} now, its average {list(average.shape)}",
                    hint="begin a new average where a model changes its shape",
                )
        if not self._average:
            self._average = [self._kept(tensor, tensor) for tensor in live]
            if isinstance(self.rule, Bema):
                self._origin = [tensor.clone() for tensor in self._average[: len(self._averaged)]]
            return
        lane = self._lane = self._lane or self._new_lane(live)
        number = len(self._averaged)
        lane.finish()
        lane.lerp(self._average[:number], live[:number], rate)
        if number < len(live):  # the next forward pass changes these, so they cannot wait
            lane_for((), (), asynchronous=False).lerp(self._average[number:], live[number:], rate)

    def _corrected(self) -> list[Tensor]:
        """The average, and of a Bema what its correction makes of it."""
        if not isinstance(self.rule, Bema):
            return self._average
        number = len(self._averaged)
        alpha, live = self.rule.alpha(self.num_steps), self._live()[:number]
        return [*corrected(self._average[:number], live, self._origin, alpha), *self._average[number:]]

    def _new_lane(self, live: Sequence[Tensor]) -> Lane:
        return lane_for(self._average, live[: len(self._averaged)], asynchronous=self.asynchronous)

    def _live(self) -> list[Tensor]:
        return [self._getters[name]() for name in self.names]

    def _live_buffers(self) -> list[Tensor]:
        averaged = set(self.names)
        return [
            get()
            for name, get in self._getters.items()
            if name not in averaged and is_buffer(self.source, name)
        ]

    @torch.no_grad()
    def _kept(self, tensor: Tensor, live: Tensor) -> Tensor:
        """A copy to average in: at least float32, where the average is kept, laid out in memory as the live
        tensor."""
        dtype = torch.promote_types(live.dtype, torch.float32)
        return torch.empty_like(
            live, dtype=dtype, device=self.device or live.device, requires_grad=False
        ).copy_(tensor)

    def _refuse_swapped(self, what: str) -> None:
        if self._swapped:
            raise TaskError(
                f"the average cannot be {what} while it is swapped into the model",
                hint="leave `swapped()` first",
            )

    def _refuse_changed(self) -> None:
        changed = dict(getters_of(self.source)).keys() ^ self._getters.keys()
        if changed:
            raise TaskError(
                f"the model has other tensors than when its average began: {min(changed)} for one",
                hint="begin a new average where layers are added, removed or tied",
            )

    @contextmanager
    def _unguarded(self) -> Iterator[None]:
        """For the one who knows that the model holds its average."""
        self._unguard()
        try:
            yield
        finally:
            self._unguard = self._guard()

    def _guard(self) -> Callable[[], None]:
        """Make the model refuse to be saved while it holds the average."""
        if not isinstance(self.source, nn.Module):
            return lambda: None

        guard = Guard()
        hooks = [module.register_state_dict_pre_hook(guard) for module in self.source.modules()]  # type: ignore[no-untyped-call]

        def remove() -> None:
            for hook in hooks:
                hook.remove()

        return remove
