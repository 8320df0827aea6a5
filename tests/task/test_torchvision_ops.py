"""The shim defines operators only where torchvision's extension cannot. Each case in a fork of one
process."""

from __future__ import annotations

import _ctypes
import shutil
import subprocess
import sys
from importlib import machinery
from pathlib import Path

SHIM = Path(__file__).parents[2] / "soupkit" / "task" / "torchvision_ops.py"
CHECK = f"""
import os, sys, runpy, torch
sys.stdout.flush()
for folder in sys.argv[1:]:
    if (child := os.fork()) == 0:
        sys.path.insert(0, folder)
        names = runpy.run_path({str(SHIM)!r})
        try:
            torch.ops.torchvision.nms
            torch.ops.torchvision.qnms
            defined = True
        except AttributeError:
            defined = False
        print(names["extension_path"]() is not None, names["extension_loads"](), defined, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
kept = [runpy.run_path({str(SHIM)!r}) for _ in range(2)]
import torchvision.ops
print("fine")
"""


def fake_torchvision(folder: Path, extension: Path | None, content: bytes = b"") -> None:
    package = folder / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    target = package / f"_C{machinery.EXTENSION_SUFFIXES[-1]}"
    if extension is not None:
        shutil.copyfile(extension, target)
    else:
        target.write_bytes(content)


def test_the_shim_defines_what_the_extension_cannot(tmp_path: Path) -> None:
    """A loadable extension defines its own, a broken one gets the schemas; then the torchvision at hand, even
    twice."""
    loadable, broken = tmp_path / "loadable", tmp_path / "broken"
    fake_torchvision(loadable, Path(_ctypes.__file__))
    fake_torchvision(broken, None, b"not a shared object")
    command = [sys.executable, "-c", CHECK, str(loadable), str(broken)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["True True False", "True False True", "fine"], done.stderr
