"""What training writes beside its last weights: averages, snapshots, linear probes, curves."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.optim
import torch
from safetensors import safe_open
from torch import nn
from torch.optim.swa_utils import SWALR
from train.small import finetune_recipe, sweep_recipe

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.reference import open_references
from soupkit.checkpoint.seen import seen_by
from soupkit.errors import RecipeError, ReferenceError
from soupkit.events import Event, Scored, silent
from soupkit.jobs.merge.averages import merge_swa
from soupkit.jobs.training.finetune import finetune
from soupkit.jobs.training.sweep import finetune_sweep
from soupkit.manifest import Manifest
from soupkit.merge.running import Ema, Swa, coefficients
from soupkit.recipe.averages import MergeSwa
from soupkit.train.optimize import SwaSchedule, build_schedule
from soupkit.world import World

WORLD = World("cpu", threads=1)
EPOCHS, PER_EPOCH = 4, 3


def recipe_of(base: Path, out: Path, **values: Any) -> Any:
    defaults = {"base": str(base), "model": None, "num_train": 96, "epochs": EPOCHS, "device": "cpu"}
    return finetune_recipe(out=out, **(defaults | values))


@pytest.fixture(scope="module")
def averaged(
    sweep_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], list[Event]]:
    """One run with every average and a snapshot of every epoch."""
    out, events = tmp_path_factory.mktemp("averaged") / "run", list[Event]()
    recipe = recipe_of(
        sweep_base, out, ema_decay=0.8, ema_every=PER_EPOCH, ema_start=PER_EPOCH - 1, swa_start=0.5,
        posthoc_sigma=(0.1, 0.2), posthoc_every=2, snapshot_every=1, average_buffers="average",
    )  # fmt: skip
    return out, finetune(recipe, WORLD, events.append), events


def test_averages_are_those_of_the_snapshots(averaged: tuple[Path, dict[str, Any], list[Event]]) -> None:
    """With one averaging at the end of each epoch, the snapshots of epochs are all that an average saw."""
    out, _, _ = averaged
    snapshots = open_references([str(out / "snapshots")])
    assert [Path(each.reference).name for each in snapshots] == [
        f"epoch-{epoch:04d}" for epoch in range(1, 5)
    ]
    for name, rule in (("ema", Ema(0.8)), ("swa", Swa(start=2))):
        average, column = Checkpoint(out / name), coefficients(rule, EPOCHS)
        assert list(average.specs) == list(snapshots[0].specs)
        for tensor in average:
            if average[tensor].dtype == np.float32:
                wanted = sum(c * each[tensor].astype(np.float64) for c, each in zip(column, snapshots))
                np.testing.assert_allclose(average[tensor], wanted, rtol=0, atol=2e-6)
            else:
                assert average[tensor] == snapshots[-1][tensor]
    assert content_hash(snapshots[-1]) == content_hash(Checkpoint(out))


def test_whatever_a_run_writes_knows_what_it_was_trained_on(
    averaged: tuple[Path, dict[str, Any], list[Event]], tmp_path: Path
) -> None:
    """Soups are made of snapshots and averages, and they may be copied out of their run."""
    out, manifest, _ = averaged
    places = [path.parent for path in out.rglob("*.safetensors")]
    assert len(places) == 1 + EPOCHS + 2 * EPOCHS // 2 + 2
    for number, place in enumerate(places):
        shutil.copytree(place, tmp_path / str(number))
        assert [(entry["how"], entry["data"]) for entry in seen_by(tmp_path / str(number))][:1] == [
            ("trained", manifest["notes"]["data"])
        ], place


def test_neither_can_be_taken_for_the_other(averaged: tuple[Path, dict[str, Any], list[Event]]) -> None:
    out, result, events = averaged
    for name in ("ema", "swa"):
        with safe_open(out / name / "model.safetensors", "numpy") as file:
            assert file.metadata()["soupkit.weights"] == name
        manifest = Manifest.read(out / name)
        assert manifest.notes["average"] == name
        assert result["notes"]["averages"][name] == manifest.metrics
        assert manifest.metrics["held_out"]["top1"]["num_examples"] == 100
        assert (
            manifest.outputs["content"]
            == content_hash(Checkpoint(out / name))
            != result["outputs"]["content"]
        )
    with safe_open(out / "model.safetensors", "numpy") as file:
        assert "soupkit.weights" not in file.metadata()
    notes = {event.note for event in events if isinstance(event, Scored)}
    assert notes == {"run", "run/ema", "run/swa"}
    assert [Path(each.reference).name for each in open_references([str(out)])] == ["run"]


def test_averaging_leaves_training_alone(
    averaged: tuple[Path, dict[str, Any], list[Event]], sweep_base: Path, tmp_path: Path
) -> None:
    out, result, _ = averaged
    beside = finetune(
        recipe_of(sweep_base, tmp_path / "beside", ema_decay=0.8, ema_every=PER_EPOCH,
        ema_start=PER_EPOCH - 1,
                  average_async=True, average_device="cpu"), WORLD, silent,
    )  # fmt: skip
    assert beside["outputs"]["content"] == result["outputs"]["content"]
    assert content_hash(Checkpoint(tmp_path / "beside" / "ema")) == content_hash(Checkpoint(out / "ema"))
    plain = finetune(recipe_of(sweep_base, tmp_path / "plain"), WORLD, silent)
    assert plain["outputs"]["content"] == result["outputs"]["content"]
    assert sorted(path.name for path in (tmp_path / "plain").iterdir()) == [
        "config.json", "model.safetensors", "soupkit.json",
    ]  # fmt: skip
    base = (out / "ema" / Manifest.read(out / "ema").inputs[0]["path"]).resolve()
    assert base == sweep_base.resolve()


def test_snapshots_for_post_hoc_ema_say_what_they_are(
    averaged: tuple[Path, dict[str, Any], list[Event]],
) -> None:
    names = Manifest.read(averaged[0] / "posthoc").notes["members"]
    assert names == [f"sigma-{s}-update-{6 * k:08d}" for k in (1, 2) for s in (0.1, 0.2)]
    notes = [Manifest.read(averaged[0] / "posthoc" / name).notes["posthoc"] for name in names]
    assert [note["step"] for note in notes] == [6, 6, 12, 12]
    assert [note["sigma_rel"] for note in notes] == pytest.approx([0.1, 0.2, 0.1, 0.2])


def test_refreshed_statistics_are_written_and_are_those_of_merging_afterwards(
    sweep_base: Path, tmp_path: Path
) -> None:
    """SWA re-estimates batch norm; its weights are those of any other policy, and of `merge swa` over the
    snapshots."""
    data = {"data": "digits", "num_train": 96, "num_held_out": 100, "num_test": 100, "batch_size": 32}
    runs = {}
    for buffers in ("auto", "copy"):
        recipe = recipe_of(
            sweep_base, tmp_path / buffers, epochs=2, swa_start=0.0, snapshot_every=1, average_buffers=buffers
        )
        finetune(recipe, WORLD, silent)
        runs[buffers] = Checkpoint(tmp_path / buffers / "swa")
    last = Checkpoint(tmp_path / "copy")
    np.testing.assert_array_equal(runs["auto"]["fc.weight"], runs["copy"]["fc.weight"])
    np.testing.assert_array_equal(runs["copy"]["bn1.running_var"], last["bn1.running_var"])
    assert not np.allclose(runs["auto"]["bn1.running_var"], last["bn1.running_var"], rtol=1e-3)
    offline = MergeSwa(
        refs=(str(tmp_path / "auto" / "snapshots"),),
        out=tmp_path / "merged",
        bn="refresh",
        device="cpu",
        **data,
    )
    merge_swa(offline, WORLD, silent)
    merged = Checkpoint(tmp_path / "merged")
    for name in merged:
        if merged[name].dtype == np.float32:
            np.testing.assert_allclose(merged[name], runs["auto"][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"ema_gamma": 1.0}, "ema_decay is not given"),
        ({"swa_lr": 0.1}, "swa_start is not given"),
        ({"swa_start": 1.0}, "swa_start is 1.0"),
        ({"posthoc_sigma": (0.3,)}, "posthoc_sigma is 0.3"),
        ({"ema_decay": 0.9, "ema_start": 12}, "training has only 12"),
        ({"swa_start": 0.5, "swa_every": 7}, "training has only 12"),
        ({"snapshot_every": -1}, "snapshot_every is -1"),
    ],
)
def test_averages_that_cannot_be_are_refused_before_training(
    values: dict[str, Any], words: str, sweep_base: Path, tmp_path: Path
) -> None:
    events: list[Event] = []
    with pytest.raises(RecipeError, match=words):
        finetune(recipe_of(sweep_base, tmp_path / "run", **values), WORLD, events.append)
    assert events == []
    assert not (tmp_path / "run").exists()


class Fixed:
    """A schedule that decays by hand."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step_update(self, num_updates: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = 1.0 / (1 + num_updates) * group.get("lr_scale", 1.0)


