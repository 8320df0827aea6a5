"""Time and peak memory of `convert` on a pickle of 353 MB, and of merges from a Hub on loopback.

    PYTHONPATH=tests python tests/benchmarks/hub_and_convert.py FOLDER [--count 8]

Each line is one process: wall seconds, peak resident megabytes, megabytes that it left on the disk beside its
output. FOLDER keeps the checkpoints for the next run. The loopback has no latency: a real network adds its
own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.checkpoints import measure

SOUPKIT = (sys.executable, "-m", "soupkit")
PREPARE = """
import sys
from pathlib import Path
from benchmarks.checkpoints import vit_b32_shapes, write_checkpoints
folder, count = Path(sys.argv[1]), int(sys.argv[2])
write_checkpoints(folder, vit_b32_shapes(), count=count, dtype="F32")
import torch
from safetensors.torch import load_file
weights = {name: tensor.clone() for name, tensor in load_file(folder / "f32-00/model.safetensors").items()}
torch.save(weights, folder / "zip.pt")
torch.save(weights, folder / "legacy.pt", _use_new_zipfile_serialization=False)
"""
SERVE = """
import sys
from pathlib import Path
from hub.server import Hub
with Hub() as hub:
    for number, source in enumerate(sorted(Path(sys.argv[1]).glob("f32-*"))):
        hub.add("org/toy", source, tag=f"v{number}")
    print(hub.url, flush=True)
    sys.stdin.read()
"""
NAIVE = """
import sys, torch
from safetensors.torch import save_file
save_file(torch.load(sys.argv[1], weights_only=True), sys.argv[2])
"""


def line(name: str, *command: str | Path, left: Path | None = None) -> None:
    """Measure one process. This one stays small: Linux counts its memory as the child's until the child
    begins."""
    found = measure(command)
    files = [path for path in left.rglob("*") if path.is_file() and not path.is_symlink()] if left else []
    stored = f"{sum(path.stat().st_size for path in files) / 1e6:9.1f} MB stored" if left else ""
    print(f"{name:40} {found.seconds:7.2f} s {found.megabytes:7.0f} MB {stored}", flush=True)


def converting(folder: Path) -> None:
    """`convert` beside the two lines that everybody writes."""
    line("import torch", sys.executable, "-c", "import torch")
    for name in ("zip", "legacy"):
        out = folder / "converted"
        shutil.rmtree(out, ignore_errors=True)
        line(f"convert, {name}", *SOUPKIT, "convert", folder / f"{name}.pt", "--out", out, "--quiet")
    line(
        "torch.load and save_file",
        sys.executable,
        "-c",
        NAIVE,
        folder / "zip.pt",
        folder / "naive.safetensors",
    )


def merging(folder: Path, sources: list[Path]) -> None:
    """Merges of the same checkpoints from this disk, by ranges, and downloaded."""
    home, reference = folder / "home", f"org/toy@v{{0..{len(sources) - 1}}}"
    merge = [*SOUPKIT, "merge", "uniform", "--quiet", "--overwrite", "--out", folder / "soup"]
    shutil.rmtree(home, ignore_errors=True)
    line("merge uniform, local", *merge, *sources)
    line("inspect", *SOUPKIT, "inspect", reference, "--json", left=home)
    line("merge uniform --stream", *merge, reference, "--stream", left=home)
    line("pull", *SOUPKIT, "pull", reference, "--quiet", left=home)
    line("merge uniform after pull", *merge, reference, left=home)
    shutil.rmtree(home)
    line("merge uniform, empty cache", *merge, reference, left=home)
    shutil.rmtree(home)


def main() -> None:
    """Prepare, serve, measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=8)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    if not (folder / "legacy.pt").exists():
        subprocess.run([sys.executable, "-c", PREPARE, folder, str(arguments.count)], check=True)
    converting(folder)
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert server.stdin
    assert server.stdout
    try:
        url = server.stdout.readline().decode().strip()
        os.environ |= {"HF_ENDPOINT": url, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1"}
        merging(folder, sorted(folder.glob("f32-*")))
    finally:
        server.stdin.close()
        server.wait()


if __name__ == "__main__":
    main()
