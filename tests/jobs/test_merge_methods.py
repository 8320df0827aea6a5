"""The commands of the methods, from the command line to the files."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.cli.app import run_command_line
from soupkit.manifest import Manifest
from soupkit.merge.methods import all_methods

Save = Callable[..., Path]

METHODS = all_methods()


def tensors(seed: int, *, rows: int = 40) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"embed.weight": (rows, 8), **{f"layers.{i}.mlp.weight": (8, 8) for i in range(3)}, "bias": (8,)}
    values = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return values | {"steps": np.array([seed])}


@pytest.fixture
def models(save: Save) -> list[Path]:
    paths = [
        save(name, tensors(k), max_shard_bytes=500 * (k == 1)) for k, name in enumerate(("base", "a", "b"))
    ]
    for path in paths:
        (path / "config.json").write_text('{"architectures": ["Net"], "num_hidden_layers": 3}')
        (path / "tokenizer.json").write_text("{}")
        (path / "generation_config.json").write_text("{}")
    return paths


def call(*words: Any) -> int:
    return run_command_line([str(word) for word in words])


ARGUMENTS: dict[str, list[Any]] = {"tall-mask": ["--task", 0], "emr": ["--task", 0], "nearswap": ["--t", 0.1]}
NEEDS_FILES = ("fisher", "regmean")
PLAIN = [name for name in METHODS if name not in NEEDS_FILES and name != "passthrough"]


def command(name: str, models: list[Path], out: Path, *more: Any) -> list[Any]:
    base, a, b = models
    refs = [a] if METHODS[name].inputs == (1, 1) else [a, b]
    on_base = ["--base", base] if METHODS[name].base == "required" else []
    return ["merge", name, *refs, *on_base, *ARGUMENTS.get(name, []), "--out", out, "--quiet", *more]


@pytest.mark.parametrize("name", PLAIN)
def test_every_method_writes_verifies_and_reproduces(name: str, models: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call(*command(name, models, out)) == 0
    assert {path.name for path in out.iterdir()} == {
        "config.json", "generation_config.json", "tokenizer.json", "model.safetensors", "soupkit.json",
        "README.md",
    }  # fmt: skip
    written = Checkpoint(out)
    assert written.slots == Checkpoint(models[0]).slots
    assert not np.array_equal(written["embed.weight"], tensors(0)["embed.weight"])
    assert call("verify", out, "--inputs", "--quiet") == 0
    assert call("reproduce", out, "--out", tmp_path / "again", "--quiet") == 0
    assert (tmp_path / "again/model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_reproduce_finds_inputs_that_moved_with_the_output(models: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    moved = [path.rename(folder / path.name) for path in models]
    assert call(*command("dare-ties", moved, folder / "out", "--seed", 3)) == 0
    folder.rename(tmp_path / "elsewhere")
    assert call("reproduce", tmp_path / "elsewhere/out", "--out", tmp_path / "again", "--quiet") == 0


def test_reproduce_refuses_inputs_that_changed(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*command("ties", models, tmp_path / "out")) == 0
    weights = models[0] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64] + bytes(64))
    assert call("reproduce", tmp_path / "out", "--out", tmp_path / "again", "--quiet") == 1
    assert "came out with content" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_reproduce_says_what_is_other_here_than_where_it_was_made(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*command("ties", models, tmp_path / "out")) == 0
    path = tmp_path / "out/soupkit.json"
    manifest = json.loads(path.read_text())
    assert manifest["versions"]["processor"].startswith(platform.machine())
    manifest["versions"]["processor"] = "riscv64 wide"
    manifest["outputs"]["content"] = "xxh3-128:" + 32 * "0"
    path.write_text(json.dumps(manifest))
    assert call("reproduce", tmp_path / "out", "--out", tmp_path / "again", "--quiet") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "processor riscv64 wide there" in said
    assert "numpy" not in said  # which is the same here
    assert not (tmp_path / "again").exists()


def test_settings_reach_the_tensors(models: list[Path], tmp_path: Path) -> None:
    more = [
        "--weight",
        "1,0",
        "--set",
        "layers.*.mlp: {weight: {0: [0, 1]}}",
        "--set",
        "embed: {lambda: 0.5}",
    ]
    assert call(*command("task-arithmetic", models, tmp_path / "out", *more)) == 0
    written, base, a = Checkpoint(tmp_path / "out"), tensors(0), tensors(1)
    for layer, weight in enumerate((0.0, 0.5, 1.0)):
        name = f"layers.{layer}.mlp.weight"
        np.testing.assert_allclose(
            written[name], base[name] + weight * (a[name] - base[name]), rtol=1e-5, atol=1e-6
        )
    np.testing.assert_allclose(
        written["embed.weight"], (base["embed.weight"] + a["embed.weight"]) / 2, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(written["bias"], a["bias"])
    np.testing.assert_array_equal(written["steps"], [2])


def test_the_same_merge_from_a_recipe_file(models: list[Path], tmp_path: Path) -> None:
    base, a, b = models
    recipe = tmp_path / "ties.yaml"
    values = {
        "command": "merge ties", "refs": [str(a), str(b)], "base": str(base),
        "out": str(tmp_path / "from-file"),
        "lambda": 0.7, "density": 0.5, "set": {"layers.*.mlp": {"density": [0.2, 0.8]}},
    }  # fmt: skip
    recipe.write_text(json.dumps(values))
    assert call("run", recipe, "--quiet") == 0
    more = ["--lambda", 0.7, "--density", 0.5, "--set", "layers.*.mlp: {density: [0.2, 0.8]}"]
    assert call(*command("ties", models, tmp_path / "typed", *more)) == 0
    contents = [Manifest.read(tmp_path / name).outputs["content"] for name in ("from-file", "typed")]
    assert contents[0] == contents[1]


def test_shards_and_dtype_of_the_output(models: list[Path], tmp_path: Path) -> None:
    more = ["--max-shard-size", "700B", "--dtype", "bfloat16"]
    assert call(*command("slerp", models, tmp_path / "out", *more)) == 0
    assert (tmp_path / "out/model.safetensors.index.json").is_file()
    assert {slot.dtype for slot in Checkpoint(tmp_path / "out").slots.values()} == {"BF16", "I64"}


def test_lines_needs_layers(save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refs = [save(name, {"w": np.ones((2, 2), np.float32)}) for name in ("base", "a")]
    words = [
        "merge",
        "ties",
        refs[1],
        "--base",
        refs[0],
        "--preset",
        "lines:0.3,0.6",
        "--out",
        tmp_path / "o",
    ]
    assert call(*words) == 2
    assert "no tensor's name has the number" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_lines_lets_lambda_grow_with_depth(models: list[Path], tmp_path: Path) -> None:
    """λ_ℓ = α + β (ℓ − 1) / (L − 1) on the merged task vector, α outside the layers."""
    for name, more in (("plain", []), ("lines", ["--preset", "lines:0.3,0.6"])):
        assert call(*command("task-arithmetic", models, tmp_path / name, *more)) == 0
    base, plain, lines = (Checkpoint(path) for path in (models[0], tmp_path / "plain", tmp_path / "lines"))
    depths = {name: re.findall(r"\.(\d)\.", name) for name in base}
    for name in base:
        if np.issubdtype(base[name].dtype, np.floating):
            share = 0.3 + 0.6 * int(depths[name][0]) / 2 if depths[name] else 0.3
            np.testing.assert_allclose(
                lines[name] - base[name], share * (plain[name] - base[name]), atol=1e-6
            )


def test_dry_run_writes_nothing_and_shows_the_plan(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*command("ties", models, tmp_path / "out", "--dry-run", "--json")) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert not (tmp_path / "out").exists()
    assert plan["bytes_to_read"] == 3 * plan["bytes_to_write"]
    assert plan["memory"] == METHODS["ties"].memory
    assert 45e6 < plan["peak_memory"] < 150e6
    assert 0 < plan["estimated_seconds"] < 60


@pytest.mark.parametrize(
    ("name", "more", "code", "message"),
    [
        ("ties", ["--density", "0"], 2, r"density is 0, expected a number in \(0, 1]"),
        ("ties", ["--density", "0.1,0.2,0.3"], 2, "density has 3 numbers for 2 checkpoints"),
        ("ties", ["--set", "mlps: {density: 0.5}"], 2, "matches no tensor"),
        ("ties", ["--set", "layers: {density: [0.5, 2]}"], 2, r"layers\.\d\.mlp\.weight: density is \d"),
        ("ties", ["--set", "layers: {densty: 1}"], 2, "did you mean 'density'"),
        ("tall-mask", ["--set", "layers: {task: 2}"], 2, "task is 2"),
        ("dare-ties", ["--seed", "-1"], 2, "seed is -1"),
        ("ties", ["--preset", "lins:0.3,0.7"], 2, "expected lines:ALPHA,BETA"),
        ("ties", ["--preset", "lines:0.3"], 2, "expected lines:ALPHA,BETA"),
        ("dare-linear", ["--weight", "1,2,3"], 2, "weight has 3 numbers"),
        ("della-ties", ["--density", "0.05", "--epsilon", "0.3"], 2, "leaves the range"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_left(
    name: str,
    more: list[str],
    code: int,
    message: str,
    models: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(tmp_path.iterdir())
    assert call(*command(name, models, tmp_path / "out", *more)) == code
    assert re.search(message, capsys.readouterr().err)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("name", "count"), [("slerp", 3), ("nearswap", 2), ("model-stock", 1), ("fusion", 1)]
)
def test_the_number_of_checkpoints_is_checked(
    name: str, count: int, save: Save, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refs = [save(f"x{k}", tensors(k)) for k in range(count)]
    base = ["--base", models[0]] if METHODS[name].base == "required" else []
    assert call("merge", name, *refs, *base, *ARGUMENTS.get(name, []), "--out", tmp_path / "out") == 2
    assert f"the references name {count}" in capsys.readouterr().err


def test_fisher_and_regmean_read_their_files(models: list[Path], save: Save, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {name: value.shape for name, value in tensors(0).items() if value.dtype == np.float32}
    fisher = [
        {name: np.abs(rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(2)
    ]
    files = [save(f"fisher-{k}", each) for k, each in enumerate(fisher)]
    options = [word for file in files for word in ("--statistics", file)]
    assert (
        call("merge", "fisher", *models[1:], *options, "--floor", 1e-12, "--out", tmp_path / "f", "--quiet")
        == 0
    )
    a, b = tensors(1)["bias"], tensors(2)["bias"]
    expected = (fisher[0]["bias"] * a + fisher[1]["bias"] * b) / (fisher[0]["bias"] + fisher[1]["bias"])
    np.testing.assert_allclose(Checkpoint(tmp_path / "f")["bias"], expected, rtol=1e-6)

    inputs = [rng.normal(size=(20, 8)) for _ in range(2)]
    grams = [save(f"grams-{k}", {"layers.1.mlp.weight": x.T @ x}) for k, x in enumerate(inputs)]
    options = [word for file in grams for word in ("--statistics", file)]
    assert (
        call("merge", "regmean", *models[1:], *options, "--shrink", 1, "--out", tmp_path / "r", "--quiet")
        == 0
    )
    layers = [tensors(k)["layers.1.mlp.weight"] for k in (1, 2)]
    target = np.concatenate([x @ w.T for x, w in zip(inputs, layers)])
    expected = np.linalg.lstsq(np.concatenate(inputs), target, rcond=None)[0].T
    np.testing.assert_allclose(
        Checkpoint(tmp_path / "r")["layers.1.mlp.weight"], expected, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(Checkpoint(tmp_path / "r")["bias"], (a + b) / 2, rtol=1e-6)
    assert call("reproduce", tmp_path / "r", "--out", tmp_path / "again", "--quiet") == 0


def test_one_file_of_statistics_for_each_checkpoint(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("merge", "fisher", *models[1:], "--statistics", models[0], "--out", tmp_path / "out") == 2
    assert "1 files of statistics for 2 checkpoints" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "warned"), [("ties", True), ("task-arithmetic", True), ("slerp", False)])
def test_trimmed_batch_norm_statistics_are_warned_of(
    name: str, warned: bool, save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [
        save(f"bn-{k}", tensors(k) | {"bn.running_var": np.full(4, 1.0 + k, np.float32)}) for k in range(3)
    ]
    words = [word for word in command(name, paths, tmp_path / "out") if word != "--quiet"]
    assert call(*words) == 0
    assert ("batch-norm statistics are merged like weights" in capsys.readouterr().err) is warned
