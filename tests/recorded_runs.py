"""Run a fixed set of commands and write what came out: a change of structure must leave every bit of it as it
was.

python tests/recorded_runs.py --out before.json; (change the code); python tests/recorded_runs.py --against
before.json

Recorded are the digest of each weights file and, without times and places, the object that `--json` prints.
Bits differ from machine to machine, so both runs belong on the same one. Exit code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # before numpy and torch read it
    sys.path.insert(0, str(Path(__file__).parent))

from faults.kill_commands import COMMANDS, DATA, make_inputs
from jobs.test_clip_batch_norm import CONFIG as CLIP

from soupkit.cli.app import run_command_line
from soupkit.commands import COMMANDS as ALL

PLAIN = "{i}/plain0 {i}/plain1 {i}/plain2"
MODELS = "{i}/model0 {i}/model1 {i}/model2"
SEARCH = f"{MODELS} DATA --threads 1 --out {{o}}"
LEARN = f"{SEARCH} --lr 0.1 --epochs 2 --no-plots"
TOWERS = "{i}/clip0 {i}/clip1 DATA --threads 1 --out {o}"
WITH_BASE = "{i}/plain1 {i}/plain2 --base {i}/plain0 --threads 1 --out {o}"
LINE = "{i}/model0 {i}/model1 DATA --threads 1 --out {o}"
TO_TASK_VECTORS = {
    "task-arithmetic": "--weight 0.4",
    "ties": "--density 0.3",
    "dare-linear": "--density 0.5",
    "dare-ties": "--density 0.5",
    "della-linear": "--density 0.5",
    "della-ties": "--density 0.5",
    "breadcrumbs": "",
    "breadcrumbs-ties": "",
    "model-stock": "",
    "sce": "",
    "consensus": "",
    "tall-mask": "--task 1",
}
MADE_OF_WEIGHTS = {
    "merge uniform": f"{PLAIN} --threads 1 --max-shard-size 100KB --out {{o}}",
    "merge uniform bfloat16": f"{PLAIN} --threads 2 --dtype bfloat16 --out {{o}}",
    "merge weighted": f"{PLAIN} --coefficients 0.5,0.3,0.2 --threads 1 --out {{o}}",
    "merge linear": f"{PLAIN} --weight 1,2,3 --threads 1 --out {{o}}",
    "merge swa": f"{PLAIN} --threads 1 --out {{o}}",
    "merge ema": f"{PLAIN} --decay 0.7 --threads 1 --out {{o}}",
    "merge trajectory": f"{PLAIN} --shape linear --no-plots --threads 1 --out {{o}}",
    "merge slerp": "{i}/plain0 {i}/plain1 --threads 1 --out {o}",
    "merge nuslerp": "{i}/plain0 {i}/plain1 --threads 1 --out {o}",
    "merge multislerp": f"{PLAIN} --threads 1 --out {{o}}",
    "merge karcher": f"{PLAIN} --threads 1 --out {{o}}",
    "merge fusion": f"{PLAIN.rpartition(' ')[0]} --threads 1 --out {{o}}",
    "merge nearswap": f"{WITH_BASE} --t 0.1".replace("{i}/plain2 ", ""),
    "merge passthrough": "{i}/plain0 --threads 1 --out {o}",
    "extract-lora": "{i}/plain1 --base {i}/plain0 --rank 4 --threads 1 --out {o}",
    "align groups": "{i}/model0 --json",
    "diff": "{i}/model0 {i}/model1",
    "inspect": "{i}/model0",
    **{f"merge {name}": f"{WITH_BASE} {options}" for name, options in TO_TASK_VECTORS.items()},
}
JUDGED = {
    "merge uniform refreshed": f"{SEARCH} --bn refresh",
    "merge interpolate": "{i}/base {i}/model1 --at 0,0.5,1 DATA --threads 1 --out {o}",
    "merge greedy": SEARCH,
    "merge greedy nll": f"{SEARCH} --metric nll --bn refresh",
    "merge greedy by command": COMMANDS["greedy-scorer"].command,
    "merge evolve": f"{SEARCH} --evaluations 6",
    "merge learned": LEARN,
    "merge learned by layer": f"{LEARN} --blocks layer",
    "merge mehl": LEARN,
    "merge twa": f"{LEARN} --fit held_out",
    "repair": "{i}/soup DATA --num-batches 1 --threads 1 --out {o}",
    "align": "{i}/model0 {i}/model1 --threads 1 --out {o}",
    "align by activations": f"{LINE} --by activations --num-batches 1",
    "barrier": LINE,
    "curve fit": f"{LINE} --epochs 2 --lr 0.01",
    "curve evaluate": "{i}/../out/curve_fit DATA --num-points 3 --out {o}",
    "chain": f"{LINE} --num-points 3".replace("--threads 1 ", ""),
    "plane": f"{MODELS} DATA --num-points 3 --out {{o}}",
    "evaluate": f"{MODELS} DATA --baseline {{i}}/soup --out {{o}}",
    "ensemble": f"{MODELS} DATA --out {{o}}",
    "fge": "{i}/base DATA --cycle 2 --epochs 2 --threads 1 --out {o}",
    "finetune": "--base {i}/model0 DATA --epochs 2 --ema-decay 0.9 --threads 1 --out {o}",
    "finetune-sweep": "{i}/model0 DATA --num-runs 2 --epochs 1 --jobs 1 --no-plots --out {o}",
    "train-population": COMMANDS["train-population"].command.partition(" ")[2],
    "merge greedy towers": TOWERS,
    "merge learned towers": f"{TOWERS} --epochs 1 --no-plots",
    "evaluate towers": TOWERS.replace("--threads 1 ", ""),
    "finetune towers": "--base {i}/clip0 DATA --epochs 1 --threads 1 --out {o}",
}
RUNS = {**MADE_OF_WEIGHTS, **JUDGED}
TIMES = re.compile(
    r"seconds|created|elapsed|per_second|memory|pid|bytes_read|versions|key|identity|fingerprint|digest|given|xxh3"
)


def record(folder: Path, only: str) -> dict[str, Any]:
    """What each command leaves, by its name."""
    inputs = folder / "inputs"
    if code := make_inputs(inputs, COMMANDS.values()):
        raise SystemExit(f"the inputs cannot be made: exit code {code}")
    _make_clip(inputs)
    return {name: _run(name, inputs, folder) for name in RUNS if only in name}


def _make_clip(inputs: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from soupkit.task.images.models import ModelSpec, build

    for k in range(2):
        torch.manual_seed(k)
        weights = build(ModelSpec("open_clip", "tiny", {}, CLIP)).state_dict()
        (inputs / f"clip{k}").mkdir()
        (inputs / f"clip{k}" / "open_clip_config.json").write_text(json.dumps(CLIP))
        save_file(
            {n: t.contiguous() for n, t in weights.items()},
            inputs / f"clip{k}" / "open_clip_model.safetensors",
        )


def _run(name: str, inputs: Path, folder: Path) -> dict[str, Any]:
    out = folder / "out" / name.replace(" ", "_")
    command = next(command for command in sorted(ALL, key=len, reverse=True) if name.startswith(command))
    scorer = f"{sys.executable} {inputs / 'score.py'} {{checkpoint}}"
    rest = RUNS[name].replace("DATA", DATA).replace("{i}", str(inputs)).replace("{o}", str(out)).split()
    rest = rest[len(command.split()) :] if " ".join(rest).startswith(command) else rest
    words = [*command.split(), *(scorer if word == "SCORER" else word for word in rest), "--json", "--quiet"]
    printed, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
        code = run_command_line(words)
    if code:
        print(f"{name}: exit code {code}\n{told.getvalue()}", file=sys.stderr)
        return {"code": code}
    print(name, file=sys.stderr)
    files = (
        sorted(path for path in out.rglob("*.safetensors") if not path.is_symlink()) if out.is_dir() else []
    )
    digests = {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return {
        "code": 0,
        "weights": digests,
        "printed": _lasting(json.loads(printed.getvalue().replace(str(folder), ""))),
    }


def _lasting(value: Any) -> Any:
    """A printed value without what differs from run to run: times, and digests of texts with places in
    them."""
    if isinstance(value, dict):
        return {key: _lasting(item) for key, item in value.items() if not TIMES.search(str(key))}
    return [_lasting(item) for item in value] if isinstance(value, list) else value


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """One line per run that left anything else."""
    lines = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, {}), after.get(name, {})
        lines += [f"{name}: {key}" for key in ("code", "weights", "printed") if old.get(key) != new.get(key)]
    return lines


def main() -> int:
    """Record, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="where to write what came out")
    parser.add_argument("--against", type=Path, help="an earlier record to compare with")
    parser.add_argument("--only", default="", help="the runs whose name contains this")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SOUPKIT_CACHE"] = str(Path(folder) / "cache")
        found = record(Path(folder), options.only)
    failed = [name for name, run in found.items() if run["code"]]
    if options.out:
        options.out.write_text(json.dumps(found, indent=1))
    earlier = json.loads(options.against.read_text()) if options.against else {}
    unlike = (
        differences({name: run for name, run in earlier.items() if options.only in name}, found)
        if earlier
        else []
    )
    print(f"{len(found)} runs, failed: {failed or 'none'}; differ: {unlike or 'none'}")
    return bool(failed or unlike)


if __name__ == "__main__":
    raise SystemExit(main())
