"""The command line in this process: options, output, exit codes. A fake command stands for all."""

import dataclasses
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from soupkit import __version__
from soupkit.cli.app import run_command_line
from soupkit.cli.help import SHELVES, shelf_of
from soupkit.cli.options import given, parameters, repeats
from soupkit.commands import COMMANDS, Command
from soupkit.errors import ExpectationError, RecipeError, TaskError
from soupkit.events import Advanced, Finished, Report, Scored, Started, Table, Told, Warned, Wrote
from soupkit.recipe.fields import argument, option
from soupkit.recipe.parse import field_types, recipe_to_json
from soupkit.recipe.shared import OutputOptions
from soupkit.world import World


@dataclass(frozen=True, kw_only=True)
class Fake(OutputOptions):
    """Do nothing, [completely].

    A second paragraph.

    Example: soupkit fake a --out b
    """

    refs: tuple[str, ...] = argument(help="checkpoints")
    rate: float = option(0.1, help="a [rate=number]")
    limit: int | None = option(None, help="a limit")
    set: tuple[str, ...] = option((), help="repeat")
    points: tuple[float, ...] = option((0.5, 1.0), help="points")
    early_stop: bool = option(True, help="stop early")
    kind: Literal["mean", "median"] = option("mean", help="which")
    device: str = option("auto", help="device")
    threads: int = option(0, help="threads")
    fail: str = option("", help="how to fail")


def fake(recipe: Fake, world: World, report: Report) -> dict[str, Any]:
    report(Started("working", 2, "steps"))
    report(Advanced("working"))
    report(Told("a note"))
    report(Warned("a warning"))
    report(Scored("soup", "top1", 0.9, 0.01, 700, note="best"))
    report(Finished("working"))
    report(Table("Scores", ("name", "top1"), (("a" * 100, 0.5), ("b", None)), caption="n = 2"))
    report(Wrote(recipe.out, 1_500_000))
    failures = {
        "task": TaskError("no data", hint="give --data"),
        "expect": ExpectationError("x is 1"),
        "interrupt": KeyboardInterrupt(),
        "bug": ZeroDivisionError("a bug"),
    }
    if recipe.fail:
        raise failures[recipe.fail]
    return {
        "recipe": recipe_to_json(recipe),
        "world": dataclasses.asdict(world),
        "nan": float("nan"),
        "x": np.float32(1),
    }


