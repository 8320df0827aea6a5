"""Whoever chooses or reports says that checkpoints were fitted to the examples; soups know what went into
them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from soupkit.checkpoint.seen import MOST, carried, seen_by, seen_of
from soupkit.cli.app import run_command_line
from soupkit.errors import TaskError
from soupkit.events import Event, Warned
from soupkit.manifest import Manifest
from soupkit.recipe.evaluate import Evaluate
from soupkit.stages.inputs.seen import check_seen
from soupkit.task.images.data import Splits, open_data


def recipe(data: object = "digits", **options: Any) -> Evaluate:
    return Evaluate(refs=("x",), data=str(data), **options)


class Made:
    """A checkpoint as far as its manifest goes."""

    def __init__(self, directory: Path) -> None:
        self.files, self.reference = (directory / "model.safetensors",), directory.name


def made(directory: Path, then: Splits, *, how: str = "trained", split: str = "train") -> Made:
    directory.mkdir(exist_ok=True)
    command, notes = ("finetune", {"data": then.description}) if how == "trained" else ("merge greedy", {})
    if how != "trained":
        notes = {f"{how}_on": {"split": split, "data": then.description}}
    Manifest(command=command, recipe={}, notes=notes).write(directory)
    return Made(directory)


def warned(checkpoints: Any, now: Evaluate, *roles: Any, **options: Any) -> list[str]:
    events: list[Event] = []
    check_seen(checkpoints, open_data(now), now, events.append, *roles, **options)
    return [event.message for event in events if isinstance(event, Warned)]


def common(then: Splits, now: Splits, split: Any, role: Any) -> int:
    return len(np.intersect1d(then.part(split).indices, now.part(role).indices))


@pytest.mark.parametrize(
    ("how", "split"), [("trained", "train"), ("selected", "held_out"), ("learned", "train")]
)
def test_counts_are_of_the_examples_themselves(tmp_path: Path, how: str, split: str) -> None:
    then, now = open_data(recipe(num_train=400)), recipe(num_train=300, num_held_out=200, split_seed=1)
    run = made(tmp_path / "run", then, how=how, split=split)
    held_out, test = (common(then, open_data(now), split, role) for role in ("held_out", "test"))
    assert held_out > 0 < test
    first, second = warned([run], now)
    assert f"run was {how} on {held_out} of the 200 held-out examples: its split had seed 0" in first
    assert f"run was {how} on {test} of the 797 test examples" in second
    with pytest.raises(TaskError, match=f"{how} on {held_out} of the 200") as caught:
        warned([run], recipe(num_train=300, num_held_out=200, split_seed=1, strict_data=True))
    assert "--strict-data" in (caught.value.hint or "")


def test_the_same_division_is_clean_and_other_data_are_other_data(tmp_path: Path) -> None:
    run = made(tmp_path / "run", open_data(recipe(num_train=400)))
    assert warned([run], recipe()) == warned([run], recipe("glyphs")) == []
    chosen = made(tmp_path / "soup", open_data(recipe()), how="selected", split="held_out")
    assert warned([chosen], recipe(), selects=False) == []
    assert "selected on 100 of the 100 held-out examples" in " ".join(warned([chosen], recipe()))


def test_many_checkpoints_make_one_line(tmp_path: Path) -> None:
    runs = [made(tmp_path / f"r{k}", open_data(recipe(num_train=400))) for k in range(5)]
    [line] = warned(runs, recipe(split_seed=1), "test")
    assert line.startswith("r0, r1, r2 and 2 more were trained on ")


def images(root: Path, num: int, first: int = 0) -> Path:
    """Images of two classes, each another grey."""
    for k in range(first, first + num):
        path = root / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((2, 2), k, np.uint8)).save(path)
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """30 images of two classes."""
    return images(tmp_path / "flowers", 30)


@pytest.mark.parametrize("name", ["same", "link", "relative", "files", "hard", "moved"])
def test_a_folder_is_the_same_under_every_name(
    folder: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    then = open_data(recipe(folder))
    run = made(tmp_path / "run", then)
    other = tmp_path / "other"
    if name == "link":
        other.symlink_to(folder)
    elif name in ("files", "hard"):
        copy = os.symlink if name == "files" else os.link
        shutil.copytree(folder, other, copy_function=copy)
    elif name == "moved":
        folder.rename(other)
    elif name == "relative":
        monkeypatch.chdir(tmp_path)
        other = Path("flowers")
    else:
        other = folder
    now = recipe(other, split_seed=3)
    number = common(then, open_data(now), "train", "test")
    assert number > 0
    assert f"trained on {number} of the 6 test examples" in " ".join(warned([run], now))


@pytest.mark.parametrize("how", ["whole", "divided", "other images"])
def test_a_copy_of_a_folder_is_known_by_its_bytes(folder: Path, tmp_path: Path, how: str) -> None:
    """The original is still there. Other images under the same names and of the same size are others."""
    then, new = open_data(recipe(folder)), tmp_path / "copy"
    run = made(tmp_path / "run", then)
    if how == "divided":
        for k, path in enumerate(sorted(folder.rglob("*.png"))):
            place = new / ("test" if k % 3 == 0 else "train") / path.parent.name / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
    else:
        shutil.copytree(folder, new)
    if how == "other images":
        for k, path in enumerate(new.rglob("*.png")):
            Image.fromarray(np.full((2, 2), 200 + k, np.uint8)).save(path)
    now = recipe(new, split_seed=3)
    trained, tested = (
        {Path(part.pool.paths[i]).name for i in part.indices} for part in (then.train, open_data(now).test)
    )
    number = 0 if how == "other images" else len(trained & tested)
    assert (f"trained on {number} of the" in " ".join(warned([run], now, "test"))) == (number > 0)
    assert number == 0 or 0 < number < len(tested)


def test_weights_that_are_links_were_trained_where_they_lie(tmp_path: Path) -> None:
    run = made(tmp_path / "run", open_data(recipe(num_train=400)))
    run.files[0].touch()
    for name in ("linked", "copied"):
        (tmp_path / name).mkdir()
    linked, copied = (Made(tmp_path / name) for name in ("linked", "copied"))
    linked.files[0].symlink_to(run.files[0])
    copied.files[0].touch()
    assert "linked was trained on" in " ".join(warned([linked], recipe(split_seed=1)))
    assert warned([copied], recipe(split_seed=1)) == []
    assert carried([copied, linked]) == [[], seen_by(tmp_path / "run")]


def test_every_folder_of_a_source_is_asked(tmp_path: Path) -> None:
    """A view of a base and an adapter: each was fitted to data of its own."""
    parts = [
        made(tmp_path / name, open_data(recipe(num_train=n))) for name, n in (("base", 400), ("lora", 300))
    ]
    view = Made(tmp_path / "base")
    view.files = tuple(part.files[0] for part in parts)
    assert [entry["data"]["sizes"]["train"] for entry in seen_of(view)] == [400, 300]


def test_a_part_of_a_folder_is_known_by_its_files(folder: Path, tmp_path: Path) -> None:
    """Trained on DIR/train, tested on what lies in DIR/train by now called a test folder."""
    images(tmp_path / "new" / "train", 10, first=100)
    (tmp_path / "new" / "test").symlink_to(folder)
    run = made(tmp_path / "run", open_data(recipe(folder)))
    assert "trained on 22 of the 30 test examples" in " ".join(warned([run], recipe(tmp_path / "new")))


def test_a_soup_of_soups_knows_it_all_once_and_within_bounds(tmp_path: Path) -> None:
    runs = [made(tmp_path / f"r{k}", open_data(recipe(num_train=400, split_seed=k % 2))) for k in range(4)]
    brought = carried(runs)
    assert [len(each) for each in brought] == [1, 1, 0, 0]
    soup = tmp_path / "soup"
    soup.mkdir()
    inputs = [{"reference": f"r{k}", **({"seen": each} if each else {})} for k, each in enumerate(brought)]
    Manifest(command="merge uniform", recipe={}, inputs=inputs).write(soup)
    seeds = [entry["data"]["split_seed"] for entry in seen_by(soup)]
    assert seeds == [0, 1]
    now = recipe(split_seed=2)
    both = {int(i) for k in (0, 1) for i in open_data(recipe(num_train=400, split_seed=k)).train.indices}
    union = len(both & {int(i) for i in open_data(now).test.indices})
    assert f"soup was trained on {union} of the 797 test" in " ".join(warned([Made(soup)], now, "test"))
    many = [made(tmp_path / f"m{k}", open_data(recipe(num_train=100 + k))) for k in range(MOST + 3)]
    assert sum(map(len, carried(many))) == MOST


def test_a_merge_carries_it_and_a_damaged_record_is_no_reason_to_stop(
    save: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [save(name, {"w": np.ones(3, np.float32)}) for name in "ab"]
    made(paths[0], open_data(recipe(num_train=400)))
    Manifest(
        command="finetune", recipe={}, notes={"data": {"data": 3}}, inputs=[{"reference": "x", "seen": 7}]
    ).write(paths[1])
    commands = [
        ("uniform", *paths),
        ("slerp", *paths, "--t", "0.5"),
        ("task-arithmetic", paths[0], "--base", paths[1]),
    ]
    for command, *refs in commands:
        out = tmp_path / command
        code = run_command_line(
            [str(word) for word in ("merge", command, *refs, "--out", out, "--json", "--quiet")]
        )
        assert code == 0, capsys.readouterr().err
        written = json.loads((out / "soupkit.json").read_text())
        assert [entry["how"] for entry in seen_by(out)] == ["trained"], written["inputs"]


@pytest.mark.parametrize(("seeds", "known"), [((0, 0), True), ((0, 1), False), ((0, None), False)])
def test_the_best_by_what_manifests_record_are_selected_on_those_examples(
    save: Any, tmp_path: Path, seeds: tuple[int | None, ...], known: bool
) -> None:
    for k, seed in enumerate(seeds):
        data = {} if seed is None else {"data": open_data(recipe(num_train=400, split_seed=seed)).description}
        metrics = {"held_out": {"top1": {"value": 0.5 + k / 10}}}
        made_of = {"command": "finetune", "recipe": {}, "notes": data, "metrics": metrics}
        Manifest(**made_of).write(save(f"m{k}", {"w": np.ones(3, np.float32) * k}))
    out = tmp_path / "out"
    words = [
        "merge",
        "uniform",
        str(tmp_path / "m*"),
        "--top",
        "1",
        "--by",
        "held_out.top1",
        "--out",
        str(out),
        "--quiet",
    ]
    assert run_command_line(words) == 0
    assert ("selected" in [entry["how"] for entry in seen_by(out)]) == known
    if known:
        now = recipe(split_seed=2)
        number = common(open_data(recipe(num_train=400)), open_data(now), "held_out", "test")
        assert f"selected on {number} of the 797 test" in " ".join(warned([Made(out)], now))
