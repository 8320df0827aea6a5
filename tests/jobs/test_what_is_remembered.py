"""Remembered scores, predictions, points and steps are of what is there now; a cache that fails stops
nothing."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from soupkit.checkpoint.tensors import write_tensors
from soupkit.cli.app import run_command_line
from soupkit.events import Told, silent
from soupkit.jobs.recipes.run import run
from soupkit.jobs.soups.greedy import merge_greedy
from soupkit.recipe.merge import MergeGreedy
from soupkit.recipe.run import Run
from soupkit.task.images import models
from soupkit.world import ALONE, cache_folder

SCORER = """
import struct, sys
print(sys.argv[1], file=open("calls.log", "a"))
weights = open(sys.argv[1] + "/model.safetensors", "rb").read()
value = struct.unpack("<f" if b'"F32"' in weights else "<e", weights[-4:] if b'"F32"' in weights else
weights[-2:])[0]
print({})
"""
COMMAND = f"{sys.executable} -S score.py {{checkpoint}}"


def scorer(expression: str) -> None:
    Path("score.py").write_text(SCORER.format(expression))


@pytest.fixture
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Checkpoints m1, m2, m4 of one number each, and a scorer that wants it large."""
    monkeypatch.chdir(tmp_path)
    for number in (1, 2, 4):
        Path(f"m{number}").mkdir()
        write_tensors(Path(f"m{number}"), {"w": np.full(8, number, np.float32)})
    scorer("value")
    return tmp_path


SCORER_OF_TABLES = """
import json, struct, sys
data = open(sys.argv[1] + "/model.safetensors", "rb").read()
start = 8 + int.from_bytes(data[:8], "little")
place = {name: start + entry["data_offsets"][0] for name, entry in json.loads(data[8:start]).items() if name
in "wt"}
print(10 * (struct.unpack_from("<f", data, place["w"])[0] == 0.5) + struct.unpack_from("<q", data,
place["t"])[0])
"""


def test_integers_of_the_first_make_another_soup_in_another_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("score.py").write_text(SCORER_OF_TABLES)
    for name, number in (("a", 0), ("b", 1)):
        Path(name).mkdir()
        tensors = {"w": np.full(4, number, np.float32), "t": np.full((2, 2), number)}
        write_tensors(Path(name), tensors)
    scores = []
    for refs in (("a", "b"), ("b", "a")):
        recipe = MergeGreedy(
            refs=refs,
            metric="score",
            direction="max",
            score_command=COMMAND,
            integers="first",
            out=Path("-".join(refs)),
        )
        found = merge_greedy(recipe, ALONE, silent)
        assert found["notes"]["held_out_of_soup"]["value"] == found["metrics"]["held_out"]["score"]["value"]
        scores.append(found["notes"]["held_out_of_soup"]["value"])
    assert scores == [10, 11]  # the table is the first's


def calls() -> int:
    log = Path("calls.log")
    num = len(log.read_text().splitlines()) if log.exists() else 0
    log.unlink(missing_ok=True)
    return num


def picks(**options: Any) -> tuple[list[str], float]:
    recipe = MergeGreedy(
        refs=("m1", "m2", "m4"), metric="score", direction="max", score_command=COMMAND, overwrite=True,
        out=Path("out"), **options,
    )  # fmt: skip
    notes = merge_greedy(recipe, ALONE, silent)["notes"]
    return notes["picks"], notes["held_out_of_soup"]["value"]


def test_an_edited_scorer_and_another_folder_get_scores_of_their_own(three: Path) -> None:
    assert picks() == (["m4"], 4.0)
    assert calls() == 3 + 2 + 1
    assert picks() == (["m4"], 4.0)
    assert calls() == 1  # what is written is always scored
    scorer("-abs(1.4 - value)")
    assert picks()[0] == ["m1", "m2"]
    assert calls() == 6
    (three / "B").mkdir()
    for name in ("m1", "m2", "m4"):
        shutil.copytree(name, f"B/{name}")
    os.chdir("B")
    scorer("-value")
    assert picks() == (["m1"], -1.0)


def test_what_lies_beside_equal_weights_counts(three: Path) -> None:
    scorer("value * eval(open(sys.argv[1] + '/config.json').read())['factor']")
    for number in (1, 2, 4):
        Path(f"m{number}/config.json").write_text('{"factor": 1}')
    assert picks() == (["m4"], 4.0)
    Path("m1/config.json").write_text('{"factor": 10}')
    assert picks()[0][0] == "m1"
    Path("m1/config.json").write_text('{"factor": -1}')
    assert picks()[1] == 4.0


def test_other_ways_to_make_soups_are_other_scores(three: Path) -> None:
    picks()
    calls()
    for options in ({"dtype": "float16"}, {"accumulate": "float32"}, {"integers": "error"}):
        picks(**options)
        assert calls() == 6, options


def test_no_cache_and_fresh_scores(three: Path) -> None:
    picks(cache=False)
    assert not (cache_folder() / "scores").exists()
    picks()
    calls()
    for options in ({"fresh_scores": True}, {"cache": False}):
        picks(**options)
        assert calls() == 6
    picks()
    assert calls() == 1


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[:-9], lambda b: b"x" * 99], ids=["empty", "cut", "x"]
)
def test_damaged_scores_are_scored_again(three: Path, damage: Callable[[bytes], bytes]) -> None:
    first = picks()
    for path in (cache_folder() / "scores").iterdir():
        path.write_bytes(damage(path.read_bytes()))
    assert picks() == first


