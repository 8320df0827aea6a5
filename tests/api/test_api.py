"""The Python interface: the same soups as from the command line, with types, and without torch where none is
needed."""

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import soupkit
from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.tensors import write_tensors
from soupkit.cli.app import run_command_line
from soupkit.errors import OutputError, RecipeError, ReferenceError
from soupkit.events import Event, Scored, Wrote
from soupkit.recipe.inspect import Inspect

README = Path(__file__).parents[2] / "README.md"
TARGET = np.linspace(-1, 1, 64, dtype=np.float32)


def weights(seed: int, noise: float = 0.3) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {"w": (TARGET + noise * draw.standard_normal(64)).astype(np.float32), "n": np.array(seed)}


def closeness(tensors: Mapping[str, np.ndarray]) -> float:
    """A score that any Python can compute: how near the weights are to what they should be."""
    return -float(np.abs(tensors["w"] - TARGET).sum())


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    for seed, name in enumerate("abcde"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        write_tensors(tmp_path / "runs" / name, weights(seed, 3.0 if name == "e" else 0.3))
        (tmp_path / "runs" / name / "config.json").write_text('{"architecture": "toy"}')
    return [tmp_path / "runs" / name for name in "abcde"]


def test_merge_is_the_command(runs: list[Path], tmp_path: Path) -> None:
    arguments = [
        "merge",
        "weighted",
        *map(str, runs[:2]),
        "--coefficients",
        "0.25,0.75",
        "--out",
        str(tmp_path / "cli"),
    ]
    assert run_command_line([*arguments, "--quiet"]) == 0
    events: list[Event] = []
    merged = soupkit.merge(
        runs[:2], tmp_path / "api", method="weighted", coefficients=[0.25, 0.75], report=events.append
    )
    assert content_hash(merged) == content_hash(soupkit.open_checkpoint(str(tmp_path / "cli")))
    assert any(isinstance(event, Wrote) for event in events)
    assert soupkit.Manifest.read(tmp_path / "api").command == "merge weighted"


def test_merge_refuses_what_the_command_refuses(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no method 'unifrom'") as caught:
        soupkit.merge(runs, tmp_path / "out", method="unifrom")
    assert "uniform" in str(caught.value.hint)
    with pytest.raises(RecipeError, match="unknown key 'dtyp'"):
        soupkit.merge(runs, tmp_path / "out", dtyp="float32")
    with pytest.raises(ReferenceError):
        soupkit.merge([tmp_path / "none"], tmp_path / "out")
    soupkit.merge(runs, tmp_path / "out")
    with pytest.raises(OutputError, match="exists already"):
        soupkit.merge(runs, tmp_path / "out")
    soupkit.merge(runs, tmp_path / "out", overwrite=True)


def test_merge_can_be_called_before_and_after_the_package_is_imported(
    runs: list[Path], tmp_path: Path
) -> None:
    code = (
        "import sys, soupkit\n"
        "assert 'numpy' not in sys.modules\n"
        f"soupkit.merge({[str(run) for run in runs]!r}, {str(tmp_path / 'first')!r})\n"
        "import soupkit.merge.mixture\n"
        f"soupkit.merge({[str(run) for run in runs]!r}, {str(tmp_path / 'second')!r})\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "second/model.safetensors").read_bytes() == (
        tmp_path / "first/model.safetensors"
    ).read_bytes()


def test_run_takes_any_recipe(runs: list[Path]) -> None:
    found = soupkit.run(Inspect(refs=(str(runs[0]),)))
    assert found["checkpoints"][0]["parameters"] == 65
    with pytest.raises(RecipeError, match="is the recipe of no command"):
        soupkit.run("merge uniform")


@pytest.mark.parametrize("source", ["references", "checkpoints", "dicts"])
def test_combine(runs: list[Path], tmp_path: Path, source: str) -> None:
    kinds: dict[str, Callable[[int], Any]] = {
        "references": lambda k: runs[k],
        "checkpoints": lambda k: soupkit.open_checkpoint(str(runs[k])),
        "dicts": lambda k: weights(k),
    }
    mixture = soupkit.Mixture(("a", "b"), np.array([[1.0], [1.0]]), 2.0)
    found = soupkit.combine([kinds[source](0), kinds[source](1)], mixture)
    expected = (weights(0)["w"].astype(np.float64) + weights(1)["w"]) / 2
    np.testing.assert_array_equal(found["w"], expected.astype(np.float32))
    assert found["w"].dtype == np.float32
    assert int(found["n"]) == 1
    merged = soupkit.merge(runs[:2], tmp_path / "out")
    np.testing.assert_array_equal(found["w"], merged["w"])


def test_combine_gives_tied_tensors_under_both_names(tmp_path: Path) -> None:
    (tmp_path / "tied").mkdir()
    write_tensors(tmp_path / "tied", {"a": TARGET}, metadata={"b": "a"})
    found = soupkit.combine([tmp_path / "tied"], soupkit.Mixture(("x",), np.array([[2.0]])))
    np.testing.assert_array_equal(found["a"], 2 * TARGET)
    np.testing.assert_array_equal(found["b"], 2 * TARGET)


def reference_greedy(models: list[dict[str, np.ndarray]]) -> list[int]:
    """Recipe 1 of the paper in a few lines of numpy."""
    order = sorted(range(len(models)), key=lambda k: -closeness(models[k]))
    picks = [order[0]]
    best = closeness(models[order[0]])
    for k in order[1:]:
        mean = np.mean([models[i]["w"].astype(np.float64) for i in [*picks, k]], axis=0).astype(np.float32)
        if closeness({"w": mean}) >= best:
            picks, best = [*picks, k], closeness({"w": mean})
    return picks


@pytest.mark.parametrize("source", ["references", "dicts"])
def test_greedy_with_a_score_of_ones_own(runs: list[Path], source: str) -> None:
    models = [weights(seed, 3.0 if seed == 4 else 0.3) for seed in range(5)]
    calls: list[set[str]] = []
    events: list[Event] = []

    def score(tensors: Mapping[str, np.ndarray]) -> float:
        calls.append(set(tensors))
        return closeness(tensors)

    found = soupkit.soups.greedy(runs if source == "references" else models, score, report=events.append)
    assert list(found.picks) == reference_greedy(models)
    assert 1 < len(found.picks) < 5
    assert len(calls) == 5 + 4
    assert calls[0] == {"w", "n"}
    assert found.score == closeness(found.tensors())
    assert found.singles == tuple(closeness(model) for model in models)
    assert any(isinstance(event, Scored) for event in events)
    worst = soupkit.soups.greedy(models, lambda tensors: -closeness(tensors), direction="min")
    assert worst.picks == found.picks


def test_a_soup_can_be_saved_verified_and_made_again(runs: list[Path], tmp_path: Path) -> None:
    found = soupkit.soups.greedy(runs, closeness)
    saved = found.save(tmp_path / "soup")
    np.testing.assert_array_equal(saved["w"], found.tensors()["w"])
    assert (tmp_path / "soup/config.json").exists()
    assert run_command_line(["verify", str(tmp_path / "soup"), "--inputs", "--quiet"]) == 0
    assert (
        run_command_line(["reproduce", str(tmp_path / "soup"), "--out", str(tmp_path / "again"), "--quiet"])
        == 0
    )
    with pytest.raises(OutputError, match="exists already"):
        found.save(tmp_path / "soup")
    found.save(tmp_path / "soup", overwrite=True)


def test_a_soup_of_dicts_can_be_saved(tmp_path: Path) -> None:
    found = soupkit.soups.greedy([weights(0), weights(1)], closeness)
    saved = found.save(tmp_path / "soup")
    np.testing.assert_array_equal(saved["w"], found.tensors()["w"])
    assert run_command_line(["verify", str(tmp_path / "soup"), "--quiet"]) == 0


def test_names_are_there_and_nothing_heavy_is() -> None:
    code = (
        "import soupkit, sys; print(sorted({'numpy', 'torch', 'huggingface_hub', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    for name in soupkit.__all__:
        assert getattr(soupkit, name) is not None
        assert name in dir(soupkit)
    with pytest.raises(AttributeError, match="no attribute 'mrge'"):
        soupkit.mrge  # noqa: B018


PYTHON_BLOCKS = re.findall(
    r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
)


@pytest.mark.parametrize("code", PYTHON_BLOCKS, ids=range(len(PYTHON_BLOCKS)))
def test_the_examples_of_the_readme_run(code: str, runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """They speak of runs/a to runs/e and of a function `my_accuracy`."""
    monkeypatch.chdir(runs[0].parents[1])
    exec(compile(code, "README.md", "exec"), {"my_accuracy": closeness})
