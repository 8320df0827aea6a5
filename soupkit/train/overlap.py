"""Where the arithmetic of an average runs: at once, in a thread, or on a CUDA stream beside the training's
own.

A job reads the live weights. It may run while the next batch goes forward and backward, for these change
gradients only; before the optimizer changes the weights, `release` waits until they have been read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor


class Lane(Protocol):
    """Runs the updates of one average, one after another."""

    def lerp(self, average: Sequence[Tensor], live: Sequence[Tensor], rate: float) -> None:
        """Move the average towards the live weights, in place, by now or soon."""

    def release(self) -> None:
        """Return when the live weights may change."""

    def finish(self) -> None:
        """Return when the average is up to date."""


def lane_for(average: Sequence[Tensor], live: Sequence[Tensor], *, asynchronous: bool) -> Lane:
    """At once; asynchronous: a side stream for an average on CUDA, a thread for one on the CPU."""
    if not asynchronous or not live:
        return AtOnce()
    if average[0].is_cuda:
        return SideStream(average)
    return OffloadedThread(live) if live[0].is_cuda else InThread()


class AtOnce:
    """The update is done when `lerp` returns (on CUDA: is queued before whatever comes next)."""

    def lerp(self, average: Sequence[Tensor], live: Sequence[Tensor], rate: float) -> None:
        """w̄ ← w̄ + rate·(w − w̄)."""
        lerp(average, live, rate)

    def release(self) -> None:
        """Nothing is under way."""

    def finish(self) -> None:
        """Nothing is under way."""


class InThread:
    """A thread of the CPU; torch's operations let go of the interpreter, so the next batch is loaded
    meanwhile."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "soupkit-average")
        self._under_way: Future[None] | None = None

    def lerp(self, average: Sequence[Tensor], live: Sequence[Tensor], rate: float) -> None:
        """Hand the update to the thread."""
        self.submit(lerp, average, live, rate)

    def submit(self, work: Callable[..., None], *arguments: object) -> None:
        """Hand over any work, after what is under way."""
        self.finish()
        self._under_way = self._pool.submit(work, *arguments)

    def release(self) -> None:
        """The thread reads the live weights themselves, so wait for it."""
        self.finish()

    def finish(self) -> None:
        """Wait for the thread, and raise what it raised."""
        if self._under_way is not None:
            under_way, self._under_way = self._under_way, None
            under_way.result()


class SideStream:
    """A CUDA stream of its own: the update runs beside the kernels of the next batch."""

    def __init__(self, average: Sequence[Tensor]) -> None:
        self.device = average[0].device
        self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        _keep(average, self._stream)

    def lerp(self, average: Sequence[Tensor], live: Sequence[Tensor], rate: float) -> None:
        """Queue the update behind what has been queued by now."""
        _keep(live, self._stream)
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            lerp(average, live, rate)

    def release(self) -> None:
        """Whatever is queued from now on waits for the update; the CPU does not."""
        torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def finish(self) -> None:
        """The same: whoever reads the average reads it on the current stream."""
        self.release()


class OffloadedThread:
    """Weights on CUDA, their average on the CPU: a side stream copies to pinned memory, a thread averages."""

    def __init__(self, live: Sequence[Tensor]) -> None:
        self.device = live[0].device
        self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._staged = [torch.empty_like(tensor, device="cpu", pin_memory=True) for tensor in live]
        self._thread = InThread()

    def lerp(self, average: Sequence[Tensor], live: Sequence[Tensor], rate: float) -> None:
        """Queue the copies, and let the thread average once they have arrived."""
        self._thread.finish()
        _keep(live, self._stream)
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            torch._foreach_copy_(self._staged, list(live), non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(self._stream)
        self._thread.submit(self._average, copied, list(average), rate)

    def _average(self, copied: torch.cuda.Event, average: Sequence[Tensor], rate: float) -> None:
        copied.synchronize()
        lerp(average, self._staged, rate)

    def release(self) -> None:
        """The weights have been read once they are copied."""
        torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def finish(self) -> None:
        """Wait for the thread."""
        self._thread.finish()


def _keep(tensors: Iterable[Tensor], stream: torch.cuda.Stream) -> None:
    """Whoever lets go of these, their memory is not given away before the stream is done with it.

    A model that is laid out anew, as at the end of a training, frees its weights under the update's hands.
    """
    for tensor in tensors:
        tensor.record_stream(stream)


@torch.no_grad()
def lerp(average: Sequence[Tensor], live: Sequence[Tensor], rate: float) -> None:
    """w̄ ← w̄ + rate·(w − w̄) for all tensors, in place, in the average's dtype and on its device."""
    if not average:
        return
    if any(a.dtype != w.dtype or a.device != w.device for a, w in zip(average, live, strict=True)):
        live = [w.to(a.device, a.dtype) for a, w in zip(average, live, strict=True)]
    torch._foreach_lerp_(
        [_as_real(tensor) for tensor in average], [_as_real(tensor) for tensor in live], rate
    )


@torch.no_grad()
def corrected(
    average: Sequence[Tensor], live: Sequence[Tensor], origin: Sequence[Tensor], alpha: float
) -> list[Tensor]:
    """w̄ + α·(w − w₀), as new tensors; none before there is an average."""
    triples = zip(average, live, origin, strict=False)
    return [mean.add(now.to(was.device, was.dtype) - was, alpha=alpha) for mean, now, was in triples]


def _as_real(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers, which are then averaged like any others."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
