"""One update of every member of a rank: one after another, on streams of a GPU, or as one model where torch
can.

Shape suffixes: M members, B examples of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from soupkit.errors import RecipeError
from soupkit.task.randomness import Stream, seeded
from soupkit.task.task import Batch, Task
from soupkit.train.loop import precision
from soupkit.train.population.flat import Flat
from soupkit.train.population.members import Member

Advance = Callable[[Sequence[Member]], list[tuple[Tensor, int]]]
"""Members → for each the loss before the update, summed over its examples, and their number."""


def one_by_one(members: Sequence[Member]) -> list[tuple[Tensor, int]]:
    """The plain way."""
    return [member.advance() for member in members]


def choose_advance(members: Sequence[Member], flat: Flat, *, wish: str, device: torch.device) -> Advance:
    """How the members of a rank are updated: on a GPU vectorised where the model allows it, else on streams.

    wish: "off" takes one after another, "on" vectorises anywhere. Raises RecipeError when it is wished for
    and not possible.
    """
    if wish == "off" or (wish == "auto" and (device.type != "cuda" or len(members) == 1)):
        return one_by_one
    vectorised = Vectorised(members, flat)
    problem = vectorised.problem()
    if problem is None:
        return vectorised
    if wish == "on":
        raise RecipeError(f"these members cannot be vectorised: {problem}", hint="--vectorize off")
    return OnStreams(len(members), device)


class OnStreams:
    """Every member on a stream of its own, so that the kernels of small models overlap. The same results as
    one by one.

    Each stream waits for what came before on the current one, and that for all of them.
    """

    def __init__(self, num_members: int, device: torch.device) -> None:
        self._module, self._device = torch.get_device_module(device), device
        self._streams = [self._module.Stream(device) for _ in range(num_members)]

    def __call__(self, members: Sequence[Member]) -> list[tuple[Tensor, int]]:
        """One update of every member."""
        here, found = self._module.current_stream(self._device), []
        for member, stream in zip(members, self._streams, strict=True):
            stream.wait_stream(here)
            with self._module.stream(stream):
                found.append(member.advance())
        for stream in self._streams:
            here.wait_stream(stream)
        return found


class Vectorised:
    """M models as one: the rows of `flat` are the stacked parameters, so nothing is copied but batch-norm
    statistics.

    torch.func's vmap makes of M convolutions one with M groups. The same losses, gradients and statistics as
    one by one up to rounding; dropout draws other masks. Each member keeps its own optimizer. Batches that
    differ in size, and updates in which only heads learn, are done one by one. Memory: as one by one, plus
    the activations of all members.
    """

    def __init__(self, members: Sequence[Member], flat: Flat) -> None:
        self.members, self.flat = members, flat
        self.model = members[0].model
        trained = dict(self.model.named_parameters())
        self.parameters = [name for name in flat.spans if name in trained]
        self.buffers = [name for name in flat.spans if name not in trained]

    def problem(self) -> str | None:
        """Why the model cannot be vectorised, None when it can: found by trying, on two examples."""
        if self.flat.models[0] is not self.model:
            return "its head is made by another tower"
        if self.members[0].grid.num_parts > 1:
            return "a member has several ranks"
        first = self.members[0]
        two = next(first.task.train.batches(batch_size=2, indices=np.arange(min(2, len(first.task.train)))))
        self.model.train()
        try:
            with torch.no_grad(), seeded(0, Stream.FORWARD, device=first.device):
                self._losses(self._stacked(), self._statistics(), [two] * len(self.members))
        except Exception as error:  # whatever a model does that vmap has no rule for
            return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return None

    def __call__(self, members: Sequence[Member]) -> list[tuple[Tensor, int]]:
        """One update of every member."""
        batches = [member.next_batch() for member in members]
        shapes = {tuple(tensor.shape for tensor in batch.tensors) for batch, _ in batches}
        if len(shapes) > 1 or any(member.probing for member in members):
            return [member.learn(*batch) for member, batch in zip(members, batches, strict=True)]
        return self._learn([batch for batch, _ in batches])

    def _learn(self, batches: Sequence[Batch]) -> list[tuple[Tensor, int]]:
        first = self.members[0]
        parameters = {name: tensor.requires_grad_() for name, tensor in self._stacked().items()}
        statistics = self._statistics()
        with first.forward_randomness(), precision(first.recipe, first.device):
            losses = self._losses(parameters, statistics, batches)
        scaled = [m.updater.scaler.scale(loss) for m, loss in zip(self.members, losses, strict=True)]
        torch.stack(scaled).sum().backward()  # type: ignore[no-untyped-call]
        self._descend(parameters)
        self._put_statistics(statistics)
        num = len(batches[0])
        return [(loss.double() * num, num) for loss in losses.detach()]

    def _losses(
        self, parameters: dict[str, Tensor], statistics: dict[str, Tensor], batches: Sequence[Batch]
    ) -> Tensor:
        """The mean loss of each member on its batch, float[M]; statistics [M × …] change in place."""
        loss, like = _MeanLoss(self.members[0].task), batches[0]

        def one(weights: dict[str, Tensor], buffers: dict[str, Tensor], *tensors: Tensor) -> Any:
            own = {f"model.{name}": tensor for name, tensor in {**weights, **buffers}.items()}
            return functional_call(loss, own, (like.of(*tensors),))

        stacked = map(torch.stack, zip(*(batch.tensors for batch in batches), strict=True))
        losses: Tensor = vmap(one, randomness="different")(parameters, statistics, *stacked)
        return losses

    def _stacked(self) -> dict[str, Tensor]:
        """The parameters of all members [M × …]: views of the rows, leaves of a new graph."""
        spans = ((name, self.flat.spans[name]) for name in self.parameters)
        return {name: vmap(span.view)(self.flat.rows[span.dtype]).detach() for name, span in spans}

    def _statistics(self) -> dict[str, Tensor]:
        """Copies of the buffers of all members [M × …]: vmap updates them in place only where they are
        contiguous."""
        spans = ((name, self.flat.spans[name]) for name in self.buffers)
        floating = {name: vmap(span.view)(self.flat.rows[span.dtype]).contiguous() for name, span in spans}
        integers = [self.flat.integers(row) for row in range(len(self.members))]
        return floating | {name: torch.stack([each[name] for each in integers]) for name in integers[0]}

    def _put_statistics(self, statistics: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for row in range(len(self.members)):
                own = self.flat.tensors(self.flat.row(row)) | self.flat.integers(row)
                for name, stacked in statistics.items():
                    own[name].copy_(stacked[row])

    def _descend(self, parameters: dict[str, Tensor]) -> None:
        """Every optimizer steps along its row of the stacked gradients."""
        for row, member in enumerate(self.members):
            own = dict(member.model.named_parameters())
            for name, stacked in parameters.items():
                own[name].grad = None if stacked.grad is None else stacked.grad[row]
            member.updater.descend()


class _MeanLoss(nn.Module):
    """The mean loss of a batch as a module, into whose model torch.func can put other weights."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task, self.model = task, task.model

    def forward(self, batch: Batch) -> Tensor:
        return self.task.loss(batch) / len(batch)