@pytest.fixture(autouse=True)
def _fake_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "fake", Command(f"{__name__}:Fake", f"{__name__}:fake"))
    monkeypatch.setitem(COMMANDS, "odd deep", Command(f"{__name__}:Fake", f"{__name__}:fake"))
    for name in ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = run_command_line(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


Call = Callable[..., tuple[int, str, str]]


def recipe_of(call: Call, *arguments: str) -> dict[str, Any]:
    code, out, _ = call("fake", *arguments, "--json")
    assert code == 0
    recipe: dict[str, Any] = json.loads(out)["recipe"]
    return recipe


def test_options_reach_the_recipe_with_their_types(call: Call) -> None:
    line = "a b --out c/d --rate 1e-3 --limit 3 --points 0,0.25 --no-early-stop --kind median --overwrite"
    recipe = recipe_of(call, *line.split(), "--set", "a=1", "--set", "b=x y")
    assert recipe["refs"] == ["a", "b"]
    assert (recipe["out"], recipe["rate"], recipe["limit"], recipe["points"]) == (
        "c/d",
        0.001,
        3,
        [0.0, 0.25],
    )
    assert (recipe["early_stop"], recipe["kind"], recipe["overwrite"], recipe["set"]) == (
        False,
        "median",
        True,
        ["a=1", "b=x y"],
    )


def test_defaults_are_those_of_the_recipe(call: Call) -> None:
    assert recipe_of(call, "a", "--out", "b") == recipe_to_json(Fake(refs=("a",), out=Path("b")))


def test_the_world_is_made_from_the_recipe(call: Call) -> None:
    _, out, _ = call("odd", "deep", "a", "--out", "b", "--device", "cpu", "--threads", "3", "--json")
    alone = {"rank": 0, "size": 1, "local_rank": 0}
    assert json.loads(out)["world"] == {"device": "cpu", "threads": 3, **alone}


def test_tables_on_stdout_all_else_on_stderr(call: Call) -> None:
    code, out, err = call("fake", "a", "--out", "soups/x")
    assert code == 0
    assert "a" * 100 in out  # not cut to 80 columns
    assert "Scores" in out
    assert "n = 2" in out
    assert err.splitlines() == [
        "a note",
        "warning: a warning",
        "soup: top1 0.9000 ± 0.0100 (n = 700)  best",
        "wrote soups/x (1.5 MB)",
    ]
    assert "\x1b" not in out + err


def test_quiet_keeps_warnings_and_data(call: Call) -> None:
    _, out, err = call("fake", "a", "--out", "b", "--quiet")
    assert "Scores" in out
    assert err == "warning: a warning\n"


def test_json_is_one_strict_object_and_nothing_else(call: Call) -> None:
    _, out, _ = call("fake", "a", "--out", "b", "--json")
    result = json.loads(out, parse_constant=pytest.fail)
    assert (result["nan"], result["x"]) == (None, 1.0)


def test_exit_codes_and_the_form_of_errors(call: Call) -> None:
    code, out, err = call("fake", "a", "--out", "b", "--json", "--quiet", "--fail", "task")
    assert (code, out, err) == (1, "", "warning: a warning\nerror: no data\n\nhint: give --data\n")
    code, _, err = call("fake", "a", "--out", "b", "--quiet", "--fail", "expect")
    assert (code, err) == (3, "warning: a warning\nerror: x is 1\n")
    code, _, err = call("fake", "a", "--out", "b", "--fail", "interrupt")
    assert (code, err.splitlines()[-1]) == (130, "interrupted")
    with pytest.raises(ZeroDivisionError):
        call("fake", "a", "--out", "b", "--fail", "bug")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("fake a --out b --limit x", "limit is 'x', expected an integer"),
        ("fake a --out b --kind mode", "kind is 'mode', expected one of mean, median"),
        ("fake a --out b --points 1;2", "points is '1;2', expected numbers"),
        ("fake a", "Missing option '--out'"),
        ("fake --out b", "Missing argument 'REF'"),
        ("fake a --out b --rat 1", "No such option"),
        ("fakee a", "No such command 'fakee'"),
        ("merge unifrom a", "No such command 'unifrom'"),
        ("odd", "Missing command"),
        ("--nope", "No such option"),
    ],
)
def test_usage_errors_are_2_and_look_like_all_others(call: Call, line: str, message: str) -> None:
    code, out, err = call(*line.split())
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err


def test_version(call: Call) -> None:
    assert call("--version") == (0, f"soupkit {__version__}\n", "")