def optimizer_of(*scales: float) -> torch.optim.Optimizer:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr_scale": scale, "lr": scale} for scale in scales]
    return torch.optim.SGD(groups, lr=1.0)


@pytest.mark.parametrize("anneal", [1, 4])
def test_the_rate_of_swa_is_torchs(anneal: int) -> None:
    optimizer, theirs = optimizer_of(1.0, 0.25), optimizer_of(1.0, 0.25)
    schedule = SwaSchedule(Fixed(optimizer), optimizer, start=5, anneal=anneal, lr=0.05)
    for step in range(1, 6):
        schedule.step_update(step)
        if step < 5:
            assert [group["lr"] for group in optimizer.param_groups] == [1 / (step + 1), 0.25 / (step + 1)]
    for group in theirs.param_groups:
        group["lr"] = group["lr_scale"] / 6
    torchs = SWALR(theirs, swa_lr=[0.05, 0.0125], anneal_epochs=anneal, anneal_strategy="cos")
    for step in range(5, 12):
        schedule.step_update(step)
        theirs.step()
        torchs.step()
        found, wanted = ([group["lr"] for group in each.param_groups] for each in (optimizer, theirs))
        assert found == pytest.approx(wanted, rel=1e-12)


def test_a_recipe_with_swa_lr_leaves_its_schedule_where_swa_starts() -> None:
    recipe = finetune_recipe(epochs=4, swa_start=0.5, swa_lr=2e-3, lr=1e-2, swa_anneal_epochs=1.0)
    model = nn.Linear(2, 2)
    ours, plain = (timm.optim.create_optimizer_v2(model, opt="adamw", lr=1e-2) for _ in range(2))
    sizes = {"num_updates": 12, "updates_per_epoch": 3}
    schedule = build_schedule(ours, recipe, **sizes)
    without = build_schedule(plain, replace(recipe, swa_start=None, swa_lr=None), **sizes)
    rates = []
    for step in range(12):
        rates.append((ours.param_groups[0]["lr"], plain.param_groups[0]["lr"]))
        schedule.step_update(step + 1)
        without.step_update(step + 1)
    assert all(mine == other for mine, other in rates[:6])
    start = rates[6][1]
    wanted = [start + (2e-3 - start) * share for share in (0.25, 0.75, 1, 1, 1, 1)]
    assert [mine for mine, _ in rates[6:]] == pytest.approx(wanted)


