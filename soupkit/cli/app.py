"""The command line, built from the table of commands.

Exit codes: 0 done; 1 a SoupkitError; 2 usage (RecipeError and what typer refuses); 3 an expectation of a
recipe not met; 130 interrupted. Anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

import gc
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, NoReturn

import typer

from soupkit import __version__
from soupkit.asked import Recipe
from soupkit.cli import render
from soupkit.cli.help import ALL, InOrder, basic, shelf_of
from soupkit.cli.options import describe, escape, given, parameters, refuse_contradictions
from soupkit.cli.terminal import lost_output, open_streams, paragraph, write
from soupkit.commands import COMMANDS, Command
from soupkit.errors import RecipeError, SoupkitError
from soupkit.events import silent
from soupkit.jsons import Json
from soupkit.recipe.parse import parse_recipe
from soupkit.world import world_of

GROUPS = {
    "merge": "Turn many checkpoints into one.",
    "align": "Permute the units of networks so that they match.",
    "curve": "Curves of low loss between checkpoints.",
}
ROOT_EXAMPLES = ("demo", "finetune-sweep", "merge greedy", "evaluate")
NUM_EXAMPLES = 4
HELP = frozenset(("-h", "--help"))
SETTINGS = {"help_option_names": sorted(HELP, key=len)}
# BadParameter → UsageError → the root of click's errors; typer carries click under changing names, but not
# this chain.
CLICK_ERROR: type[Exception] = typer.BadParameter.__mro__[2]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command line and exit."""
    # Two busy processes whose OpenMP threads spin while they wait slow each other down tenfold; sleeping
    # costs little.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    gc.set_threshold(100_000, 50, 100)  # headers of 20,000 tensors are many objects and no garbage
    open_streams()
    sys.exit(run_command_line(sys.argv[1:] if arguments is None else arguments))


def run_command_line(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; 1 too where stdout did not take the result."""
    lost_output()
    code = _run(arguments)
    lost = lost_output()
    if lost is not None:
        write(sys.stderr, f"error: stdout: cannot be written: {lost.strerror}")
    return code or int(lost is not None)


def _run(arguments: Sequence[str]) -> int:
    try:
        refuse_contradictions(arguments)
        completing = _words_to_complete()
        named = [word for word in completing or arguments if not word.startswith("-")]
        basic_help = not completing and ALL not in arguments and not HELP.isdisjoint(arguments)
        words = ["--help" if word == ALL else word for word in arguments]
        command = _built(named, everything=not basic_help)
        return command.main(args=words, prog_name="soupkit", standalone_mode=False) or 0
    except CLICK_ERROR as error:
        return _report_usage(error)
    except RecipeError as error:
        write(sys.stderr, render.error_text(error))
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        write(sys.stderr, "interrupted")
        return 130
    except OSError as error:
        return _report_system(error)


def _built(arguments: Sequence[str], *, everything: bool) -> Any:
    """What parses the arguments. A process that runs one command again and again builds it once."""
    name = _named(arguments)
    if name is None:
        return typer.main.get_command(build_app(arguments, everything=everything))
    recipe_type = COMMANDS[name].recipe_type()
    return _built_once(name, COMMANDS[name], recipe_type, "NO_COLOR" in os.environ, everything=everything)


@lru_cache(maxsize=32)
def _built_once(name: str, _command: Command, _recipe_type: type, _plain: bool, *, everything: bool) -> Any:
    """One command; the other arguments are what else it is built from."""
    return typer.main.get_command(build_app(name.split(), everything=everything))


def _words_to_complete() -> list[str]:
    """What stands on the command line that a shell asks to complete; empty when none does.

    typer's scripts, which --install-completion installs, hand it over in these variables.
    """
    if "_SOUPKIT_COMPLETE" not in os.environ:
        return []
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or ""
    return line.split()[1:]


def build_app(arguments: Sequence[str] = (), *, everything: bool = True) -> typer.Typer:
    """The typer application: one command per entry of COMMANDS, "merge uniform" as `uniform` in the group
    `merge`.

    What the arguments cannot reach is left out: building every command takes longer than most of them do.
    everything: help shows every option, not the basic ones alone.
    """
    app = _typer(
        "Turn many model checkpoints into one better model.", _examples(ROOT_EXAMPLES), completion=True
    )
    app.callback(invoke_without_command=True)(_root)
    groups: dict[str, typer.Typer] = {}
    named = _named(arguments)
    for name, command in COMMANDS.items():
        group = name.rpartition(" ")[0]
        if group and group not in groups and (name == named or (named is None and group not in COMMANDS)):
            members = [other for other in COMMANDS if other.startswith(f"{group} ")]
            groups[group] = _typer(
                GROUPS.get(group, f"Commands of {group}."), _examples(members[:NUM_EXAMPLES])
            )
            app.add_typer(groups[group], name=group, rich_help_panel=shelf_of(group))
        if name == named or (named is None and group == _group(arguments)):
            _add_command(groups.get(group, app), name, command, listed=name != named, everything=everything)
    return app


def _named(arguments: Sequence[str]) -> str | None:
    """The command that the arguments begin with: of `align REF…` and `align groups` the longer that fits."""
    fitting = [" ".join(arguments[:number]) for number in (2, 1)]
    return next((name for name in fitting if name in COMMANDS), None)


def _group(arguments: Sequence[str]) -> str:
    """The group that the arguments begin with; empty when they begin with none."""
    first = " ".join(arguments[:1])
    return first if any(name.startswith(f"{first} ") for name in COMMANDS) else ""


def _typer(help: str, examples: Iterable[str], *, completion: bool = False) -> typer.Typer:
    # Rich marks bold and dim even under NO_COLOR, so help is plain text then.
    return typer.Typer(
        help=help,
        epilog=_epilog(examples),
        add_completion=completion,
        context_settings=SETTINGS,
        pretty_exceptions_enable=False,
        cls=InOrder,
        rich_markup_mode=None if "NO_COLOR" in os.environ else "rich",
    )


def _root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", metavar="", help="print the version and exit"),
) -> None:
    if version:
        write(sys.stdout, f"soupkit {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _add_command(app: typer.Typer, name: str, command: Command, *, listed: bool, everything: bool) -> None:
    kind = command.recipe_type()
    description = describe(kind)
    details = description.details if everything else ""
    more = () if everything else (f"every option: soupkit {name} {ALL}",)
    app.command(
        name.rpartition(" ")[2],
        help=escape(f"{description.summary}\n\n{details}".strip()),
        short_help=escape(description.summary),
        epilog=_epilog(description.examples, more),
        context_settings=SETTINGS,
        rich_help_panel=shelf_of(name),
    )(_listed if listed else _callback(kind, command, shown=None if everything else basic(kind)))


def _listed() -> None:
    """Stands for a command that is only listed."""
    raise AssertionError("this command line names another command")


def _callback(kind: type[Recipe], command: Command, *, shown: Sequence[str] | None) -> Callable[..., None]:
    """The function behind one command, with the recipe's fields as its signature."""

    def run(*, json: bool, quiet: bool, **values: object) -> None:
        code = _run_job(kind, command, values, json=json, quiet=quiet)
        if code:
            raise typer.Exit(code)

    common = _common_parameters(hidden=shown is not None)
    signature = inspect.Signature([*parameters(kind, shown), *common])
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    return run


def _common_parameters(*, hidden: bool) -> list[inspect.Parameter]:
    helps = {
        "json": "print the result as one JSON object on stdout, and no tables",
        "quiet": "no progress and no notes; warnings and errors stay",
    }
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=bool,
            default=typer.Option(
                False, f"--{name}", help=help, metavar="", hidden=hidden, rich_help_panel="What is printed"
            ),
        )
        for name, help in helps.items()
    ]