def test_no_arguments_print_the_help(call: Call) -> None:
    code, out, _ = call()
    assert code == 0
    assert "Usage: soupkit" in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_summary_example_and_options(call: Call, name: str) -> None:
    code, out, _ = call(*name.split(), "--help-all")
    text = " ".join(out.replace("│", " ").split())
    kind = COMMANDS[name].recipe_type()
    assert code == 0
    assert kind.__doc__.splitlines()[0] in text
    assert f"Example: soupkit {name}" in text
    for field in dataclasses.fields(kind):
        if not field.metadata["positional"]:
            assert f"--{field.name.rstrip('_').replace('_', '-')}" in text
    assert "--json" in text
    assert "--quiet" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_a_basic_help_fits_a_screen_and_leads_to_the_rest(
    call: Call, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = call(*name.split(), "--help")
    assert code == 0
    assert len(out.strip("\n ").splitlines()) <= 40
    assert f"every option: soupkit {name} --help-all" in " ".join(out.split())
    assert "<bool>" not in out.replace("Show this message", "").split("--help")[0]
    for field in dataclasses.fields(COMMANDS[name].recipe_type()):
        option = f"--{field.name.rstrip('_').replace('_', '-')}"
        if field.metadata["positional"]:
            assert field.name.removesuffix("s").upper() in out
        elif field.name in ("out", "data") or field.default is dataclasses.MISSING:
            assert option in out


def test_every_command_stands_on_one_shelf_in_the_order_of_a_job(call: Call) -> None:
    for name in COMMANDS:
        known = name.startswith(("merge ", "odd ", "curve ")) or name in ("align groups", "fake")
        assert known or sum(name in names for names in SHELVES.values()) == 1
        assert not name.startswith("merge ") or shelf_of(name)
    _, root, _ = call("--help")
    places = [root.index(f"─ {title} ─") for title in SHELVES]
    assert places == sorted(places)
    _, group, _ = call("merge", "--help")
    shelf = group[group.index("─ Of task vectors: weights minus --base ─") :]
    assert "│ ties " in shelf
    assert "│ slerp " not in shelf


def test_options_that_basic_help_leaves_out_are_completed(
    call: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--early-stop" not in call("merge", "greedy", "--help")[1]
    monkeypatch.setenv("_SOUPKIT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "soupkit merge greedy --early")
    monkeypatch.setenv("COMP_CWORD", "3")
    with pytest.raises(SystemExit):
        call()
    assert "--early-stop" in capsys.readouterr().out


def test_help_shows_panels_defaults_choices_and_brackets(call: Call) -> None:
    _, out, _ = call("fake", "--help-all")
    assert "Do nothing, [completely]." in out
    assert "A second paragraph." in out
    assert "a [rate=number]" in out
    assert "─ Output options ─" in out
    assert "mean|median" in out
    assert "[default: 0.1]" in out
    assert "[default: 0.5,1.0]" in out
    assert "--no-early-stop" in out
    panel = out[out.index("─ Output options ─") :]
    assert "--out" in panel[: panel.index("╰")]
    assert "--rate" not in panel[: panel.index("╰")]


def test_group_and_root_help_list_summaries_and_examples(call: Call) -> None:
    _, root, _ = call("--help")
    assert "Do nothing, [completely]." in root
    assert "Turn many checkpoints into one." in root
    assert "Example: soupkit demo" in root
    _, group, _ = call("merge", "--help")
    assert "Average the weights of checkpoints: the uniform soup." in group
    assert "Example: soupkit merge uniform" in group


def test_help_under_no_color_and_on_pipes_has_no_control_codes(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "\x1b" not in call("fake", "--help")[1]
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    _, out, _ = call("fake", "--help")
    assert "--rate" in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("--rate 1 --rate 2", "--rate is given 2 times: '1' and '2'"),
        ("--rate=1 --rate=1", "--rate is given 2 times"),
        ("--limit 1 --points 0 --limit 2 --limit 3", "--limit is given 3 times"),
        ("--points 0 --points 1", "--points is given 2 times"),
        ("--kind mean --kind median", "--kind is given 2 times"),
        ("--out c", "--out is given 2 times: 'b' and 'c'"),
        ("--device cpu --device auto", "--device is given 2 times"),
        ("--early-stop --no-early-stop", "--early-stop and --no-early-stop are given both"),
        ("--no-early-stop --early-stop", "--early-stop and --no-early-stop are given both"),
    ],
)
def test_an_option_that_takes_one_value_is_given_once(call: Call, given: str, named: str) -> None:
    code, out, err = call("fake", "a", "--out", "b", *given.split())
    assert code == 2
    assert out == ""
    assert f"error: {named}" in err
    assert "hint: give " in err


def test_what_takes_many_values_may_repeat(call: Call) -> None:
    assert recipe_of(call, "a", "--out", "b", "--set", "x=1", "--set", "x=1")["set"] == ["x=1", "x=1"]


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "run"])
def test_every_command_refuses_a_second_value_of_every_option(command: str) -> None:
    """By what typer hands over: a list for each option, of which one is taken."""
    kind = COMMANDS[command].recipe_type()
    for field in dataclasses.fields(kind):
        hint = field_types(kind)[field.name]
        if field.metadata["positional"] or hint is bool or repeats(hint):
            continue
        assert given(kind, {field.name: ["x"]}) == {field.name: "x"}
        with pytest.raises(RecipeError, match="given 2 times"):
            given(kind, {field.name: ["x", "y"]})
        [parameter] = [each for each in parameters(kind) if each.name == field.name]
        assert parameter.annotation in (list[str], list[str] | None)
