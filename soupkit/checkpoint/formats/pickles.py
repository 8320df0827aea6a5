"""Pickled checkpoints (.pt, .pth, .pth.tar, .bin, .ckpt), read without ever running what a pickle asks to
run.

Only torch's weights-only unpickler is used: it knows tensors and plain containers. Training programs also
pickle their settings (argparse, omegaconf, Lightning, numpy scalars). Those names are answered with stand-ins
that hold nothing: the classes they name are never imported and nothing that belongs to them is called.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soupkit.checkpoint.dtypes import NUMPY_DTYPES, Array
from soupkit.checkpoint.formats.archive import check_archive, is_zip
from soupkit.checkpoint.formats.legacy import check_legacy
from soupkit.checkpoint.header import Slot
from soupkit.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_SAFETENSORS = {dtype.name: name for name, dtype in NUMPY_DTYPES.items()}
_LIGHTNING = ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric")
SETTINGS = (
    "argparse.Namespace",
    *(
        f"pathlib{module}.{name}"
        for module in ("", "._local")
        for name in ("PosixPath", "WindowsPath", "Path")
    ),
    *(
        f"builtins.{name}"
        for name in ("int", "float", "str", "bool", "list", "dict", "tuple", "type", "object")
    ),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(
        "numpy.dtype",
        "numpy.ndarray",
        "datetime.datetime",
        "datetime.timedelta",
        "typing.Any",
        "types.SimpleNamespace",
    ),
    *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"),
    *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata", "omegaconf.nodes.AnyNode"),
    *(f"omegaconf.nodes.{kind}Node" for kind in ("String", "Integer", "Float", "Boolean", "Path", "Enum")),
    *(f"{root}.callbacks.model_checkpoint.ModelCheckpoint" for root in _LIGHTNING),
    *(f"{root}.callbacks.early_stopping.EarlyStopping" for root in _LIGHTNING),
)
"""Classes of settings that checkpoints carry beside their weights; a stand-in takes the place of each."""
MAPPINGS = (
    *(
        "collections.defaultdict",
        "yacs.config.CfgNode",
        "easydict.EasyDict",
        "ml_collections.ConfigDict",
        "addict.Dict",
    ),
    *(
        f"{root}.{name}.AttributeDict"
        for root in _LIGHTNING
        for name in ("utilities.parsing", "utilities.data")
    ),
)
"""The same for classes that are pickled as dicts."""


_SYSTEM = ("os", "posix", "nt", "sys", "subprocess")
"""Modules of which torch's reader takes nothing, whatever is asked for."""
MOST_NAMED = 20


class _Nothing:
    """Stands in for an object of settings: takes any arguments and any state and keeps none."""

    def __new__(cls, *_arguments: object) -> _Nothing:
        return super().__new__(cls)

    def __setstate__(self, _state: object) -> None:
        """Drop it."""


class _Dict:
    """Stands in for a kind of dict: makes a plain one."""

    def __new__(cls, *_arguments: object) -> Any:
        return {}


def uncounted(_num_bytes: int) -> None:
    """For callers who show no progress."""


def load_pickle(path: Path, *, ignore: Sequence[str] = (), advance: Callable[[int], None] = uncounted) -> Any:
    """The containers and tensors of one file; tensors of a zip file are mapped once its checksums have been
    compared.

    ignore: full names of further classes to replace by stand-ins; advance: counts the bytes that were
    compared. Raises CheckpointError for anything that is not tensors in plain containers, naming what it asks
    for, and for damage. Memory: files that cannot be mapped (no zip archive, compressed, of the other byte
    order) are held whole.
    """
    import torch

    archived, mappable = _checked(path, advance)
    stand_ins: list[Any] = [(_Nothing, name) for name in (*SETTINGS, *ignore)]
    stand_ins += [(_Dict, name) for name in MAPPINGS if name not in ignore]
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # about pickle protocols and TorchScript: both end in an error or are fine
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mappable)
        if not archived:
            check_legacy(path)
        return loaded
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise _refusal(path, str(error), ignore) from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged pickle makes the unpickler fail in every way there is
        raise _unreadable(path, error) from error


