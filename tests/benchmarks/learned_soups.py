"""Uniform, greedy, learned, MEHL, TWA and evolved soups of one population, over several seeds, and a removal
study.

    python tests/benchmarks/learned_soups.py --out runs/learned-soups --seeds 3 --models 24

For each seed: a small ResNet learns a few printed digits (glyphs), and that common base is fine-tuned many
times with drawn hyper-parameters; coefficients are chosen on 1,000 held-out glyphs and reported on 2,000
others, which chose nothing. Whatever is finished is kept in --out, so an interrupted study goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from soupkit.cli.app import run_command_line
from soupkit.manifest import Manifest

METHODS: dict[str, Sequence[str]] = {
    "uniform": ("uniform",),
    "greedy": ("greedy",),
    "learned": ("learned", "--blocks", "global"),
    "learned, by tensor": ("learned", "--blocks", "tensor"),
    "MEHL, one block": ("mehl", "--blocks", "global"),
    "MEHL+": ("mehl",),
    "MEHL+, published step": ("mehl", "--step", "distance", "--lr", "0.01", "--clip-grad", "1"),
    "MEHL+, batches of 6": ("mehl", "--model-batch", "6"),
    "MEHL+, nonnegative": ("mehl", "--nonnegative"),
    "MEHL+, int8": ("mehl", "--resident", "int8"),
    "MEHL+, cross-fitted": ("mehl", "--folds", "3", "--epochs", "10", "--patience", "2"),
    "TWA-v of the sweep": ("twa", "--fit", "held_out", "--lr", "0.3", "--epochs", "5"),
    "evolved": ("evolve", "--metric", "nll", "--evaluations", "100"),
}
REMOVED = ("greedy", "learned, by tensor", "MEHL+")
WITHOUT_DATA = ("uniform",)


def data(arguments: argparse.Namespace, seed: int) -> list[str]:
    """The data of every step of a seed."""
    sizes = [
        "--num-train",
        "120",
        "--num-held-out",
        str(arguments.held_out),
        "--num-test",
        str(arguments.test),
    ]
    return ["--data", "glyphs", *sizes, "--split-seed", str(seed)]


def step(out: Path, *words: object) -> dict[str, Any]:
    """Run one command unless its output is there; returns the manifest."""
    if not (out / "soupkit.json").is_file():
        with contextlib.redirect_stdout(io.StringIO()):
            code = run_command_line([*map(str, words), "--out", str(out), "--quiet"])
        assert code == 0, words
    return Manifest.read(out).to_json()


def population(arguments: argparse.Namespace, seed: int) -> Path:
    """The sweep of one seed."""
    folder: Path = arguments.out / f"seed-{seed}"
    glyphs = data(arguments, seed)
    model = "timm:test_resnet,num_classes=10,img_size=32"
    options = ["--epochs", 20, "--lr", "2e-3", "--batch-size", 20, "--seed", seed]
    step(folder / "base", "finetune", "--model", model, *glyphs, *options)
    drawn = ["--lr", "log(5e-4,5e-3)", "--weight-decay", "log(1e-4,0.3)", "--epochs", "int(6,20)"]
    drawn += ["--mixup", "choice(0,0.2,1)", "--label-smoothing", "choice(0,0.1)", "--batch-size", 20]
    sweep = ["--num-runs", arguments.models, "--jobs", arguments.jobs, "--seed", seed]
    if len(
        Manifest.read(folder / "sweep").notes["members"] if (folder / "sweep/soupkit.json").is_file() else []
    ) < int(arguments.models):
        code = run_command_line(
            [
                *map(str, ["finetune-sweep", folder / "base", *glyphs, *sweep, *drawn]),
                "--out",
                str(folder / "sweep"),
                "--quiet",
            ]
        )
        assert code == 0
    return folder / "sweep"


def scored(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """{split: top-1}."""
    return {split: metrics["top1"] for split, metrics in manifest["metrics"].items()}


def one_seed(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Every row of one seed: {row: {split: {value, standard_error, num_examples}}}."""
    sweep, glyphs = population(arguments, seed), data(arguments, seed)
    folder, rows = sweep.parent, {}
    evaluated = step(folder / "ensemble", "evaluate", sweep, "--ensemble", "logits", *glyphs)["metrics"]
    members = {name: value for name, value in evaluated.items() if not name.startswith("ensemble")}
    best = max(members, key=lambda name: members[name]["held_out"]["top1"]["value"])
    rows["best single"] = {split: value["top1"] for split, value in members[best].items()}
    for name, words in METHODS.items():
        if arguments.only and name not in arguments.only:
            continue
        out = folder / name.replace(", ", "-").replace(" ", "-")
        used = [] if name in WITHOUT_DATA else glyphs
        manifest = step(out, "merge", words[0], sweep, *used, *words[1:])
        if name in WITHOUT_DATA:
            manifest = step(folder / f"{out.name}-scores", "evaluate", out, *glyphs)
        rows[name] = scored(manifest)
    rows["ensemble of logits"] = {
        split: value["top1"] for split, value in evaluated["ensemble of logits"].items()
    }
    for num in arguments.drop:
        for name in REMOVED if num else ():
            words = METHODS[name]
            out = folder / f"without-{num}" / name.replace(", ", "-").replace(" ", "-")
            rows[f"without the best {num}: {name}"] = scored(
                step(out, "merge", words[0], sweep, *glyphs, *words[1:], "--drop-top", num)
            )
    return rows


def show(results: Sequence[Mapping[str, Any]]) -> None:
    """Mean over seeds, the standard error of that mean, and the binomial one of a single score."""
    first = results[0]["best single"]
    sizes = {split: first[split]["num_examples"] for split in ("held_out", "test")}
    print(
        f"top-1 in %, mean of {len(results)} seeds ± its standard error (test n = {sizes['test']} per seed)"
    )
    print(f"{'model':46} {'held-out':>16} {'test':>16} {'vs best single':>18}")
    for name in results[0]:
        cells = []
        for split in ("held_out", "test"):
            values = [100 * result[name][split]["value"] for result in results]
            cells.append("{:7.2f} ± {:4.2f}".format(*mean_and_error(values)))
        paired = [100 * (r[name]["test"]["value"] - r["best single"]["test"]["value"]) for r in results]
        print(
            f"{name:46} {cells[0]:>16} {cells[1]:>16} "
            f"{'{:+.2f} ± {:.2f}'.format(*mean_and_error(paired)):>18}"
        )
    single = first["test"]
    print(f"one score alone has a standard error of about {100 * single['standard_error']:.2f}")


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error; of one value, no error is known."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def main() -> None:
    """Run what is missing and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/learned-soups"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--models", type=int, default=24)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--held-out", type=int, default=1000)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--drop", type=int, nargs="*", default=[1, 7, 14])
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--population-only", action="store_true")
    arguments = parser.parse_args()
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    if arguments.population_only:
        for seed in seeds:
            population(arguments, seed)
        return
    results = [one_seed(arguments, seed) for seed in seeds]
    (arguments.out / "rows.json").write_text(json.dumps(results, indent=1))
    show(results)


if __name__ == "__main__":
    main()
