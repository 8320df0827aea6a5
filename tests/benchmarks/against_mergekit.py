"""soupkit and mergekit, the same merges of the same checkpoints, one process each: seconds, peak memory, what
differs.

    python tests/benchmarks/against_mergekit.py --mergekit /path/to/venv/bin/python [--count 8] [--dtypes
    bf16,fp32]
        [--methods ties,slerp] [--cases models,experts,tiny,3b,7b] [--repeat 3] [--threads 0] [--folder DIR]

mergekit lives in an environment of its own (`pip install mergekit`); soupkit is the one of this interpreter.
Times are medians of whole processes on a warm cache. "floor" reads every input once and writes one output.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from checkpoints import Measured, measure

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.dtypes import FLOATING, NUMPY_DTYPES
from soupkit.checkpoint.header import Slot
from soupkit.checkpoint.tensors import TensorFiles, plan_files

DTYPES = {"bf16": ("BF16", "bfloat16"), "fp32": ("F32", "float32")}
SPARSE = {"weight": 0.5, "density": 0.3}
METHODS: dict[str, dict[str, Any]] = {
    "linear": {"weight": 1.0},
    "slerp": {"t": 0.3},
    "task_arithmetic": {"weight": 0.3},
    "ties": SPARSE,
    "dare_linear": SPARSE,
    "dare_ties": SPARSE,
    "della": SPARSE | {"epsilon": 0.1},
    "breadcrumbs": SPARSE | {"density": 0.9, "gamma": 0.01},
    "model_stock": {},
    "sce": {"select_topk": 0.3},
    "karcher": {},
    "nuslerp": {"weight": 0.5},
    "multislerp": {"weight": 0.5},
    "nearswap": {"t": 0.001},
}
PAIRS = ("slerp", "nearswap", "nuslerp")


@dataclass(frozen=True)
class Shape:
    """A Llama-like model."""

    hidden: int
    layers: int
    inner: int
    vocabulary: int
    experts: int = 0

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes as transformers has them (Mixtral's names with experts)."""
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for i in range(self.layers):
            layer = f"model.layers.{i}"
            for part in "qkvo":
                yield f"{layer}.self_attn.{part}_proj.weight", (self.hidden, self.hidden)
            if self.experts:
                yield f"{layer}.block_sparse_moe.gate.weight", (self.experts, self.hidden)
                for k in range(self.experts):
                    expert = f"{layer}.block_sparse_moe.experts.{k}"
                    yield f"{expert}.w1.weight", (self.inner, self.hidden)
                    yield f"{expert}.w2.weight", (self.hidden, self.inner)
                    yield f"{expert}.w3.weight", (self.inner, self.hidden)
            else:
                yield f"{layer}.mlp.gate_proj.weight", (self.inner, self.hidden)
                yield f"{layer}.mlp.up_proj.weight", (self.inner, self.hidden)
                yield f"{layer}.mlp.down_proj.weight", (self.hidden, self.inner)
            yield f"{layer}.input_layernorm.weight", (self.hidden,)
            yield f"{layer}.post_attention_layernorm.weight", (self.hidden,)
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocabulary, self.hidden)

    def config(self, dtype: str) -> dict[str, Any]:
        """config.json."""
        kind = ("MixtralForCausalLM", "mixtral") if self.experts else ("LlamaForCausalLM", "llama")
        heads = max(1, self.hidden // 64)
        return {
            "architectures": [kind[0]], "model_type": kind[1], "torch_dtype": dtype,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers, "intermediate_size": self.inner, "vocab_size": self.vocabulary,
            "num_attention_heads": heads, "num_key_value_heads": heads, "tie_word_embeddings": False,
            "rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 2048,
            **({"num_local_experts": self.experts, "num_experts_per_tok": 2} if self.experts else {}),
        }  # fmt: skip


SHAPES = {
    "models": Shape(768, 8, 2048, 20_000),
    "experts": Shape(8, 32, 8, 64, experts=46),
    "tiny": Shape(4, 32, 4, 64, experts=191),
    "3b": Shape(3200, 26, 8_640, 32_000),
    "7b": Shape(4096, 32, 11_008, 32_000),
}


def write_model(folder: Path, shape: Shape, *, seed: int, dtype: str, shard: int = 50_000_000_000) -> None:
    """One checkpoint: a base (seed 0), or the base plus small changes, as fine-tuned models are; tensor by
    tensor."""
    if (folder / "config.json").exists():
        return
    kind, torch_name = DTYPES[dtype]
    folder.mkdir(parents=True, exist_ok=True)
    slots = {name: Slot(kind, size) for name, size in shape.tensors()}
    with TensorFiles(folder, plan_files(slots, max_shard_bytes=shard)) as files:
        for number, (name, slot) in enumerate(slots.items()):
            values = 0.02 * np.random.default_rng(number).standard_normal(slot.shape, np.float32)
            if seed:
                values += 0.001 * np.random.default_rng((seed, number)).standard_normal(
                    slot.shape, np.float32
                )
            files.write(name, 0, values.astype(NUMPY_DTYPES[kind]).reshape(-1))
    (folder / "config.json").write_text(json.dumps(shape.config(torch_name)))


def describe(method: str, folders: list[Path], dtype: str) -> dict[str, Any]:
    """The mergekit file of one merge; the first folder is the base, where there is one."""
    base, *others = folders
    pair = method in PAIRS
    if method in ("linear", "karcher", "multislerp"):
        models, base_model = folders, None
    elif method == "nuslerp":
        models, base_model = folders[1:3], None
    else:
        models, base_model = (others[:1] if pair else others), base
    values = METHODS[method]
    own = {key: value for key, value in values.items() if key in ("weight", "density", "epsilon", "gamma")}
    shared = {key: value for key, value in values.items() if key not in own}
    config: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": str(path), **({"parameters": own} if own else {})} for path in models],
        "dtype": DTYPES[dtype][1],
        **({"base_model": str(base_model)} if base_model else {}),
        **({"parameters": shared} if shared else {}),
    }
    return config


