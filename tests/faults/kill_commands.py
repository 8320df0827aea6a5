"""The commands that `kills.py` kills, on inputs that are made in seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from soupkit.checkpoint.tensors import write_tensors
from soupkit.cli.app import run_command_line

DATA = "--data digits --num-train 64 --num-held-out 60 --num-test 50 --batch-size 32 --device cpu"
MODEL = "timm:test_resnet,num_classes=10,img_size=32"
SCORER = """
import json, struct, sys
data = open(sys.argv[1] + "/model.safetensors", "rb").read()
size = int.from_bytes(data[:8], "little")
first = 8 + size + json.loads(data[8 : 8 + size])["layer0"]["data_offsets"][0]
print(json.dumps({"loss": abs(struct.unpack("<f", data[first : first + 4])[0] - 0.3)}))
"""
RECIPE = """
variables: {out: OUT}
steps:
  one: {command: merge uniform, refs: [INPUTS/plain0, INPUTS/plain1], threads: 1, out: "${out}/one"}
  two: {command: merge ties, refs: [INPUTS/plain1, INPUTS/plain2], base: INPUTS/plain0, threads: 1, out:
  "${out}/two"}
  three: {command: merge uniform, refs: ["${out}/one", "${out}/two"], threads: 1, out: "${out}/three"}
