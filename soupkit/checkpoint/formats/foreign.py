"""Files that are no safetensors: what they are by their first bytes or their names, and what to do with
them."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from pathlib import Path

from soupkit.errors import ReferenceError

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".tar")
NOT_WEIGHTS = (
    "training_args.bin",
    "optimizer.bin",
    "optimizer.pt",
    "scheduler.pt",
    "scaler.pt",
    "rng_state.pth",
)
_TORCH = "write its state dict with torch.save in the program that reads it, then soupkit convert"
_FORMATS = {
    ".npz": ("called an archive of numpy, and none", "download it again"),
    ".npy": ("a numpy array", _TORCH),
    ".gguf": (
        "a GGUF file of llama.cpp",
        "merge the safetensors that it was made of, and convert the soup to GGUF",
    ),
    ".h5": ("an HDF5 file of Keras", f"load it into its model and {_TORCH}"),
    ".hdf5": ("an HDF5 file of Keras", f"load it into its model and {_TORCH}"),
    ".keras": ("a Keras archive", f"load it into its model and {_TORCH}"),
    ".onnx": ("an ONNX graph", "merge the checkpoints that it was exported from, and export the soup"),
    ".msgpack": (
        "a Flax checkpoint",
        f"load it with from_flax in transformers and save_pretrained, or {_TORCH}",
    ),
    ".pdparams": ("a Paddle checkpoint", _TORCH),
    ".tflite": (
        "a TensorFlow Lite graph",
        "merge the checkpoints that it was exported from, and export the soup",
    ),
    ".pkl": ("no pickle of numpy arrays", _TORCH),
    ".pickle": ("no pickle of numpy arrays", _TORCH),
    ".jit": (
        "a TorchScript program",
        "torch.save(torch.jit.load(PATH).state_dict(), NEW), then soupkit convert NEW",
    ),
    ".distcp": ("one rank's part of a torch.distributed.checkpoint", "name the folder that it is in"),
}
_BEGINNINGS = {b"GGUF": ".gguf", b"\x89HDF": ".h5", b"\x93NUM": ".npy"}


def refuse_foreign(path: Path) -> None:
    """Raise ReferenceError for a file that another format's bytes or name begin or end; safetensors pass."""
    if path.suffix == ".safetensors" or _beginning(path)[8:] == b"{":
        return
    if is_pickled(path):
        raise ReferenceError(f"{path}: is a pickled checkpoint, not safetensors", hint=_convert(path))
    refuse_format(path)


def refuse_format(path: Path) -> None:
    """Raise ReferenceError for a file of a format that soupkit does not read in any command."""
    suffix = _BEGINNINGS.get(_beginning(path)[:4], path.suffix.lower())
    if suffix in _FORMATS:
        what, hint = _FORMATS[suffix]
        raise ReferenceError(f"{path}: is {what}, which soupkit does not read", hint=hint)


def is_pickled(path: Path) -> bool:
    """Whether a file is what `convert` reads: by its name, or by how zip archives and pickles begin."""
    if path.name.endswith(PICKLES):
        return True
    return path.suffix.lower() not in _FORMATS and _beginning(path).startswith((b"PK\x03\x04", b"\x80\x02"))


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(9)
    except OSError:
        return b""


def _convert(path: Path) -> str:
    out = path.stem if path.suffix else f"{path.name}-converted"
    return f"make safetensors of it: soupkit convert {shlex.quote(str(path))} --out {shlex.quote(out)}"


def glob_hint(ref: str, matches: Collection[Path]) -> str:
    """What to do about a pattern that matches no checkpoint."""
    if any(path.is_file() and is_pickled(path) for path in matches):
        return f"make safetensors of them: soupkit convert {shlex.quote(ref)} --out DIR, then merge DIR"
    for path in matches:
        if path.suffix.lower() in _FORMATS:
            what, hint = _FORMATS[path.suffix.lower()]
            return f"it matches {what}, which soupkit does not read: {hint}"
    return "check the pattern"


def folder_hint(names: Collection[str], folder: Path) -> str:
    """What to do about a folder that holds no safetensors: by what else it holds."""
    found = sharded_hint(names, folder)
    if found:
        return found
    pickles = [name for name in names if name.endswith(PICKLES) and name not in NOT_WEIGHTS]
    if pickles:
        return (
            f"it holds pickles; make safetensors of them: soupkit convert {shlex.quote(str(folder))} "
            f"--out DIR"
        )
    for name in sorted(names):
        if Path(name).suffix.lower() in (".npz", ".pkl", ".pickle"):
            return f"it holds arrays of numpy; refer to the file: {shlex.quote(f'{folder}/{name}')}"
        if Path(name).suffix.lower() in _FORMATS:
            what, hint = _FORMATS[Path(name).suffix.lower()]
            return f"it holds {what}, which soupkit does not read: {hint}"
    inner = checkpoints_inside(folder)
    if inner:
        shared = _shared_start(inner)
        return f"it holds {len(inner)} checkpoints; name them: {shlex.quote(f'{folder}/{shared}*')}"
    return (
        "a checkpoint directory holds model.safetensors, open_clip_model.safetensors, or shards and "
        "their index"
    )


def sharded_hint(names: Collection[str], folder: Path) -> str | None:
    """How to make one checkpoint of what many processes of a training saved; None for any other folder."""
    if any(name.endswith(".distcp") for name in names):
        return "it is a torch.distributed.checkpoint without its .metadata: copy the whole folder"
    if _is_zero(names) or any(_is_zero(inside) for inside in _inside(folder)):
        return (
            f"it is a checkpoint of DeepSpeed ZeRO: python zero_to_fp32.py {shlex.quote(str(folder))} OUT "
            "with the script that lies in it, then soupkit convert OUT --out DIR"
        )
    return None


def _is_zero(names: Collection[str]) -> bool:
    return any("zero_pp_rank_" in name for name in names) or "zero_to_fp32.py" in names


def _inside(folder: Path) -> list[set[str]]:
    """The file names of the folders in a folder; nothing of one that cannot be listed."""
    try:
        return [{each.name for each in inner.iterdir()} for inner in folder.iterdir() if inner.is_dir()]
    except OSError:
        return []


def checkpoints_inside(folder: Path) -> list[str]:
    """The folders of a training's output that hold safetensors of their own."""
    try:
        inner = [each for each in folder.iterdir() if each.is_dir()]
        return sorted(each.name for each in inner if any(each.glob("*.safetensors")))
    except OSError:
        return []


def _shared_start(names: Collection[str]) -> str:
    """What the names of steps begin with: those with a number, where there are such."""
    numbered = [name for name in names if name[-1:].isdigit()] or list(names)
    low, high = min(numbered), max(numbered)
    same = next((at for at, (x, y) in enumerate(zip(low, high, strict=False)) if x != y), len(low))
    return low[:same].rstrip("0123456789")