def _run_job(kind: type[Recipe], command: Command, values: Json, *, json: bool, quiet: bool) -> int:
    """Parse, run, print: the exit code. What is no SoupkitError and no interrupt passes through."""
    try:
        recipe = parse_recipe(kind, given(kind, values))
        world = world_of(recipe)
        with render.Renderer(quiet=quiet, tables=not json) as report:
            result = command.run(recipe, world, report if world.is_main else silent)
        if json and world.is_main:
            write(sys.stdout, render.json_text(result))
    except SoupkitError as error:
        rank = os.environ.get("RANK") or "0"
        message = render.error_text(error)
        write(sys.stderr, message if rank == "0" else f"rank {rank}: {paragraph(error.message)}")
        return error.exit_code
    except OSError as error:
        return _report_system(error)
    except KeyboardInterrupt:
        write(sys.stderr, "interrupted")
        return 130
    return 0


def _report_system(error: OSError) -> int:
    """What the system refused and no job could say better: a disk that fails, a folder without permission."""
    if error.errno is None:
        raise error
    place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    write(sys.stderr, f"error: {paragraph(place + (error.strerror or str(error)))}")
    return 1


def _report_usage(error: Exception) -> int:
    """What typer refuses, in the same form as every other error."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "soupkit"
    message = getattr(error, "format_message", error.__str__)()
    hint = f"{path} --help lists what there is"
    write(sys.stderr, f"error: {paragraph(message.strip())}\n\nhint: {hint}")
    return int(getattr(error, "exit_code", 2))


def _examples(names: Iterable[str]) -> list[str]:
    found = (describe(COMMANDS[name].recipe_type()).examples for name in names if name in COMMANDS)
    return [example for examples in found for example in examples]


def _epilog(examples: Iterable[str], more: Iterable[str] = ()) -> str | None:
    """Paragraphs, since typer joins the lines of one."""
    return "\n\n".join([*(f"Example: {escape(example)}" for example in examples), *more]) or None