def test_a_linear_probe_moves_nothing_but_the_head(sweep_base: Path, tmp_path: Path) -> None:
    finetune(recipe_of(sweep_base, tmp_path / "probe", trainable="head", epochs=1), WORLD, silent)
    base, probe = Checkpoint(sweep_base), Checkpoint(tmp_path / "probe")
    assert {name for name in base if not np.array_equal(base[name], probe[name])} == {"fc.weight", "fc.bias"}


def test_an_adapter_is_no_base(sweep_base: Path, tmp_path: Path) -> None:
    """LoRA: what is averaged must be weights, so an adapter is merged into its base first."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").touch()
    with pytest.raises(ReferenceError, match="is a LoRA adapter") as caught:
        finetune_sweep(sweep_recipe(adapter, tmp_path / "sweep"), World("cpu"), silent)
    assert "merge the adapter" in str(caught.value.hint)
    assert not (tmp_path / "sweep").exists()


def test_every_run_of_lp_ft_starts_from_one_probe(sweep_base: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    recipe = sweep_recipe(sweep_base, out, num_runs=2, lp_epochs=2, ema_decay=0.9)
    result = finetune_sweep(recipe, World("cpu"), silent)
    probe = Manifest.read(out / "linear-probe")
    assert (probe.recipe["trainable"], probe.recipe["epochs"], probe.recipe["ema_decay"]) == ("head", 2, None)
    assert Manifest.read(out / "run-000").inputs[0]["content"] == probe.outputs["content"]
    assert [entry["content"] for entry in result["inputs"]] == [
        probe.inputs[0]["content"], probe.outputs["content"],
    ]  # fmt: skip
    assert [(out / entry["path"]).resolve() for entry in result["inputs"]] == [
        sweep_base.resolve(), (out / "linear-probe").resolve(),
    ]  # fmt: skip
    assert [Path(each.reference).name for each in open_references([str(out)])] == ["run-000", "run-001"]
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/model.safetensors")}
    finetune_sweep(recipe, World("cpu"), silent)
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/model.safetensors")} == before


def test_a_sweep_writes_its_leaderboard_plot_and_curves(sweep_base: Path, tmp_path: Path) -> None:
    import csv
    import json

    out = tmp_path / "sweep"
    recipe = sweep_recipe(
        sweep_base, out, num_runs=2, plots=True, ema_decay=0.9, tensorboard=tmp_path / "curves"
    )
    finetune_sweep(recipe, World("cpu"), silent)
    with (out / "leaderboard.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    rows = json.loads((out / "leaderboard.json").read_text())["rows"]
    assert [row["run"] for row in table] == [row["run"] for row in rows]
    scores = [row["held_out_top1"] for row in rows]
    assert scores == sorted(scores, reverse=True)
    for line, row in zip(table, rows):
        run = Manifest.read(out / row["run"])
        assert float(line["lr"]) == row["lr"] == run.recipe["lr"]
        assert row["test_top1"] == run.metrics["test"]["top1"]["value"]
        assert row["ema_held_out_top1"] == run.notes["averages"]["ema"]["held_out"]["top1"]["value"]
        assert row["held_out_num_examples"] == 120
    assert (out / "hyper_parameters.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert sorted(path.name for path in (tmp_path / "curves").iterdir()) == ["run-000", "run-001"]
    before = (out / "leaderboard.csv").read_bytes()
    finetune_sweep(recipe, World("cpu"), silent)
    assert (out / "leaderboard.csv").read_bytes() == before
