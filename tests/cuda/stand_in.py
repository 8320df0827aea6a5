"""A CUDA device that is none: tensors in the CPU's memory that are marked as lying on "cuda:0".

Inside `StandIn`, every operation of this thread is seen. What a real device would refuse or get wrong is an
error here too: operands on different devices, a tensor of the device as a numpy array, a generator of the
CPU for numbers of the device, more memory than there is, and kernels of two streams that touch the same
tensor without waiting for each other (by the rules of torch.cuda._sanitizer), be it that memory goes back
while another stream still uses it. A copy that does not wait arrives in pinned memory when it is waited for,
and is NaN before. What kernels compute is what the CPU computes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from cuda.stand_in_streams import Event, Stream, Streams
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
CAPACITY = 8 << 30
ACROSS = {aten.copy_, aten._foreach_copy_, aten.index, aten.index_put_, aten.index_put, aten.set_}
"""Operations of which arguments may lie elsewhere than the first."""


EXPIRED = torch.UntypedStorage._expired


class Storages:
    """What lies on the device: storages by their address, which is not given away while they are watched."""

    def __init__(self, streams: Streams, capacity: int) -> None:
        self.streams, self.capacity = streams, capacity
        self.sizes: dict[int, tuple[StorageWeakRef, int]] = {}
        self.now = self.peak = 0
        self.own: dict[int, StorageWeakRef] = {}
        self.asked_for = False

    @contextlib.contextmanager
    def asking(self, args: Any) -> Iterator[None]:
        """Inside, a tensor that is made of nothing is what Python asked for, and no operation's own."""
        before = self.asked_for
        self.asked_for = not any(isinstance(each, Tensor) for each in tree_leaves(args))
        try:
            yield
        finally:
            self.asked_for = before

    def keep_own(self, tensor: Tensor) -> None:
        """Zeros that torch makes inside an operation: on a real device they would lie there."""
        storage = storage_of(tensor)
        self.own[storage._cdata] = StorageWeakRef(storage)

    def is_torchs_own(self, tensor: Tensor) -> bool:
        return storage_of(tensor)._cdata in self.own

    def prune(self) -> None:
        """Forget what was freed."""
        for address in [address for address in self.sizes if EXPIRED(address)]:
            self.now -= self.sizes.pop(address)[1]
            self.streams.freed(address)

    def has(self, tensor: Tensor) -> bool:
        return storage_of(tensor)._cdata in self.sizes

    def take(self, tensor: Tensor) -> None:
        """A tensor lies on the device from now on. Raises OutOfMemoryError."""
        storage = storage_of(tensor)
        if storage._cdata in self.sizes:
            return
        self.prune()
        size = storage.nbytes()
        if self.now + size > self.capacity:
            wanted, free = size / 2**20, (self.capacity - self.now) / 2**20
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {wanted:.2f} MiB. GPU 0 has a total capacity of "
                f"{self.capacity / 2**20:.2f} MiB of which {free:.2f} MiB is free."
            )
        self.sizes[storage._cdata] = StorageWeakRef(storage), size
        self.streams.allocated(storage._cdata)
        self.streams.filled(tensor)
        self.now += size
        self.peak = max(self.peak, self.now)

    def drop(self, tensor: Tensor) -> None:
        """A tensor that an operation on the device made lies on the CPU."""
        entry = self.sizes.pop(storage_of(tensor)._cdata, None)
        self.now -= entry[1] if entry else 0