def _checked(path: Path, advance: Callable[[int], None]) -> tuple[bool, bool]:
    """Whether a file is a zip archive, which is checked then, and whether that can be mapped."""
    try:
        archived = is_zip(path)
        return archived, archived and check_archive(path, advance=advance).is_mappable
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def _refusal(path: Path, message: str, ignore: Sequence[str]) -> CheckpointError:
    import torch

    try:
        known = {*SETTINGS, *MAPPINGS}
        wanted = [
            name for name in torch.serialization.get_unsafe_globals_in_checkpoint(path) if name not in known
        ]
    except Exception:  # only for zip archives, and only for those without damage
        wanted = []
    if not wanted:
        line = next((line for line in message.splitlines() if "GLOBAL" in line or "operand" in line), message)
        wanted = [line.partition("GLOBAL ")[2].split(" ")[0]] if "GLOBAL " in line else []
    if not wanted:
        return CheckpointError(
            f"{path}: is not a pickle of tensors that torch's weights-only reader takes",
            hint="save the state dict with torch.save(model.state_dict(), PATH) in the program that "
            "wrote this file",
        )
    return CheckpointError(
        f"{path}: asks to run or build {', '.join(sorted(wanted)[:5])}, which is not a tensor; nothing "
        f"of it was run",
        hint=_what_to_ignore(sorted(wanted), ignore),
    )


def _what_to_ignore(wanted: Sequence[str], ignore: Sequence[str]) -> str:
    """Every class to leave out, unless that would not help: for programs, and for what was left out
    already."""
    model = "a pickled model needs its own program: torch.save(model.state_dict(), PATH)"
    if any(name.partition(".")[0] in _SYSTEM for name in wanted):
        return "no checkpoint needs that, and --ignore does not let it pass: do not trust the file"
    new = [name for name in wanted if name not in ignore]
    if not new:
        return f"leaving it out with --ignore is not enough, it is more than settings; {model}"
    options = " ".join(f"--ignore {name}" for name in new[:MOST_NAMED])
    return f"if the file is yours and this only holds settings, leave it out with {options}; {model}"


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    if "TorchScript" in str(error):
        return CheckpointError(
            f"{path}: is a TorchScript program, not a state dict",
            hint="save its weights where it can be trusted: "
            "torch.save(torch.jit.load(PATH).state_dict(), NEW)",
        )
    first = (str(error).splitlines() or [""])[0]
    return CheckpointError(
        f"{path}: is damaged, or not a file of torch.save: {type(error).__name__}: {first}",
        hint="download it again",
    )


def slot_of(name: str, tensor: torch.Tensor) -> Slot:
    """The dtype and shape of a tensor that can be written. Raises CheckpointError for any other."""
    import torch

    kind = str(tensor.dtype).removeprefix("torch.")
    if kind not in _SAFETENSORS or tensor.layout != torch.strided or tensor.is_meta:
        layout = "" if tensor.layout == torch.strided else f" {tensor.layout}"
        raise CheckpointError(
            f"tensor {name!r} is {kind}{layout}, which a safetensors file that soupkit writes cannot hold",
            hint=f"supported: dense tensors of {', '.join(_SAFETENSORS)}",
        )
    return Slot(_SAFETENSORS[kind], tuple(tensor.shape))


def flat_array(tensor: torch.Tensor) -> Array:
    """The elements of a tensor in order, 1-d; without a copy where they lie in order."""
    import torch

    flat = tensor.detach().reshape(-1).contiguous()
    dtype = NUMPY_DTYPES[_SAFETENSORS[str(flat.dtype).removeprefix("torch.")]]
    array: Array = flat.view(torch.uint8).numpy().view(dtype)
    return array


def ties_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """{name: the name it shares all its bytes with}; the first by name is kept, as safetensors' save_model
    does."""
    first: dict[tuple[object, ...], str] = {}
    ties = {}
    for name in sorted(tensors):
        tensor = tensors[name]
        place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and first.setdefault(place, name) != name:
            ties[name] = first[place]
    return ties


def mappings_of(path: Path) -> list[range]:
    """The addresses at which `path` is mapped into this process; empty where the system does not say."""
    try:
        inode = str(path.stat().st_ino)
        lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    except OSError:
        return []
    spans = [line[0].split("-") for line in lines if line[4] == inode and "p" in line[1]]
    return [range(int(start, 16), int(stop, 16)) for start, stop in spans]


def release(tensor: torch.Tensor, mappings: Sequence[range]) -> None:
    """Give the whole pages of a tensor back to the system if it lies in a mapping: the file still holds them.

    Anything outside the mappings is memory that only this process holds, and is left alone.
    """
    import ctypes
    import mmap

    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    stop = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    inside = any(start in mapping and stop - 1 in mapping for mapping in mappings)
    if inside and start < stop and tensor.is_contiguous():
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED)
