"""`merge uniform|weighted`, `verify`, `reproduce`, `inspect`, `diff` as a user runs them, on real
directories."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.cli.app import run_command_line
from soupkit.manifest import Manifest

Save = Callable[..., Path]


@pytest.fixture
def runs(save: Save, tmp_path: Path) -> list[Path]:
    """Three checkpoints with companions, in three layouts, and metrics in their manifests."""
    rng = np.random.default_rng(0)
    paths = []
    for k in range(3):
        tensors = {
            "conv.weight": rng.normal(size=(64, 3, 5, 5)).astype(np.float32),
            "bn.running_mean": rng.normal(size=64).astype(np.float32),
            "bn.num_batches_tracked": np.array(10 + k),
        }
        path = save(f"runs/{k}", tensors, max_shard_bytes=(0, 400, 0)[k])
        (path / "config.json").write_text('{"architecture": "resnet18"}')
        (path / "tokenizer.json").write_text("{}")
        (path / "README.md").write_text("not to be copied")
        metrics = {"held_out": {"top1": {"value": (0.7, 0.9, 0.8)[k]}, "nll": {"value": (3.0, 1.0, 2.0)[k]}}}
        Manifest(command="finetune", recipe={}, metrics=metrics, outputs={"content": ""}).write(path)
        paths.append(path)
    return paths


def run(*arguments: object, capsys: Any = None) -> Any:
    assert run_command_line([str(argument) for argument in (*arguments, "--json", "--quiet")]) == 0
    return json.loads(capsys.readouterr().out) if capsys else None


def fail(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 1) -> str:
    capsys.readouterr()
    assert run_command_line([str(argument) for argument in arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    return captured.err


def test_the_output_is_a_checkpoint_with_everything_beside_it(runs: list[Path], tmp_path: Path) -> None:
    run("merge", "uniform", *runs, "--out", tmp_path / "soup", "--sha256")
    soup = tmp_path / "soup"
    assert sorted(path.name for path in soup.iterdir()) == [
        "README.md", "config.json", "model.safetensors", "soupkit.json", "tokenizer.json",
    ]  # fmt: skip
    tensors = safetensors.numpy.load_file(soup / "model.safetensors")
    stacked = np.stack([Checkpoint(path)["conv.weight"] for path in runs]).astype(np.float64)
    np.testing.assert_array_equal(tensors["conv.weight"], stacked.mean(0).astype(np.float32))
    assert tensors["bn.num_batches_tracked"] == 12
    manifest = Manifest.read(soup)
    assert manifest.command == "merge uniform"
    assert [entry["reference"] for entry in manifest.inputs] == [str(path) for path in runs]
    assert manifest.mixture is not None
    assert manifest.mixture["coefficients"] == [[1.0]] * 3
    card = (soup / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: ")
    assert "merge uniform" in card


def test_the_file_is_the_same_with_the_inputs_reversed(runs: list[Path], tmp_path: Path) -> None:
    run("merge", "uniform", *runs, "--out", tmp_path / "a")
    run("merge", "uniform", *reversed(runs), "--out", tmp_path / "b")
    first, second = (tmp_path / name / "model.safetensors" for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_top_takes_the_best_by_what_the_manifests_record(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = run("merge", "uniform", *runs, "--top", 2, "--out", tmp_path / "a", capsys=capsys)
    assert [entry["reference"] for entry in manifest["inputs"]] == [str(runs[1]), str(runs[2])]
    lowest = run(
        "merge", "uniform", *runs, "--top", 1, "--by", "held_out.nll", "--out", tmp_path / "b", capsys=capsys
    )
    assert [entry["reference"] for entry in lowest["inputs"]] == [str(runs[1])]
    assert "must not choose" in fail(
        capsys, "merge", "uniform", *runs, "--top", 1, "--by", "test.top1", "--out", "x", code=2
    )
    assert "records no metric" in fail(
        capsys, "merge", "uniform", *runs, "--top", 1, "--by", "held_out.f1", "--out", "x", code=2
    )


def test_batch_norm_statistics_can_be_kept(runs: list[Path], tmp_path: Path) -> None:
    run("merge", "uniform", *runs, "--bn", "keep", "--out", tmp_path / "soup")
    soup = Checkpoint(tmp_path / "soup")
    np.testing.assert_array_equal(soup["bn.running_mean"], Checkpoint(runs[0])["bn.running_mean"])
    assert not np.array_equal(soup["conv.weight"], Checkpoint(runs[0])["conv.weight"])


def test_weighted_and_shards_and_dtype(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "soup"
    options = (
        "--coefficients",
        "0.2,0.3,0.4",
        "--normalize",
        "--dtype",
        "float16",
        "--max-shard-size",
        "1KB",
    )
    run("merge", "weighted", *runs, *options, "--out", out)
    soup = Checkpoint(out)
    assert len(soup.files) == 2
    models = [Checkpoint(path)["conv.weight"].astype(np.float64) for path in runs]
    exact = (0.2 * models[0] + 0.3 * models[1] + 0.4 * models[2]) / (0.2 + 0.3 + 0.4)
    np.testing.assert_array_equal(soup["conv.weight"], exact.astype(np.float16))
    assert soup.specs["bn.num_batches_tracked"].dtype == "I64"
    assert "2 coefficients for 3" in fail(
        capsys, "merge", "weighted", *runs, "--coefficients", "1,2", "--out", tmp_path / "x", code=2
    )


def test_verify_finds_what_changed(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "soup"
    run("merge", "uniform", *runs, "--out", out)
    run("verify", out, "--inputs")
    data = bytearray((out / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (out / "model.safetensors").write_bytes(data)
    assert run_command_line(["verify", str(out)]) == 1
    assert "weights: content xxh3-128" in capsys.readouterr().err


def test_verify_finds_a_changed_companion(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "soup"
    run("merge", "uniform", *runs, "--out", out)
    (out / "README.md").write_text("people edit model cards")
    run("verify", out)
    (out / "config.json").write_text('{"architecture": "resnet19"}')
    assert run_command_line(["verify", str(out)]) == 1
    assert "config.json" in capsys.readouterr().err


def test_reproduce_gives_the_same_file_and_refuses_changed_inputs(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(
        "merge",
        "weighted",
        *runs,
        "--coefficients",
        "0.1,0.3,0.6",
        "--max-shard-size",
        "1KB",
        "--out",
        tmp_path / "soup",
    )
    run("reproduce", tmp_path / "soup", "--out", tmp_path / "again")
    for file in (tmp_path / "soup").glob("*.safetensors"):
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    shutil.copyfile(runs[2] / "model.safetensors", runs[0] / "model.safetensors")
    assert "has changed since" in fail(capsys, "reproduce", tmp_path / "soup", "--out", tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_reproduce_follows_when_all_moves_together(runs: list[Path], tmp_path: Path) -> None:
    run("merge", "uniform", *runs, "--out", tmp_path / "runs" / "soup")
    shutil.move(tmp_path / "runs", tmp_path / "elsewhere")
    run("reproduce", tmp_path / "elsewhere/soup", "--out", tmp_path / "again")


def test_nothing_is_written_when_something_is_wrong(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "soup"
    fail(capsys, "merge", "uniform", *runs, tmp_path / "nowhere", "--out", out)
    fail(capsys, "merge", "uniform", *runs, runs[0], "--out", out)
    fail(capsys, "merge", "uniform", *runs, "--out", runs[0], "--overwrite")
    assert run_command_line(["merge", "uniform", *map(str, runs), "--out", str(out), "--dry-run"]) == 0
    assert not out.parent.exists()


def test_a_nan_is_found_and_nothing_is_left(
    runs: list[Path], save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = {name: np.array(value) for name, value in Checkpoint(runs[0]).items()}
    tensors["conv.weight"][3, 1, 2, 2] = np.nan
    bad = save("diverged", tensors)
    assert "diverged: tensor 'conv.weight' holds NaN" in fail(
        capsys, "merge", "uniform", *runs, bad, "--out", tmp_path / "s"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["runs", "diverged"] or not (tmp_path / "s").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    run("merge", "uniform", *runs, bad, "--out", tmp_path / "s", "--non-finite", "keep")


def test_equal_weights_under_two_names_are_pointed_out(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs[0], tmp_path / "copy")
    assert (
        run_command_line(
            ["merge", "uniform", *map(str, runs), str(tmp_path / "copy"), "--out", str(tmp_path / "s")]
        )
        == 0
    )
    assert "holds exactly the same weights" in capsys.readouterr().err


def test_inspect_reads_headers_only(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    described = run("inspect", *runs, "--tensors", capsys=capsys)["checkpoints"]
    assert described[0]["architecture"] == "resnet18"
    assert described[0]["parameters"] == 64 * 75 + 64 + 1
    assert (
        described[1]["files"] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        or len(described[1]["files"]) > 1
    )
    assert described[0]["metrics"]["held_out"]["top1"]["value"] == 0.7


def test_diff_measures_distance_and_cosine(save: Save, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    a = {"same": rng.normal(size=9).astype(np.float32), "w": rng.normal(size=(20, 30)), "only": np.zeros(1)}
    b = {"same": a["same"], "w": a["w"] + 0.1 * rng.normal(size=(20, 30)), "other": np.zeros(1)}
    result = run("diff", save("a", a), save("b", b), capsys=capsys)
    assert (result["only_in_a"], result["only_in_b"], result["num_equal"]) == (["only"], ["other"], 1)
    row = next(row for row in result["tensors"] if row["tensor"] == "w")
    assert row["relative_distance"] == pytest.approx(np.linalg.norm(a["w"] - b["w"]) / np.linalg.norm(a["w"]))
    cosine = (a["w"] * b["w"]).sum() / np.linalg.norm(a["w"]) / np.linalg.norm(b["w"])
    assert row["cosine"] == pytest.approx(cosine)


def test_it_equals_a_float64_mean_in_torch(save: Save, tmp_path: Path) -> None:
    """What timm's avg_checkpoints.py computes: double sums, one division, back to float32."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    paths = [save(f"t{k}", {"w": rng.normal(size=(40, 50)).astype(np.float32)}) for k in range(3)]
    run("merge", "uniform", *paths, "--out", tmp_path / "soup")
    total = sum(torch.from_numpy(Checkpoint(path)["w"]).double() for path in paths)
    expected = (total / 3).float().numpy()
    np.testing.assert_array_equal(Checkpoint(tmp_path / "soup")["w"], expected)
