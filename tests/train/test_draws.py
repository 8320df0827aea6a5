"""Draws against brute force, and the property that lets a sweep grow."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from soupkit.errors import RecipeError
from soupkit.recipe.train import FinetuneSweep
from soupkit.train.draws import DRAWN, HYPER_PARAMETERS, Draw, draw_settings, grid_size, parse_draw, varying


def sweep(**values: Any) -> FinetuneSweep:
    fixed = dict.fromkeys(("lr", "weight_decay", "label_smoothing"), "0.1") | {"epochs": "5"}
    return FinetuneSweep(**({"base": "b", "out": Path("o")} | fixed | values))


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("0.1", "lr", Draw("constant", (0.1,))),
        (" 1e-3 ", "lr", Draw("constant", (1e-3,))),
        ("none", "layer_decay", Draw("constant", (None,))),
        ("log(1e-5, 1e-3)", "lr", Draw("log", (1e-5, 1e-3))),
        ("uniform(0,0.1)", "mixup", Draw("uniform", (0.0, 0.1))),
        ("int(4,16)", "epochs", Draw("int", (4, 16))),
        ("choice(0.1,0.2,0)", "cutmix", Draw("choice", (0.1, 0.2, 0.0))),
        ("choice(none,0.75)", "layer_decay", Draw("choice", (None, 0.75))),
    ],
)
def test_parse(text: str, name: str, expected: Draw) -> None:
    assert parse_draw(text, name) == expected


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("log(0,1)", "lr", "above 0"),
        ("log(1e-3,1e-5)", "lr", "lower bound comes first"),
        ("uniform(1,1)", "mixup", "lower bound"),
        ("uniform(0)", "mixup", "two bounds"),
        ("int(1.5,3)", "epochs", "not a whole number"),
        ("int(0.5,3)", "mixup", "whole bounds"),
        ("uniform(4,16)", "epochs", "whole number"),
        ("choice()", "lr", "not a number"),
        ("choice(1,,2)", "lr", "not a number"),
        ("lgo(1,2)", "lr", "did you mean log"),
        ("log(1,inf)", "lr", "not finite"),
        ("nan", "lr", "not finite"),
        ("none", "lr", "none is not"),
        ("4.5", "epochs", "whole"),
        ("__import__('os')", "lr", "no range"),
        ("", "lr", "not a number"),
    ],
)
def test_parse_refuses(text: str, name: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        parse_draw(text, name)
    assert name in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        (Draw("uniform", (2.0, 6.0)), lambda u: 2 + 4 * u),
        (Draw("log", (1e-4, 1e-2)), lambda u: 10 ** (-4 + 2 * u)),
        (Draw("int", (4, 6)), lambda u: 4 if u < 1 / 3 else 5 if u < 2 / 3 else 6),
        (Draw("choice", (0.5, 0.1)), lambda u: 0.5 if u < 0.5 else 0.1),
        (Draw("constant", (3.0,)), lambda _: 3.0),
    ],
)
def test_at_is_the_inverse_distribution(draw: Draw, expected: Any) -> None:
    for u in np.linspace(0, 0.999, 50):
        assert draw.at(u) == pytest.approx(expected(u), rel=1e-12)


def test_ranges_stay_in_their_bounds_and_reach_both_ends() -> None:
    almost_one = math.nextafter(1.0, 0.0)
    for kind, bounds in (("log", (1e-5, 1e-3)), ("uniform", (0.0, 0.1)), ("int", (4, 16))):
        draw = Draw(kind, bounds)  # type: ignore[arg-type]
        assert draw.at(0.0) == pytest.approx(bounds[0])
        assert draw.at(almost_one) == pytest.approx(bounds[1])
        assert bounds[0] <= draw.at(0.0) <= draw.at(almost_one) <= bounds[1]  # type: ignore[operator]


RANGES = {
    "lr": "log(1e-5,1e-3)",
    "weight_decay": "uniform(0,1)",
    "epochs": "int(4,16)",
    "mixup": "choice(0,0.2,1)",
}


@pytest.mark.parametrize("draw", ["random", "sobol"])
def test_a_longer_sweep_starts_with_the_shorter_one(draw: str) -> None:
    long = draw_settings(sweep(draw=draw, num_runs=24, seed=3, **RANGES))
    for num_runs in (1, 2, 3, 12, 16):
        assert draw_settings(sweep(draw=draw, num_runs=num_runs, seed=3, **RANGES)) == long[:num_runs]


@pytest.mark.parametrize("draw", ["random", "sobol"])
def test_draws_follow_the_seed(draw: str) -> None:
    one, same, other = (draw_settings(sweep(draw=draw, seed=seed, **RANGES)) for seed in (1, 1, 2))
    assert one == same
    assert [each["lr"] for each in one] != [each["lr"] for each in other]
    assert set(one[0]) == set(HYPER_PARAMETERS)


def test_random_draws_fill_the_distribution() -> None:
    settings = draw_settings(sweep(num_runs=600, **RANGES))
    logs = np.array([math.log10(each["lr"]) for each in settings])  # type: ignore[arg-type]
    assert np.abs(np.sort(logs) - np.linspace(-5, -3, 600)).max() < 2 * 1.63 / math.sqrt(
        600
    )  # Kolmogorov, 1 %
    assert {each["epochs"] for each in settings} == set(range(4, 17))
    assert {each["mixup"] for each in settings} == {0.0, 0.2, 1.0}
    weights = np.array([each["weight_decay"] for each in settings])
    assert abs(np.corrcoef(logs, weights)[0, 1]) < 0.12


def test_sobol_is_balanced_where_random_is_not() -> None:
    """Each 1/16 of every coordinate holds one of 16 points: what makes a Sobol sequence."""
    settings = draw_settings(
        sweep(draw="sobol", num_runs=16, weight_decay="uniform(0,1)", mixup="uniform(0,1)")
    )
    for name in ("weight_decay", "mixup"):
        assert sorted(int(each[name] * 16) for each in settings) == list(range(16))  # type: ignore[operator]


def test_grid_is_the_cartesian_product() -> None:
    recipe = sweep(
        draw="grid",
        num_runs=0,
        lr="choice(1,2)",
        mixup="choice(0,0.5,1)",
        layer_decay="choice(none,0.5)",
        seed=7,
    )
    settings = draw_settings(recipe)
    expected = list(itertools.product((1.0, 2.0), (0.0, 0.5, 1.0), (None, 0.5)))
    assert [(each["lr"], each["mixup"], each["layer_decay"]) for each in settings] == expected
    assert grid_size(recipe) == 12
    assert [each["seed"] for each in settings] == list(range(7, 19))
    assert varying(settings) == ["lr", "mixup", "layer_decay"]


def test_grid_is_cut_off_at_num_runs() -> None:
    values = {"draw": "grid", "lr": "choice(1,2,3,4)", "mixup": "choice(0,1)"}
    assert draw_settings(sweep(num_runs=3, **values)) == draw_settings(sweep(num_runs=0, **values))[:3]


@pytest.mark.parametrize("text", ["log(1e-5,1e-3)", "uniform(1,2)"])
def test_grid_needs_points(text: str) -> None:
    with pytest.raises(RecipeError, match="lr is a range") as caught:
        draw_settings(sweep(draw="grid", lr=text))
    assert "choice(" in str(caught.value.hint)


def test_run_seeds_are_consecutive_unless_drawn() -> None:
    assert [each["seed"] for each in draw_settings(sweep(num_runs=3, seed=5))] == [5, 6, 7]
    assert [each["seed"] for each in draw_settings(sweep(num_runs=3, run_seed="9"))] == [9, 9, 9]
    drawn = draw_settings(sweep(num_runs=50, run_seed="int(0,3)"))
    assert {each["seed"] for each in drawn} == {0, 1, 2, 3}


@pytest.mark.parametrize("values", [{"num_runs": 0}, {"num_runs": -1, "draw": "grid"}, {"seed": -1}])
def test_bad_counts_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(values))):
        draw_settings(sweep(**values))


def test_drawn_options_are_those_of_the_recipe() -> None:
    drawn = {name for name, kind in FinetuneSweep.__annotations__.items() if kind == "str"} - {"base"}
    assert set(DRAWN) == drawn
