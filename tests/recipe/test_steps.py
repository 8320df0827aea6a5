"""Recipe files: everything wrong in them is found before anything runs."""

from pathlib import Path
from typing import Any

import pytest

from soupkit.errors import RecipeError
from soupkit.recipe.merge import MergeUniform
from soupkit.recipe.steps import Steps, load_steps, load_yaml, parse_steps

TWO = """
description: Two steps.
variables: {out: runs/two, top: 3, inputs: [a, b], soup: "${out}/soup"}
steps:
  soup:
    command: merge uniform
    refs: ${inputs}
    top: ${top}
    by: held_out.${metric}
    out: ${soup}
  scores:
    command: evaluate
    refs: ["${soup}"]
    out: ${out}/scores
    expect: ["test.top1 >= 0.9", "test.top1 > soup:recipe.top"]
""".replace("${metric}", "top1")


def parse(text: str, *settings: str) -> Steps:
    return parse_steps(text, settings, where="f.yaml")


def refusal(text: str, *settings: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        parse(text, *settings)
    return caught.value


def test_steps_in_order_with_variables_of_their_own_type() -> None:
    loaded = parse(TWO)
    soup, scores = loaded.steps
    assert (loaded.description, soup.name, soup.command, scores.name) == (
        "Two steps.",
        "soup",
        "merge uniform",
        "scores",
    )
    assert soup.recipe == MergeUniform(refs=("a", "b"), top=3, by="held_out.top1", out=Path("runs/two/soup"))
    assert scores.recipe.refs == ("runs/two/soup",)
    assert [condition.text for condition in scores.expect] == [
        "test.top1 >= 0.9",
        "test.top1 > soup:recipe.top",
    ]


def test_settings_reach_variables_steps_and_variables_made_of_variables() -> None:
    soup, scores = parse(TWO, "out=/tmp/x", "top=5", "soup.dtype=float16", "scores.refs=[p]").steps
    assert (soup.recipe.out, soup.recipe.top, soup.recipe.dtype) == (Path("/tmp/x/soup"), 5, "float16")
    assert scores.recipe.refs == ("p",)
    assert parse(TWO, "soup.out=a=b").steps[0].recipe.out == Path("a=b")


def test_one_command(tmp_path: Path) -> None:
    path = tmp_path / "mean.yaml"
    path.write_text("command: merge uniform\nrefs: [a]\nout: o\nexpect: recipe.top >= 1\n")
    (step,) = load_steps(path, ["top=2", "mean.by=test.nll"]).steps
    assert (step.name, step.recipe.top, step.recipe.by, len(step.expect)) == ("mean", 2, "test.nll", 1)


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ("top: ${top}", "topp: 3", "f.yaml: step soup: unknown key 'topp'", "did you mean 'top'?"),
        ("top: ${top}", "top: 3.5", "f.yaml: step soup: top is 3.5, expected an integer", None),
        ("top: ${top}", "top: 0", "f.yaml: step soup: top is 0, expected at least 1", None),
        (
            "top: ${top}",
            "top: ${tpo}",
            "f.yaml: step soup: there is no variable 'tpo'",
            "did you mean 'top'?",
        ),
        (
            "merge uniform",
            "merge unifrom",
            "unknown command 'merge unifrom'",
            "did you mean 'merge uniform'?",
        ),
        ("command: evaluate", "command: run", "unknown command 'run'", ""),
        ("    command: evaluate\n", "", "f.yaml: step scores: names no command", ""),
        ("soup:recipe.top", "suop:recipe.top", "there is no step 'suop'", "did you mean 'soup'?"),
        ("test.top1 >= 0.9", "test.top1 is good", "f.yaml: step scores: expect 'test.top1 is good'", ""),
        ("${out}/scores", "${soup}", "f.yaml: steps soup and scores both write runs/two/soup", ""),
        ("${out}/scores", "${soup}/x", "f.yaml: steps soup and scores both write runs/two/soup", ""),
        ("description:", "descripton:", "f.yaml: unknown key 'descripton'", "did you mean 'description'?"),
        ("  scores:", "  my scores:", "step name 'my scores'", None),
        ("  scores:", "  soup:", "key 'soup' stands twice", None),
        ("refs: ${inputs}", "refs: [a, b", "f.yaml: is not valid YAML", None),
        ("steps:", "command: x\nsteps:", "has both `command:` and `steps:`", ""),
    ],
)
def test_mistakes_are_found(old: str, new: str, message: str, hint: str | None) -> None:
    assert old in TWO
    error = refusal(TWO.replace(old, new))
    assert message in error.message
    if hint is None:
        assert error.hint is None
    else:
        assert hint in (error.hint or "")