def storage_of(tensor: Tensor) -> torch.UntypedStorage:
    """The memory below what vmap and grad wrap."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.untyped_storage()


class Kernels(TorchDispatchMode):
    """Every operation: its operands lie together, its results beside them, and its stream has waited."""

    def __init__(self, storages: Storages) -> None:
        super().__init__()
        self.storages, self.streams = storages, storages.streams

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        if any(each.device.type == "meta" for each in given):
            return func(*args, **kwargs or {})
        on_device = [self.storages.has(each) for each in given]
        if any(on_device):
            self._check(func, given, on_device)
        if func in (aten.copy_.default, aten._foreach_copy_.default) and (args[2:] or [False])[0]:
            return self._late(func, args)
        result = func(*args, **kwargs or {})
        if not given and not self.storages.asked_for and isinstance(result, Tensor):
            self.storages.keep_own(result)
        if any(on_device) and (func.overloadpacket not in ACROSS or on_device[0]):
            for each in tree_leaves(result):
                if isinstance(each, Tensor):
                    self.storages.take(each)
            self.streams.launched(func, args, kwargs or {}, result, self.storages.has)
        elif any(on_device):  # to the CPU, which waits
            self.streams.launched(func, args, kwargs or {}, (), self.storages.has)
            self.streams.synchronize()
        if func is aten._local_scalar_dense.default:
            self.streams.synchronize()
        return result

    def _check(self, func: Any, given: list[Tensor], on_device: list[bool]) -> None:
        """All on the device, but numbers (0-d), indices of what is there, and where copies come from."""
        if func.overloadpacket in ACROSS and (on_device[0] or func.overloadpacket not in INDEXED):
            return
        strangers = [each for each, there in zip(given, on_device) if not there and each.ndim]
        if not all(self.storages.is_torchs_own(each) for each in strangers):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found cuda:0 and cpu in {func}"
            )

    def _late(self, func: Any, args: Any) -> Any:
        """A copy to pinned memory that the stream makes when it comes to it."""
        targets, sources = (list(each) if isinstance(each, list | tuple) else [each] for each in args[:2])
        for target, source in zip(targets, sources, strict=True):
            if self.storages.has(target) or not self.storages.has(source):
                target.copy_(source)
                continue
            assert self.streams.is_pinned(target), "a copy that does not wait, to memory that is not pinned"
            self.streams.launched(aten.clone.default, (source,), {}, (), self.storages.has)
            self.streams.later(target, source.detach().clone())
            if target.is_floating_point():
                target.fill_(torch.nan)
        return None if func is aten._foreach_copy_.default else args[0]


INDEXED = {aten.index, aten.index_put_, aten.index_put}


class Names(TorchFunctionMode):
    """torch's Python interface: "cuda" is understood, and what lies there says so."""

    def __init__(self, storages: Storages) -> None:
        super().__init__()
        self.storages, self.streams = storages, storages.streams

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        own = OWN.get(func)
        if own is not None:
            return own(self, *args, **kwargs)
        wanted = kwargs.get("device")
        if wanted is not None:
            kwargs["device"] = CPU if is_cuda(wanted) else wanted
        pinned = kwargs.pop("pin_memory", False)
        generator = kwargs.get("generator")
        assert generator is None or not is_cuda(wanted), "a generator of the CPU for numbers of the device"
        with self.storages.asking(args):
            result = func(*args, **kwargs)
        if wanted is not None and isinstance(result, Tensor) and result.device.type != "meta":
            self._place(result, wanted)
        if pinned:
            self.streams.pin(result)
        return result

    def _place(self, result: Tensor, wanted: Any) -> None:
        if is_cuda(wanted):
            self.storages.take(result)
        else:
            self.storages.drop(result)

    def device(self, tensor: Tensor) -> torch.device:
        if not is_wrapped(tensor) and DEVICE(tensor).type != "cpu":
            return DEVICE(tensor)
        try:
            return CUDA if self.storages.has(tensor) else CPU
        except NotImplementedError:  # a tensor that has no memory
            return DEVICE(tensor)

    def to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`Tensor.to` in all its forms."""
        device, dtype, _, memory_format = torch._C._nn._parse_to(
            *(each for each in args if not isinstance(each, Tensor)),
            **{key: value for key, value in kwargs.items() if key not in ("copy", "other")},
        )
        others = [each for each in (*args, kwargs.get("other")) if isinstance(each, Tensor)]
        for other in others:
            device, dtype = self.device(other), other.dtype
        here = self.device(tensor)
        device = here if device is None else CUDA if is_cuda(device) else device
        moves = device != here
        format_ = {} if memory_format is None else {"memory_format": memory_format}
        if device.type == "meta":
            return TO(tensor, device)
        result = TO(tensor, dtype=dtype or tensor.dtype, copy=moves or kwargs.get("copy", False), **format_)
        if moves:
            self._place(result, device)
        if moves and not is_cuda(device):
            self.streams.synchronize()
        return result

    def cpu(self, tensor: Tensor) -> Tensor:
        return self.to(tensor, CPU)

    def cuda(self, tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        return self.to(tensor, CUDA)

    def numpy(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.device(tensor) == CUDA:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")
        return NUMPY(tensor, *args, **kwargs)

    def array(self, tensor: Tensor, dtype: Any = None) -> Any:
        found = self.numpy(tensor)
        return found if dtype is None else found.astype(dtype, copy=False)

    def is_cuda(self, tensor: Tensor) -> bool:
        return self.device(tensor).type == "cuda"

    def is_cpu(self, tensor: Tensor) -> bool:
        return self.device(tensor).type == "cpu"

    def pin_memory(self, tensor: Tensor, *_: Any) -> Tensor:
        assert self.device(tensor) == CPU
        return self.streams.pin(tensor.clone())

    def is_pinned(self, tensor: Tensor, *_: Any) -> bool:
        return self.streams.is_pinned(tensor)


DEVICE, IS_CUDA = torch.Tensor.device.__get__, torch.Tensor.is_cuda.__get__
TO, NUMPY = torch.Tensor.to, torch.Tensor.numpy
OWN: dict[Any, Callable[..., Any]] = {
    DEVICE: Names.device,
    IS_CUDA: Names.is_cuda,
    torch.Tensor.is_cpu.__get__: Names.is_cpu,
    torch.Tensor.__array__: Names.array,
    TO: Names.to,
    NUMPY: Names.numpy,
    torch.Tensor.cpu: Names.cpu,
    torch.Tensor.cuda: Names.cuda,
    torch.Tensor.pin_memory: Names.pin_memory,
    torch.Tensor.is_pinned: Names.is_pinned,
}


def is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def is_wrapped(tensor: Tensor) -> bool:
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


class StandIn:
    """The device, while it is entered: `streams` and `storages` tell what happened on it."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.streams = Streams()
        self.storages = Storages(self.streams, capacity)
        self._inside = contextlib.ExitStack()

    def __enter__(self) -> StandIn:
        for module, names in self._replaced().items():
            for name, value in names.items():
                self._inside.enter_context(mock.patch.object(module, name, value))
        self._inside.enter_context(Kernels(self.storages))
        self._inside.enter_context(Names(self.storages))
        return self

    def __exit__(self, *error: object) -> None:
        self._inside.close()

    def _replaced(self) -> dict[Any, dict[str, Any]]:
        streams, storages = self.streams, self.storages
        autocast, scaler = torch.autocast, torch.amp.GradScaler
        generator = torch.Generator()
        cuda = {
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "set_device": _only_device,
            "device": lambda device: contextlib.nullcontext(_only_device(device)),
            "Stream": lambda device: Stream(streams, next(streams.numbers)),
            "Event": lambda: Event(streams),
            "stream": streams.on,
            "current_stream": lambda device=None: streams.current,
            "synchronize": lambda device=None: streams.synchronize_all(),
            "memory_allocated": lambda device=None: self.allocated(),
            "memory_reserved": lambda device=None: self.allocated(),
            "max_memory_allocated": lambda device=None: storages.peak,
            "reset_peak_memory_stats": lambda device=None: self.forget_peak(),
            "mem_get_info": lambda device=None: (storages.capacity - self.allocated(), storages.capacity),
            "empty_cache": lambda: None,
            "get_rng_state": lambda device=None: generator.get_state(),
            "set_rng_state": lambda state, device=None: generator.set_state(state),
            "manual_seed": lambda seed: generator.manual_seed(seed) and None,
        }
        accelerator = {
            "is_available": lambda: True,
            "current_accelerator": lambda **_: CUDA,
            "current_device_index": lambda: 0,
            "current_stream": lambda *_: streams.current,
        }
        amp = {"GradScaler": lambda device, **options: scaler(_computes(device), **options)}
        names = {"autocast": lambda device, **options: autocast(_computes(device), **options)}
        tensor = {"record_stream": lambda it, stream: streams.recorded(storage_of(it)._cdata, stream)}
        return {
            torch.Tensor: tensor,
            torch.cuda: cuda,
            torch.accelerator: accelerator,
            torch.amp: amp,
            torch: names,
        }

    def allocated(self) -> int:
        self.storages.prune()
        return self.storages.now

    def forget_peak(self) -> None:
        self.storages.peak = self.allocated()


def _only_device(device: Any) -> None:
    assert device == 0 or torch.device(device) in (CUDA, torch.device("cuda")), device


def _computes(device: str) -> str:
    """Mixed precision is the CPU's."""
    return "cpu" if device == "cuda" else device
