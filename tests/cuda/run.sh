#!/usr/bin/env bash
# Runs the tests that need a CUDA device, on a machine that has one, and a Python whose torch sees it.
# That torch stays as it is: a virtual environment of its own, thrown away at the end, takes torch from there
# and all else in the versions of .ci/constraints.txt.
# Usage: tests/cuda/run.sh [ARGUMENT OF PYTEST…]
#        PYTHON=/opt/conda/bin/python tests/cuda/run.sh -k population
#        TORCH_CUDA_SANITIZER=1 tests/cuda/run.sh tests/cuda/test_training_on_device.py   # streams that do not wait
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}

# Where torch lies, and what pip must leave alone; a torchvision that fits another torch would not load.
there=$("$python" - <<'END'
import sys
from importlib import metadata
from pathlib import Path

try:
    import torch
except ImportError:
    sys.exit(f"no torch in {sys.executable}: install a CUDA build of it, or name a Python that has one (PYTHON=…)")
if not torch.cuda.is_available():
    sys.exit(
        f"no CUDA device: torch {torch.__version__} in {sys.executable} sees none. "
        "Without one, `pytest tests/cuda` runs these tests on a stand-in."
    )
names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
print(f"{names}; torch {torch.__version__}, CUDA {torch.version.cuda}", file=sys.stderr)
print(Path(torch.__file__).parents[1])
for name in ("torch", "torchvision"):
    try:
        print(f"{name}=={metadata.version(name)}")
    except metadata.PackageNotFoundError:
        pass
END
)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
    tail -n +2 <<<"$there"
    grep -vE '^(torch|torchvision)==' .ci/constraints.txt
} >"$work/constraints.txt"
"$python" -m venv "$work/venv"
head -n 1 <<<"$there" >"$("$work/venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')/torch-from-outside.pth"
"$work/venv/bin/pip" install --quiet --constraint "$work/constraints.txt" --editable '.[test]'
[[ $# -gt 0 ]] || set -- tests/cuda
OMP_NUM_THREADS=${OMP_NUM_THREADS:-4} "$work/venv/bin/python" -m pytest -m cuda -p no:cacheprovider "$@"
