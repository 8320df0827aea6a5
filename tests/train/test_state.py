"""The saved state of a population: whole or not at all, and enough for the same bits."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from train.population_small import assert_same_bits, population, population_recipe, states
from train.small import small_model

from soupkit.errors import CheckpointError
from soupkit.events import silent
from soupkit.recipe.population import TrainPopulation
from soupkit.train.population.population import Population
from soupkit.train.population.state import about_state, find_state, load_state, save_state


class StoppedError(Exception):
    """Stands for a kill."""


def with_head(seed: int) -> torch.nn.Module:
    model = small_model(seed)
    model.pretrained_cfg = {"classifier": "head"}  # type: ignore[assignment]
    return model


def make(recipe: TrainPopulation) -> Population:
    return population(recipe, make=with_head)


def saving(folder: Path, every: int, stop: int) -> Callable[[Population], None]:
    def after(trained: Population) -> None:
        if trained.num_done % every == 0:
            save_state(trained, folder, {"who": "test"})
        if trained.num_done == stop:
            raise StoppedError

    return after


SETTINGS: dict[str, dict[str, Any]] = {
    "papa, momentum, ema": {"decay": 0.7, "mixup": (0.0, 0.4), "ema_decay": 0.9, "ema_gamma": 1.0},
    "late pulls, adamw": {
        "decay": 0.7,
        "average_every": 4,
        "async_average": 3,
        "optimizer": "adamw",
        "lr": 0.01,
    },
    "pairs, warmup, clipped": {"method": "papa-2", "merge_every": 1, "warmup_epochs": 0.5, "clip_grad": 1.0},
    "probe, bfloat16": {"linear_probe": 0.5, "amp": "bfloat16", "optimizer": "nadamw", "lr": 0.01},
}


@pytest.mark.parametrize("values", SETTINGS.values(), ids=SETTINGS)
def test_stopped_anywhere_it_goes_on_to_the_same_bits(values: dict[str, Any], tmp_path: Path) -> None:
    recipe = population_recipe(epochs=3, num_train=60, **values)  # batches of 15: 4 updates per epoch
    whole = make(recipe)
    whole.train(silent)
    for stop in (1, 7):
        folder = tmp_path / str(stop)
        stopped = make(recipe)
        with pytest.raises(StoppedError):
            stopped.train(silent, after_update=saving(folder, stop, stop))
        again = make(recipe)
        state = find_state(folder)
        assert state is not None
        load_state(again, state)
        assert again.num_done == stop
        again.train(silent)
        assert_same_bits(states(again), states(whole))
        assert again.history == whole.history
        for member, other in zip(again.members, whole.members):
            for name, average in member.averages.items():
                assert_same_bits([average.averaged_state()], [other.averages[name].averaged_state()])


def test_a_late_pull_is_saved_while_it_is_under_way(tmp_path: Path) -> None:
    recipe = population_recipe(epochs=3, num_train=60, **SETTINGS["late pulls, adamw"])
    stopped = make(recipe)
    with pytest.raises(StoppedError):
        stopped.train(silent, after_update=saving(tmp_path, 1, 5))
    again = make(recipe)
    state = find_state(tmp_path)
    assert state is not None
    load_state(again, state)
    assert again.pull.pending
    assert again.pull.since == 4
    assert torch.equal(again.pull.before[torch.float32], stopped.pull.before[torch.float32])


def test_a_crash_in_any_step_of_saving_leaves_a_whole_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call that touches the disk is made to fail in turn: then the state before, or the new one, is
    whole."""
    trained = make(population_recipe())
    trained.train(silent)
    names, real = (
        ("fsync", "rename", "mkdir"),
        {name: getattr(os, name) for name in ("fsync", "rename", "mkdir")},
    )
    crashes = 0
    for fail_at in range(1, 40):
        folder = tmp_path / str(fail_at)
        trained.num_done = 1
        save_state(trained, folder, {"n": 1})
        trained.num_done = 2
        calls = 0

        def failing(name: str, fail_at: int = fail_at) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == fail_at:
                    raise StoppedError
                return real[name](*arguments, **options)

            return call

        for name in names:
            monkeypatch.setattr(os, name, failing(name))
        try:
            save_state(trained, folder, {"n": 2})
        except StoppedError:
            crashes += 1
        finally:
            monkeypatch.undo()
        state = find_state(folder)
        assert state is not None
        loaded = make(population_recipe())
        load_state(loaded, state)
        assert about_state(state) == {"n": loaded.num_done}
        assert_same_bits(states(loaded), states(trained))
        if calls < fail_at:
            break
    assert crashes >= 7
    assert [path.name for path in folder.iterdir()] == ["update-00000002"]


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    trained = make(population_recipe())
    save_state(trained, tmp_path, {})
    state = find_state(tmp_path)
    assert state is not None
    (state / "member-001.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"member-001.*cannot be read") as caught:
        load_state(make(population_recipe()), state)
    assert "--no-resume" in str(caught.value.hint)
    (state / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"update-0+: cannot be read"):
        about_state(state)


def test_fields_of_the_recipe_have_their_place_in_the_check() -> None:
    """An option is either part of what must agree on resuming, or named as without effect."""
    from soupkit.stages.training.population_folder import WITHOUT_EFFECT

    names = {field.name for field in dataclasses.fields(TrainPopulation)}
    assert set(WITHOUT_EFFECT) <= names
    assert {"seed", "lr", "method", "decay", "data", "epochs", "num_members", "async_average"} <= names - {
        *WITHOUT_EFFECT
    }