"""

MERGEKIT = """
merge_method: task_arithmetic
base_model: INPUTS/plain0
models: [{model: INPUTS/plain1}, {model: INPUTS/plain2}]
parameters: {weight: 0.5}
"""


@dataclass(frozen=True)
class KillCommand:
    """One command. {i} is the folder of inputs, {o} the place of the output.

    before: what made the output that is replaced. grows: the output grows step by step, each whole. models:
    it needs trained ones. volatile: files of a growing output that change while it grows. keeps: hidden files
    that belong there.
    """

    command: str
    out: str = "out"
    before: str = ""
    grows: bool = False
    models: bool = True
    volatile: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()

    def line(self, inputs: Path, folder: Path) -> list[str]:
        """The arguments of the command line."""
        return _line(self.command, inputs, folder / self.out)

    def before_line(self, inputs: Path, folder: Path) -> list[str]:
        """The arguments of the command line whose output is replaced."""
        return _line(self.before, inputs, folder / self.out)


def _line(command: str, inputs: Path, out: Path) -> list[str]:
    score = f"{sys.executable} {inputs / 'score.py'} {{checkpoint}}"
    places = {"i": str(inputs), "o": str(out)}
    line = [word.format(**places) for word in command.replace("DATA", DATA).split()]
    return [score if word == "SCORER" else word for word in line] + ["--quiet"]


PLAIN = "{i}/plain0 {i}/plain1 {i}/plain2"
MODELS = "{i}/model0 {i}/model1 {i}/model2"
BY_SCORER = "--score-command SCORER --metric loss --direction min"
COMMANDS = {
    "uniform": KillCommand(
        f"merge uniform {PLAIN} --max-shard-size 100KB --threads 1 --out {{o}}", models=False
    ),
    "uniform-overwrite": KillCommand(
        f"merge uniform {PLAIN} --threads 1 --max-shard-size 100KB --overwrite --out {{o}}",
        before="merge uniform {i}/plain0 {i}/plain1 --threads 1 --max-shard-size 200KB --out {o}",
        models=False,
    ),
    "ties": KillCommand(
        "merge ties {i}/plain1 {i}/plain2 --base {i}/plain0 --threads 1 --out {o}", models=False
    ),
    "tsv-m": KillCommand(
        "merge tsv-m {i}/plain1 {i}/plain2 --base {i}/plain0 --threads 1 --out {o}", models=False
    ),
    "ema": KillCommand(f"merge ema {PLAIN} --threads 1 --out {{o}}", models=False),
    "ema-glob": KillCommand("merge ema {i}/plain[0-2] --threads 1 --out {o}", models=False),
    "mergekit": KillCommand("merge mergekit {i}/mergekit.yaml --threads 1 --out {o}", models=False),
    "trajectory": KillCommand(
        f"merge trajectory {PLAIN} --window .. --window last2 --write all --no-plots --threads 1 --out {{o}}",
        models=False,
    ),
    "greedy": KillCommand(f"merge greedy {MODELS} DATA --threads 1 --out {{o}}"),
    "greedy-scorer": KillCommand(f"merge greedy {PLAIN} {BY_SCORER} --threads 1 --out {{o}}", models=False),
    "evolve-scorer": KillCommand(
        f"merge evolve {PLAIN} {BY_SCORER} --evaluations 6 --threads 1 --out {{o}}", models=False
    ),
    "learned": KillCommand(
        f"merge learned {MODELS} DATA --lr 0.1 --epochs 2 --threads 1 --out {{o}} --no-plots"
    ),
    "mehl": KillCommand(f"merge mehl {MODELS} DATA --lr 0.1 --epochs 2 --threads 1 --out {{o}} --no-plots"),
    "twa": KillCommand(
        f"merge twa {MODELS} DATA --fit held_out --lr 0.1 --epochs 2 --threads 1 --out {{o}} --no-plots"
    ),
    "repair": KillCommand("repair {i}/soup DATA --num-batches 1 --threads 1 --out {o}"),
    "align": KillCommand("align {i}/model0 {i}/model1 --threads 1 --out {o}", grows=True),
    "curve-fit": KillCommand(
        "curve fit {i}/model0 {i}/model1 DATA --epochs 2 --lr 0.01 --threads 1 --out {o}"
    ),
    "chain": KillCommand("chain {i}/model0 {i}/model1 DATA --num-points 3 --jobs 1 --out {o}"),
    "plane": KillCommand(f"plane {MODELS} DATA --num-points 2 --jobs 1 --out {{o}}"),
    "fge": KillCommand("fge {i}/base DATA --cycle 2 --epochs 2 --threads 1 --out {o}"),
    "barrier": KillCommand("barrier {i}/model0 {i}/model1 DATA --threads 1 --out {o}"),
    "interpolate": KillCommand(
        "merge interpolate {i}/base {i}/model1 --at 0,0.5,1 DATA --threads 1 --out {o}"
    ),
    "evaluate": KillCommand("evaluate {i}/model0 {i}/model1 DATA --out {o}"),
    "ensemble": KillCommand("ensemble {i}/model0 {i}/model1 DATA --out {o}"),
    "finetune": KillCommand("finetune --base {i}/model0 DATA --epochs 2 --threads 1 --out {o}"),
    "finetune-sweep": KillCommand(
        "finetune-sweep {i}/model0 DATA --num-runs 2 --epochs 1 --jobs 1 --no-plots --out {o}",
        grows=True,
        volatile=("soupkit.json", "leaderboard.csv", "leaderboard.json"),
        keeps=("out/.soupkit-lock",),
    ),
    "train-population": KillCommand(
        f"train-population --model {MODEL} DATA --num-members 2 --epochs 2 --save-every 1 --threads 1 "
        f"--out {{o}}",
        grows=True,
        keeps=("out/.soupkit-lock",),
    ),
    "convert": KillCommand("convert {i}/pickled.pt --threads 1 --out {o}", models=False),
    "convert-dcp": KillCommand(
        "convert {i}/plain0 --to dcp --threads 1 --out {o}", models=False, keeps=("out/.metadata",)
    ),
    "export": KillCommand("export {i}/classifier --to timm --threads 1 --out {o}", models=False),
    "run": KillCommand("run {i}/recipe.yaml --set out={o}", grows=True, models=False),
    "report": KillCommand("report {i}/plain-soup --out {o}", out="out.html", models=False),
    "extract-lora": KillCommand(
        "extract-lora {i}/plain1 --base {i}/plain0 --rank 4 --threads 1 --out {o}", models=False
    ),
}


def make_inputs(folder: Path, commands: Iterable[KillCommand]) -> int:
    """Write what the commands read; returns the first exit code that is not 0."""
    folder.mkdir()
    for seed in range(3):
        weights = _weights(seed)
        (folder / f"plain{seed}").mkdir()
        write_tensors(folder / f"plain{seed}", weights)
        (folder / f"plain{seed}" / "config.json").write_text('{"architecture": "toy"}')
    (folder / "score.py").write_text(SCORER)
    (folder / "recipe.yaml").write_text(RECIPE.replace("INPUTS", str(folder)))
    (folder / "mergekit.yaml").write_text(MERGEKIT.replace("INPUTS", str(folder)))
    lines = [f"merge uniform {PLAIN} --threads 1 --out {{i}}/plain-soup"]
    if any("pickled" in each.command for each in commands):
        _pickle(folder / "pickled.pt")
    if any("classifier" in each.command for each in commands):
        lines += [_classifier(folder)]
    if any(each.models for each in commands):
        lines += [f"finetune --model {MODEL} DATA --epochs 1 --lr 3e-3 --threads 1 --out {{i}}/base"]
        lines += [
            f"finetune --base {{i}}/base DATA --epochs 1 --lr 1e-3 --seed {seed} --threads 1 --out "
            f"{{i}}/model{seed}"
            for seed in range(3)
        ]
        lines += ["merge uniform {i}/model0 {i}/model1 --threads 1 --out {i}/soup"]
    return next((code for line in lines if (code := run_command_line(_line(line, folder, folder)))), 0)


def _classifier(folder: Path) -> str:
    """Write a published CLIP fine-tune; returns the command that reads it."""
    import published
    import torch

    name = published.know_architecture(folder / "architectures")
    torch.save(published.Wrapper().state_dict(), folder / "published.pt")
    return (
        f"convert {{i}}/published.pt --model open_clip:{name} --head normalize=false --out {{i}}/classifier"
    )


def _weights(seed: int) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    return {f"layer{number}": draw.standard_normal((100, 100), np.float32) for number in range(20)}


def _pickle(path: Path) -> None:
    import torch

    torch.save({"state_dict": {name: torch.from_numpy(value) for name, value in _weights(0).items()}}, path)