def go(text: str, **options: Any) -> list[str]:
    Path("r.yaml").write_text(text)
    told: list[str] = []
    run(
        Run(file=Path("r.yaml"), **options),
        ALONE,
        lambda e: told.append(e.message) if isinstance(e, Told) else None,
    )
    return [message for message in told if message.startswith("step")]


GREEDY = f"""
steps:
  g: {{command: merge greedy, refs: [m1, m2, m4], metric: score, direction: max, score_command: "{COMMAND}",
  out: g}}
"""


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda: scorer("-value"), "score_command"),
        (lambda: Path("helper.py").write_text("x = 1"), "score_command"),
        (lambda: Path("m1/config.json").write_text('{"factor": 2}'), "beside the weights of m1"),
    ],
    ids=["scorer", "helper", "config"],
)
def test_a_step_is_unchanged_only_with_what_it_read(
    three: Path, change: Callable[[], object], why: str
) -> None:
    go(GREEDY)
    assert "complete and unchanged" in go(GREEDY)[0]
    change()
    assert why in go(GREEDY)[0]
    assert "complete and unchanged" in go(GREEDY)[0]


def test_force_scores_anew(three: Path) -> None:
    go(GREEDY)
    calls()
    assert "forced" in go(GREEDY, force=True)[0]
    assert calls() == 6


def test_the_cache_command(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*arguments: str) -> dict[str, Any]:
        assert run_command_line(["cache", *arguments, "--json", "--quiet"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    picks()
    capsys.readouterr()
    found = shown()
    assert found["folder"] == str(cache_folder())
    assert (found["kinds"]["scores"]["files"], found["kinds"]["points"]["files"]) == (5, 0)
    assert shown("--clear", "--kind", "points")["cleared"]
    assert not shown("--clear", "--dry-run")["cleared"]
    assert shown()["kinds"] == found["kinds"]
    shown("--clear")
    assert shown()["kinds"]["scores"] == {"files": 0, "bytes": 0}
    assert run_command_line(["cache", "--dry-run"]) == 2


DATA = {"data": "imgs", "num_held_out": 8, "num_test": 8, "device": "cpu"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small image models, randomly initialised."""
    root = tmp_path_factory.mktemp("models")
    spec = models.parse_model("timm:test_resnet,num_classes=2,img_size=16,in_chans=3")
    for number in range(3):
        torch.manual_seed(number)
        model = models.build(spec)
        (root / f"m{number}").mkdir()
        save_file(model.state_dict(), root / f"m{number}/model.safetensors")
        models.write_config(spec, model, root / f"m{number}", class_names=["a", "b"])
    return root


def render(seed: int) -> None:
    """The same names, always; other pixels with another seed."""
    random = np.random.default_rng(seed)
    for name in "ab":
        Path("imgs", name).mkdir(parents=True, exist_ok=True)
        for number in range(12):
            pixels = random.integers(0, 60 * (seed + 1), (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(f"imgs/{name}/{number:02d}.png")


@pytest.fixture
def images(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    monkeypatch.chdir(tmp_path)
    for plot in ("plane_plot", "path_plot"):  # nothing here looks at them
        monkeypatch.setattr(
            f"soupkit.report.curves.{plot}", lambda path, *_values, **_options: path.write_bytes(b"")
        )
    render(0)
    return tuple(str(built / f"m{number}") for number in range(3))


def scored(command: str, refs: tuple[str, ...], **options: Any) -> Any:
    """The metrics, and the singles' where there are, of a command run as `run` runs it."""
    from soupkit.commands import COMMANDS
    from soupkit.recipe.parse import parse_recipe

    command_ = COMMANDS[command]
    values = {"refs": list(refs), "out": "o", "overwrite": True, **DATA, **options}
    found = command_.run(parse_recipe(command_.recipe_type(), values, where="test"), ALONE, silent)
    return found["metrics"], found["notes"].get("singles")


COMMANDS_THAT_REMEMBER: list[tuple[str, int, dict[str, Any]]] = [
    ("merge greedy", 2, {"metric": "nll"}),
    ("merge evolve", 2, {"metric": "nll", "evaluations": 7, "population": 2}),
    ("ensemble", 2, {}),
    ("plane", 3, {"num_points": 2, "jobs": 1, "train": False, "bn": "average"}),
    ("chain", 2, {"num_points": 2, "jobs": 1, "train": False, "bn": "average"}),
]


@pytest.mark.parametrize(("command", "num", "options"), COMMANDS_THAT_REMEMBER)
def test_other_pixels_under_the_same_names(
    images: tuple[str, ...], command: str, num: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = scored(command, images[:num], **options)
    render(3)
    second = scored(command, images[:num], **options)
    monkeypatch.setenv("SOUPKIT_CACHE", str(Path("fresh").absolute()))
    assert second == scored(command, images[:num], **options)
    assert second != first


@pytest.mark.parametrize(("command", "num", "options"), COMMANDS_THAT_REMEMBER)
def test_a_cache_that_cannot_be_written_stops_nothing(
    images: tuple[str, ...], command: str, num: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = scored(command, images[:num], cache=False, **options)
    assert not cache_folder().exists()
    monkeypatch.setenv("SOUPKIT_CACHE", "/dev/null")
    assert scored(command, images[:num], **options) == first


def test_a_step_whose_data_changed_runs_again(images: tuple[str, ...]) -> None:
    refs = json.dumps(images[:2])
    text = (
        f"steps: {{g: {{command: merge greedy, refs: {refs}, metric: nll, out: g, data: imgs, "
        f"num_held_out: 8}}}}"
    )
    go(text)
    assert "complete and unchanged" in go(text)[0]
    render(3)
    assert "the content of data: changed" in go(text)[0]
