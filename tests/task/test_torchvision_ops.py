"""The shim defines operators only where torchvision's extension cannot define them. Each case in its own process."""

from __future__ import annotations

import _ctypes
import shutil
import subprocess
import sys
from importlib import machinery
from pathlib import Path

SHIM = Path(__file__).parents[2] / "soupkit" / "task" / "torchvision_ops.py"
CHECK = f"""
import sys, runpy, torch
sys.path.insert(0, sys.argv[1])
names = runpy.run_path({str(SHIM)!r})
try:
    torch.ops.torchvision.nms
    torch.ops.torchvision.qnms
    defined = True
except AttributeError:
    defined = False
print(names["extension_path"]() is not None, names["extension_loads"](), defined)
"""


def run(folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", CHECK, str(folder)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def fake_torchvision(folder: Path, extension: Path | None, content: bytes = b"") -> Path:
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("")
    target = package / f"_C{machinery.EXTENSION_SUFFIXES[-1]}"
    if extension is not None:
        shutil.copyfile(extension, target)
    else:
        target.write_bytes(content)
    return folder


def test_a_loadable_extension_is_left_to_define_its_own(tmp_path: Path) -> None:
    assert run(fake_torchvision(tmp_path, Path(_ctypes.__file__))) == "True True False"


def test_a_broken_extension_gets_the_schemas(tmp_path: Path) -> None:
    assert run(fake_torchvision(tmp_path, None, b"not a shared object")) == "True False True"


def test_the_torchvision_at_hand_can_be_imported_after_the_shim_even_twice() -> None:
    shim = f"import runpy; names = [runpy.run_path({str(SHIM)!r}) for _ in range(2)]"
    code = f"{shim}; import torchvision.ops, timm, open_clip; print('fine')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "fine", done.stderr