def apart(function: Callable[..., Any], *values: Any, **options: Any) -> Any:
    """Call in a process of its own: a large parent would show up in the peak memory of its children."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *values, **options).result()


def median(runs: list[Measured]) -> Measured:
    return Measured(
        statistics.median(run.seconds for run in runs), statistics.median(run.megabytes for run in runs)
    )


def floor(folders: list[Path], out: Path) -> Measured:
    """Read every input, copy one."""
    files = [file for folder in folders for file in Checkpoint(folder).files]
    read, copied = (" ".join(map(str, each)) for each in (files, Checkpoint(folders[0]).files))
    script = f"cat {read} > /dev/null && mkdir -p {out} && cp {copied} {out}"
    return measure(["sh", "-c", script])


def difference(a: Path, b: Path) -> str:
    """What two outputs have in common, over all floating tensors."""
    left, right = Checkpoint(a), Checkpoint(b)
    if set(left) != set(right):
        return f"{len(left):,} tensors, mergekit wrote {len(right):,}"
    equal = size = 0
    squares = np.zeros(2)
    for name, slot in left.slots.items():
        if slot.dtype in FLOATING:
            x, y = left[name].astype(np.float64), right[name].astype(np.float64)
            equal, size = equal + int((x == y).sum()), size + x.size
            squares += (np.square(x - y).sum(), np.square(x).sum())
    return f"{100 * equal / size:.2f} % equal, {np.sqrt(squares[0] / squares[1]):.1e}"


class Bench:
    """Runs merges and prints rows."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.mergekit = Path(options.mergekit).parent / "mergekit-yaml" if options.mergekit else None
        self.soupkit = [sys.executable, "-m", "soupkit"]

    def row(self, label: str, config: dict[str, Any], folders: list[Path], *, repeat: int) -> None:
        """One merge by both, and its floor."""
        file = self.folder / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        ours, theirs, copied = (self.folder / name for name in ("soupkit", "mergekit", "floor"))
        command = [*self.soupkit, "merge", "mergekit", file, "--out", ours, "--quiet"]
        command += ["--threads", str(self.options.threads)]
        used = [
            *[Path(entry["model"]) for entry in config["models"]],
            *([Path(config["base_model"])] if "base_model" in config else []),
        ]
        runs = [self._fresh(ours, command) for _ in range(repeat)]
        mine, least = median(runs), median([self._floor(used, copied) for _ in range(repeat)])
        shutil.rmtree(copied, ignore_errors=True)
        cells = [
            label,
            f"{mine.seconds:.2f} s",
            f"{mine.megabytes:.0f} MB",
            f"{mine.seconds / least.seconds:.1f}× floor",
        ]
        if self.mergekit is not None:
            cells += self._compare(file, ours, theirs, mine, repeat)
        print(" | ".join(cells), flush=True)
        for path in (ours, theirs):
            shutil.rmtree(path, ignore_errors=True)

    def _compare(self, file: Path, ours: Path, theirs: Path, mine: Measured, repeat: int) -> list[str]:
        assert self.mergekit is not None
        try:
            their = median(
                [self._fresh(theirs, [self.mergekit, file, theirs, "--quiet"]) for _ in range(repeat)]
            )
        except subprocess.CalledProcessError as error:
            return [
                f"mergekit failed: {error.output.decode(errors='replace').strip().splitlines()[-1][:100]}"
            ]
        return [
            f"{their.seconds:.2f} s", f"{their.megabytes:.0f} MB", f"{their.seconds / mine.seconds:.1f}×",
            f"{their.megabytes / mine.megabytes:.1f}×", apart(difference, ours, theirs),
        ]  # fmt: skip

    def _fresh(self, out: Path, command: list[Any]) -> Measured:
        shutil.rmtree(out, ignore_errors=True)
        return measure(command)

    def _floor(self, folders: list[Path], out: Path) -> Measured:
        shutil.rmtree(out, ignore_errors=True)
        return floor(folders, out)

    def run(self, case: str) -> None:
        """All rows of a case."""
        shape, options = SHAPES[case], self.options
        if case == "models":
            for dtype in options.dtypes.split(","):
                folders = [self._model(case, shape, seed, dtype) for seed in range(options.count)]
                for method in options.methods.split(","):
                    self.row(
                        f"{method} {dtype}", describe(method, folders, dtype), folders, repeat=options.repeat
                    )
        else:
            large = case.endswith("b")
            dtype = "bf16" if large else "fp32"
            folders = [self._model(case, shape, seed, dtype, shard=5_000_000_000) for seed in range(2)]
            names = len(list(shape.tensors()))
            for method in ("linear", "slerp") if large else ("linear", "task_arithmetic"):
                self.row(
                    f"{case} ({names:,} tensors) {method}",
                    describe(method, folders, dtype),
                    folders,
                    repeat=1,
                )

    def _model(self, case: str, shape: Shape, seed: int, dtype: str, **options: Any) -> Path:
        path = self.folder / f"{case}-{dtype}-{seed}"
        apart(write_model, path, shape, seed=seed, dtype=dtype, **options)
        return path


def main() -> None:
    """Parse, run, print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mergekit", help="a Python interpreter in whose environment mergekit is installed")
    parser.add_argument("--count", type=int, default=8, help="checkpoints, the base among them")
    parser.add_argument("--dtypes", default="bf16,fp32")
    parser.add_argument("--methods", default="linear,slerp,ties,dare_ties,della,breadcrumbs,model_stock")
    parser.add_argument("--cases", default="models,experts,tiny")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep the checkpoints here; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(options, options.folder or Path(temporary))
        bench.folder.mkdir(parents=True, exist_ok=True)
        print(
            "merge | soupkit | peak | of floor | mergekit | peak | faster | less memory | outputs", flush=True
        )
        for case in options.cases.split(","):
            bench.run(case)


if __name__ == "__main__":
    main()
