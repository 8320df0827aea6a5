"""Hyper-parameters that depend on others: which branch, in which order, and what is refused."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from soupkit.errors import RecipeError
from soupkit.recipe.parse import parse_recipe
from soupkit.recipe.steps import parse_steps
from soupkit.recipe.train import FinetuneSweep
from soupkit.train.draws import draw_settings, grid_size
from soupkit.train.ranges import Branch, Condition, Draw, Range, parse_range

BY_OPTIMIZER = "log(1e-5,1e-3) if optimizer=adamw else log(1e-2,1e-1)"


def sweep(**values: Any) -> FinetuneSweep:
    fixed = dict.fromkeys(("lr", "weight_decay", "label_smoothing"), "0.1") | {"epochs": "5"}
    return FinetuneSweep(**({"base": "b", "out": Path("o")} | fixed | values))


def test_parse() -> None:
    assert parse_range("0.1", "lr") == Range((Branch(Draw("constant", (0.1,))),))
    found = parse_range("0 if cutmix>0 and epochs<=8 else 0.5 if optimizer!=sgd else choice(1,2)", "mixup")
    assert found == Range(
        (
            Branch(Draw("constant", (0.0,)), (Condition("cutmix", ">", 0.0), Condition("epochs", "<=", 8))),
            Branch(Draw("constant", (0.5,)), (Condition("optimizer", "!=", "sgd"),)),
            Branch(Draw("choice", (1.0, 2.0))),
        )
    )
    assert found.asks == {"cutmix", "epochs", "optimizer"}
    assert parse_range("choice(adamw, sgd)", "optimizer").branches[0].draw.values == ("adamw", "sgd")


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("1 if epochs<4", "lr", "needs an else"),
        ("1 else 2", "lr", "no condition"),
        ("1 if epochs else 2", "lr", "no condition such as"),
        ("1 if epoch<4 else 2", "lr", "did you mean epochs"),
        ("1 if lr<4 else 2", "lr", "nothing to ask for"),
        ("1 if optimizer<adamw else 2", "lr", "is a word"),
        ("1 if epochs=4.5 else 2", "lr", "not a whole number"),
        ("log(2,1) if epochs=4 else 2", "lr", "lower bound comes first"),
        ("log(1,2)", "optimizer", "not a word"),
        ("3", "optimizer", "not a word"),
        ("1 if __import__('os')=1 else 2", "lr", "no condition such as"),
    ],
)
def test_parse_refuses(text: str, name: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        parse_range(text, name)
    assert caught.value.hint


def test_every_run_takes_the_branch_of_its_own_settings() -> None:
    settings = draw_settings(
        sweep(
            num_runs=200,
            lr=BY_OPTIMIZER,
            optimizer="choice(adamw,sgd)",
            mixup="0 if lr>0.05 else choice(0.2,1)",
            cutmix="1 if mixup>=0.2 and mixup<0.5 else 0",
        )
    )
    assert {each["optimizer"] for each in settings} == {"adamw", "sgd"}
    for each in settings:
        low, high = (1e-5, 1e-3) if each["optimizer"] == "adamw" else (1e-2, 1e-1)
        assert low <= each["lr"] <= high  # type: ignore[operator]
        assert each["mixup"] in ((0.0,) if each["lr"] > 0.05 else (0.2, 1.0))  # type: ignore[operator]
        assert each["cutmix"] == (1.0 if each["mixup"] == 0.2 else 0.0)
    assert {each["mixup"] for each in settings} == {0.0, 0.2, 1.0}


@pytest.mark.parametrize("draw", ["random", "sobol"])
def test_a_condition_leaves_the_other_coordinates_alone(draw: str) -> None:
    """One coordinate per option, whichever branch: what does not depend on anything is drawn as without
    conditions."""
    ranges = {"weight_decay": "uniform(0,1)", "optimizer": "choice(adamw,sgd)", "num_runs": 16, "draw": draw}
    plain = draw_settings(sweep(lr="log(1e-5,1e-3)", **ranges))
    conditional = draw_settings(sweep(lr=BY_OPTIMIZER, **ranges))
    for a, b in zip(plain, conditional):
        assert {**a, "lr": 0} == {**b, "lr": 0}
        if a["optimizer"] == "adamw":
            assert a["lr"] == b["lr"]


def test_what_is_none_is_neither_less_nor_more() -> None:
    ranges = {"layer_decay": "choice(none,0.5)", "mixup": "1 if layer_decay<1 else 0", "num_runs": 30}
    for each in draw_settings(sweep(**ranges)):
        assert each["mixup"] == (0 if each["layer_decay"] is None else 1)


def test_a_grid_holds_each_point_once() -> None:
    recipe = sweep(
        draw="grid",
        num_runs=0,
        optimizer="choice(adamw,sgd)",
        lr="choice(1,2) if optimizer=adamw else choice(3,4,5)",
        mixup="choice(0,1)",
        cutmix="0.5 if mixup=0 else choice(0,1)",
    )
    points = [
        (each["optimizer"], each["lr"], each["mixup"], each["cutmix"]) for each in draw_settings(recipe)
    ]
    rates = [("adamw", 1.0), ("adamw", 2.0), ("sgd", 3.0), ("sgd", 4.0), ("sgd", 5.0)]
    mixing = [(0.0, 0.5), (1.0, 0.0), (1.0, 1.0)]
    assert sorted(points) == sorted((*a, *b) for a, b in itertools.product(rates, mixing))
    assert grid_size(recipe) == 15


def test_circles_are_refused() -> None:
    with pytest.raises(RecipeError, match="lr, mixup go round in a circle"):
        draw_settings(sweep(lr="1 if mixup=0 else 2", mixup="0 if lr=1 else 1"))


def test_one_yaml_file_is_the_whole_spec() -> None:
    text = f"""
command: finetune-sweep
base: runs/base
data: digits
out: runs/sweep
num_runs: 4
lr: {BY_OPTIMIZER}
optimizer: choice(adamw,sgd)
epochs: 3
lp_epochs: 2
"""
    (step,) = parse_steps(text, where="sweep.yaml").steps
    values = {"base": "runs/base", "data": "digits", "out": "runs/sweep", "num_runs": "4", "lr": BY_OPTIMIZER}
    values |= {"optimizer": "choice(adamw,sgd)", "epochs": "3", "lp_epochs": "2"}
    assert step.recipe == parse_recipe(FinetuneSweep, values)
    assert len(draw_settings(step.recipe)) == 4
