"""`soupkit align groups`: names, checkpoints, export and import, pins, and what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from align.traced import traced_once
from task.small import FEW_WORDS

from soupkit.cli.app import run_command_line
from soupkit.errors import AlignError, RecipeError, TaskError
from soupkit.events import Event, Table, Told
from soupkit.jobs.align import groups as align_groups_module
from soupkit.jobs.align.groups import align_groups
from soupkit.recipe.align_groups import AlignGroups
from soupkit.task.images.models import ModelSpec, arrays, build, parse_model, write_config
from soupkit.world import World

MODEL = "timm:test_resnet,img_size=32"


def run(name: str, **options: Any) -> tuple[dict[str, Any], list[Event]]:
    events: list[Event] = []
    return align_groups(AlignGroups(name=name, **options), World("cpu", 1), events.append), events


@pytest.fixture
def graphs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what is done with groups: the same network is not traced again."""
    monkeypatch.setattr(align_groups_module, "permutations_of", traced_once)


def tables(events: list[Event]) -> dict[str, Table]:
    return {event.title: event for event in events if isinstance(event, Table)}


def told(events: list[Event]) -> str:
    return "\n".join(event.message for event in events if isinstance(event, Told))


def test_groups_and_pinned_axes_are_shown_with_their_reasons() -> None:
    result, events = run(MODEL)
    shown = tables(events)
    assert len(shown["groups"].rows) == len(result["spec"]["groups"]) == 11
    reasons = {row[0] for row in shown["pinned axes"].rows}
    assert {"input of the network", "output of the network"} <= reasons
    assert result["verification"]["errors"]["randomised"] < 1e-12
    assert "11 groups" in told(events)
    assert "relative error" in told(events)
    assert result["share"] > 0.99


@pytest.mark.usefixtures("graphs_once")
def test_every_axis_is_listed_as_free_or_pinned() -> None:
    _, events = run(MODEL, tensors=True, verify=False)
    rows = {(row[0], row[1]): row for row in tables(events)["axes"].rows}
    weight = build(parse_model(MODEL)).state_dict()["layer1.0.conv1.weight"]
    assert [rows["layer1.0.conv1.weight", axis][2] for axis in range(4)] == list(weight.shape)
    assert rows["layer1.0.conv1.weight", 0][3] == "layer1.0.conv1.weight:0"
    assert rows["layer1.0.conv1.weight", 2][4].startswith("neighbours in conv2d")
    assert all(row[3] or row[4] or row[2] == 1 for row in rows.values())


def test_a_checkpoint_is_read_with_its_own_weights(save: Callable[..., Path]) -> None:
    spec = parse_model(MODEL)
    torch.manual_seed(3)
    model = build(spec)
    directory = save("checkpoint", arrays(model))
    write_config(spec, model, directory)
    result, _ = run(str(directory))
    assert result["spec"] == run(MODEL)[0]["spec"]
    bare = save("bare", arrays(model))
    with pytest.raises(TaskError, match="does not say what model"):
        run(str(bare))
    assert run(str(bare), model=MODEL, verify=False)[0]["spec"] == result["spec"]
    with pytest.raises(TaskError, match="not this model's"):
        run(str(bare), model="timm:test_vit")


@pytest.mark.usefixtures("graphs_once")
def test_export_and_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["align", "groups", MODEL, "--json", "--no-verify"]) == 0
    path = tmp_path / "groups.json"
    path.write_text(capsys.readouterr().out)
    read, _ = run(MODEL, groups=path)
    assert read["spec"] == json.loads(path.read_text())["spec"]
    assert read["verification"]["culprits"] == []
    with pytest.raises(AlignError, match="in the network"):
        run("timm:test_vit", groups=path)


@pytest.mark.usefixtures("graphs_once")
def test_imported_groups_that_are_wrong_are_found(tmp_path: Path) -> None:
    exported = run(MODEL, verify=False)[0]["spec"]
    del exported["axes"]["layer1.0.bn1.weight"]
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(exported))
    result, events = run(MODEL, groups=path)
    assert result["verification"]["culprits"] == ["layer1.0.conv1.weight:0"]
    assert any("please report" in getattr(event, "message", "") for event in events)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', "3", "{"])
def test_files_that_hold_no_groups_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "groups.json"
    path.write_text(text)
    with pytest.raises(AlignError):
        run(MODEL, groups=path)


@pytest.mark.usefixtures("graphs_once")
def test_pins() -> None:
    result, events = run(MODEL, pin=("layer1*",), verify=False)
    names = {group["name"] for group in result["spec"]["groups"]}
    assert not any(name.startswith("layer1") for name in names)
    assert "pinned by --pin" in {row[0] for row in tables(events)["pinned axes"].rows}
    with pytest.raises(AlignError, match="names no group"):
        run(MODEL, pin=("nothing",), verify=False)


def test_both_towers_of_a_clip_model() -> None:
    from soupkit.align.graph.trace import permutation_spec
    from soupkit.align.graph.verify import verify
    from soupkit.stages.alignment.examples import example_inputs

    spec = ModelSpec("open_clip", "small", {}, FEW_WORDS)
    model = build(spec)
    inputs = example_inputs(model, spec)
    checked = verify(model, permutation_spec(model, inputs), inputs, num_controls=40)
    assert max(checked.errors.values()) < 1e-10
    assert not checked.culprits
    groups = checked.spec.groups.values()
    for tower in ("visual", "transformer"):
        kinds = {(group.kind, group.inside is not None) for group in groups if group.name.startswith(tower)}
        assert {("blocks", False), ("units", True), ("units", False)} <= kinds
    assert min(checked.controls.values()) > 1e-9


def test_negative_numbers_are_refused() -> None:
    with pytest.raises(RecipeError, match="controls"):
        AlignGroups(name=MODEL, controls=-1)
