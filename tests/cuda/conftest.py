"""The device of these tests: a GPU where there is one, and its stand-in on the CPU where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from cuda.stand_in import CUDA, StandIn


@dataclass
class Gpu:
    """A device under test; `stand_in` is None where it is a real one."""

    stand_in: StandIn | None = None
    device: torch.device = CUDA
    name: str = "cuda:0"

    def peak(self) -> int:
        """The most bytes that tensors took since the last `forget_peak`."""
        return int(torch.cuda.max_memory_allocated(self.device))

    def forget_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)

    @contextmanager
    def with_only(self, num_bytes: int) -> Iterator[None]:
        """Inside, this process gets no more memory of the device than that."""
        if self.stand_in is not None:
            storages = self.stand_in.storages
            before, storages.capacity = storages.capacity, self.stand_in.allocated() + num_bytes
            yield
            storages.capacity = before
            return
        torch.cuda.empty_cache()
        total = torch.cuda.mem_get_info(self.device)[1]
        torch.cuda.set_per_process_memory_fraction(
            (torch.cuda.memory_reserved(self.device) + num_bytes) / total, self.device
        )
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, self.device)


def real() -> Iterator[Gpu]:
    """A GPU that computes in float32 where float32 is asked for: convolutions would be in TF32."""
    if not torch.cuda.is_available():
        pytest.skip(f"no CUDA device: torch {torch.__version__} sees none")
    with torch.backends.cudnn.flags(allow_tf32=False, deterministic=True, benchmark=False):
        yield Gpu()
    torch.cuda.synchronize()


@pytest.fixture(params=["stand-in", pytest.param("device", marks=pytest.mark.cuda)])
def gpu(request: pytest.FixtureRequest) -> Iterator[Gpu]:
    """Every test runs twice: on the stand-in, in the default run, and on a device."""
    if request.param == "device":
        yield from real()
    elif torch.cuda.is_available():
        pytest.skip("there is a CUDA device, which needs no stand-in")
    else:
        with StandIn() as stand_in:
            yield Gpu(stand_in)


@pytest.fixture(params=[pytest.param("device", marks=pytest.mark.cuda)])
def real_gpu() -> Iterator[Gpu]:
    """For what a stand-in cannot show, or only in a minute."""
    yield from real()
