"""Synthetic checkpoints and whole-process measurement for the benchmarks."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from soupkit.checkpoint.tensors import write_tensors

DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16)}


def vit_b32_shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of a ViT-B/32 classifier: 88 M parameters."""
    width, shapes = (
        768,
        {"patch_embed.proj.weight": (768, 3, 32, 32), "pos_embed": (1, 50, 768), "cls_token": (1, 1, 768)},
    )
    for i in range(12):
        shapes |= {
            f"blocks.{i}.attn.qkv.weight": (3 * width, width),
            f"blocks.{i}.attn.qkv.bias": (3 * width,),
            f"blocks.{i}.attn.proj.weight": (width, width),
            f"blocks.{i}.attn.proj.bias": (width,),
            f"blocks.{i}.mlp.fc1.weight": (4 * width, width),
            f"blocks.{i}.mlp.fc1.bias": (4 * width,),
            f"blocks.{i}.mlp.fc2.weight": (width, 4 * width),
            f"blocks.{i}.mlp.fc2.bias": (width,),
            f"blocks.{i}.norm1.weight": (width,),
            f"blocks.{i}.norm1.bias": (width,),
            f"blocks.{i}.norm2.weight": (width,),
            f"blocks.{i}.norm2.bias": (width,),
        }
    return shapes | {
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (1000, width),
        "head.bias": (1000,),
    }


def tiny_shapes(count: int = 18_600) -> dict[str, tuple[int, ...]]:
    """Very many very small tensors, as in a mixture of experts with split experts."""
    return {f"layers.{i // 100}.experts.{i % 100}.weight": (4, 8) for i in range(count)}


def write_checkpoints(
    folder: Path, shapes: dict[str, tuple[int, ...]], *, count: int, dtype: str
) -> list[Path]:
    """`count` directories of one base plus small differences, as fine-tuned models are.

    In a process of its own: a measured child's peak memory begins with that of the process that started it.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        paths = pool.submit(_write, folder, shapes, count, dtype).result()
    os.sync()  # or the disk would still be busy with the inputs while outputs are measured
    return paths


def _write(folder: Path, shapes: dict[str, tuple[int, ...]], count: int, dtype: str) -> list[Path]:
    rng = np.random.default_rng(0)
    base = {name: rng.standard_normal(shape, np.float32) * 0.02 for name, shape in shapes.items()}
    paths = []
    for i in range(count):
        path = folder / f"{dtype.lower()}-{i:02d}"
        path.mkdir(parents=True)
        noise = np.random.default_rng(i + 1)
        write_tensors(
            path,
            {
                name: (value + 0.001 * noise.standard_normal(value.shape, np.float32)).astype(DTYPES[dtype])
                for name, value in base.items()
            },
        )
        paths.append(path)
    return paths


@dataclass(frozen=True)
class Measured:
    """Wall seconds and peak resident megabytes of one process."""

    seconds: float
    megabytes: float


def measure(command: Sequence[str | Path]) -> Measured:
    """Run a process to its end. Raises CalledProcessError with its output when it fails."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.stdout.close()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output)
    return Measured(seconds, usage.ru_maxrss / 1024)