@pytest.mark.parametrize("text", ["", "- a", "steps: {}", "steps: [a]", "steps: {a: 1}", "variables: {a: 1}"])
def test_files_without_steps(text: str) -> None:
    assert refusal(text).message.startswith("f.yaml: ")


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ("out", None),
        ("=1", None),
        ("ouut=1", "did you mean 'out'?"),
        ("suop.top=1", "did you mean 'soup'?"),
        ("soup.topp=1", "did you mean 'top'?"),
        ("top=[", None),
    ],
)
def test_bad_settings(setting: str, hint: str | None) -> None:
    assert refusal(TWO, setting).hint == hint


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        load_steps(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-1.5", -1.5),
        ("1e5", 1e5),
        ("12", 12),
        ("0", 0),
        (".inf", float("inf")),
        ("true", True),
        ("trueish", "trueish"),
        ("nullable", "nullable"),
        ("1e-3x", "1e-3x"),
        ("2 runs", "2 runs"),
        ("off", "off"),
        ("no", "no"),
        ("010", "010"),
        ("-010", "-010"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("0x10", "0x10"),
        ("null", None),
        ("~", None),
        ("", None),
        ("log(1e-5,1e-3)", "log(1e-5,1e-3)"),
    ],
)
def test_scalars_mean_what_they_look_like(text: str, value: Any) -> None:
    loaded = load_yaml(text, where="f")
    assert loaded == value
    assert type(loaded) is type(value)


def test_no_objects_can_be_made() -> None:
    with pytest.raises(RecipeError, match="is not valid YAML"):
        load_yaml("!!python/object/apply:os.system [echo]", where="f")
    with pytest.raises(RecipeError, match="is not valid YAML"):
        load_yaml("? [a]\n: 1", where="f")


STEP = 'steps: {{s: {{command: {command}, {options}, expect: ["{path} >= 0"]}}}}'


@pytest.mark.parametrize(
    ("command", "options", "path"),
    [
        ("merge uniform", "refs: [a], out: o", "held_out.top1"),
        ("merge ties", "refs: [a, b], base: c, out: o", "metrics.test.top1"),
        ("merge greedy", "refs: [a], data: digits, out: o", "held_out.top2"),
        ("merge greedy", "refs: [a], data: digits, out: o", "val.top1"),
        ("merge greedy", "refs: [a], data: digits, test: false, out: o", "test.top1"),
        ("merge greedy", "refs: [a], data: digits, out: o", "test.top1.valeu"),
        ("merge greedy", "refs: [a], data: digits, out: o", "metrics.test"),
        ("merge evolve", "refs: [a], score_command: 'x {checkpoint}', out: o", "test.score"),
        ("merge interpolate", "refs: [a, b], at: [0.5], out: o", "held_out.top1"),
        ("evaluate", "refs: [a, b], data: digits", "held_out.top1"),
        ("evaluate", "refs: [a], baseline: b, data: digits", "held_out.top1"),
        ("evaluate", "refs: [a], data: digits, split: test", "held_out.top1"),
        ("evaluate", "refs: [a, b], data: digits", "runs/v1.5.held_out.topp"),
        ("ensemble", "refs: [a, b], data: digits", "held_out.top1"),
        ("finetune-sweep", "base: a, data: digits, out: o", "best.held_out.accuracy"),
        ("inspect", "refs: [a]", "parameters"),
    ],
)
def test_what_no_result_can_hold_is_found_before_the_first_step(
    command: str, options: str, path: str
) -> None:
    error = refusal(STEP.format(command=command, options=options, path=path))
    assert f"the result of {command} cannot hold {path!r}" in error.message


@pytest.mark.parametrize(
    ("command", "options", "path"),
    [
        ("merge uniform", "refs: [a], out: o", "outputs.files.model.safetensors.bytes"),
        ("merge greedy", "refs: [a], data: digits, out: o", "test.top1.standard_error"),
        ("merge greedy", "refs: [a], data: digits, out: o", "notes.singles.runs/v1.5.value"),
        ("merge evolve", "refs: [a], score_command: 'x {checkpoint}', out: o", "held_out.score"),
        ("merge interpolate", "refs: [a, b], data: digits, write: all, out: o", "at-0.5.held_out.top1"),
        ("evaluate", "refs: ['run*'], data: digits", "held_out.top1"),
        ("evaluate", "refs: [a], data: digits", "a.held_out.top1"),
        ("evaluate", "refs: [a, b], data: digits", "/abs/v1.5/a.held_out.top1"),
        ("evaluate", "refs: [a, b], data: digits", "'second try'.held_out.top1"),
        ("finetune-sweep", "base: a, data: digits, out: o", "run-000.held_out.top1"),
        ("inspect", "refs: [a]", "checkpoints.0.parameters"),
        ("diff", "a: x, b: y", "anything"),
    ],
)
def test_what_a_result_may_hold_is_accepted(command: str, options: str, path: str) -> None:
    assert len(parse(STEP.format(command=command, options=options, path=path)).steps[0].expect) == 1
