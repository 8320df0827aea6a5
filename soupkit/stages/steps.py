"""`soupkit run`: the steps of a recipe file in order, without those whose output is complete and
unchanged."""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from soupkit.asked import Narrows, Recipe, Refers, Results
from soupkit.checkpoint.reference import open_references
from soupkit.commands import COMMANDS
from soupkit.errors import ExpectationError, SoupkitError, UnfoundedError
from soupkit.events import Report, Table, Told
from soupkit.given import given_by
from soupkit.jsons import Json
from soupkit.manifest import Manifest
from soupkit.recipe.parse import recipe_to_json
from soupkit.recipe.steps import Step
from soupkit.recipe.train import FinetuneSweep
from soupkit.stages.inputs.recorded import companions_of_input, content_of_input
from soupkit.world import ALONE, World

HOW_NOT_WHAT = ("overwrite", "dry_run", "cache", "fresh_scores", "resume")
"""Options that say how to compute and write, not what."""
ANEW = {"overwrite": True, "fresh_scores": True, "resume": False}
"""What --force sets in every step that has it."""


@dataclass(frozen=True)
class Decision:
    """Whether a step runs, and why."""

    runs: bool
    why: str


def run_steps(steps: Sequence[Step], report: Report, *, force: bool = False, world: World = ALONE) -> Json:
    """Run checked steps, skipping what is done, then check what they expect. Raises ExpectationError.

    Ranks take every step together; rank 0 decides which run.
    """
    results: Json = {}
    rebuilt: list[Path] = []
    for number, step in enumerate(steps, start=1):
        decision = world.broadcast(decide(step, rebuilt, force=force) if world.is_main else None)
        verb = "" if decision.runs else "skipped, "
        report(Told(f"step {number}/{len(steps)} {step.name}: {step.command} ({verb}{decision.why})"))
        if decision.runs:
            results[step.name] = _run_step(step, report, force=force, world=world)
            rebuilt += _outs(step)
        else:
            results[step.name] = Manifest.read(_outs(step)[0]).to_json()
    _check_expectations(steps, results, report)
    return {"steps": results}


def show_plan(steps: Sequence[Step], report: Report, *, force: bool = False) -> Json:
    """Say which steps would run, and why; nothing runs."""
    plan: Json = {}
    rebuilt: list[Path] = []
    for step in steps:
        decision = decide(step, rebuilt, force=force)
        rebuilt += _outs(step) if decision.runs else []
        plan[step.name] = {
            "command": step.command,
            "action": "run" if decision.runs else "skip",
            "why": decision.why,
        }
    rows = tuple((name, *entry.values()) for name, entry in plan.items())
    report(Table("plan: nothing was run", ("step", "command", "action", "why"), rows))
    return {"steps": plan}


def decide(step: Step, rebuilt: Iterable[Path], *, force: bool = False) -> Decision:
    """Whether a step must run, given the outputs that this run has built already.

    Cost: reads the weights of the inputs once, for their hashes, when all else is unchanged; looks at every
    file of the data.
    """
    if force:
        return Decision(True, "forced")
    if not (outs := _outs(step)):
        return Decision(True, "has no output to keep")
    manifest = Manifest.read_if_any(outs[0])
    if manifest is None:
        return Decision(True, "has no complete output yet")
    why = (
        _changed(step, manifest)
        or _unfinished(step, manifest)
        or _upstream(step, manifest, rebuilt)
        or _damaged(outs[0], manifest)
        or _changed_given(step, manifest)
        or _changed_inputs(step, outs[0], manifest)
    )
    return Decision(True, why) if why else Decision(False, "complete and unchanged")


def _run_step(step: Step, report: Report, *, force: bool, world: World) -> Json:
    """Run one step. An earlier output of soupkit is replaced; anything else in its place is refused by the
    job."""
    recipe = step.recipe
    replaced = [out for out in _outs(step) if Manifest.read_if_any(out) is not None]
    fields = {field.name for field in dataclasses.fields(recipe)}
    wanted = ANEW if force else {"overwrite": True} if replaced else {}
    if changed := {name: value for name, value in wanted.items() if name in fields}:
        recipe = dataclasses.replace(recipe, **changed)
        for out in replaced:
            report(Told(f"replacing {out}"))
    try:
        return COMMANDS[step.command].run(recipe, world.for_recipe(recipe), report)
    except SoupkitError as error:
        raise type(error)(f"step {step.name}: {error.message}", hint=error.hint) from error


def _outs(step: Step) -> list[Path]:
    """The output, where it has one."""
    out = step.recipe.out if isinstance(step.recipe, Results) else None
    return [out] if out else []


def _changed(step: Step, manifest: Manifest) -> str | None:
    """Which options differ from those that the output was made with."""
    if manifest.command != step.command:
        return f"its output is of {manifest.command}"
    wanted = recipe_to_json(step.recipe)
    changed = [
        key
        for key in sorted({*wanted, *manifest.recipe} - set(HOW_NOT_WHAT))
        if key not in wanted or key not in manifest.recipe or wanted[key] != manifest.recipe[key]
    ]
    return f"{', '.join(changed)} changed" if changed else None


def _unfinished(step: Step, manifest: Manifest) -> str | None:
    """How much of a killed sweep there is: its manifest is written anew after each run, so it proves
    nothing."""
    if not isinstance(step.recipe, FinetuneSweep):
        return None
    from soupkit.train.sweep import plan_runs

    num_done, num_runs = len(manifest.notes.get("members", [])), len(plan_runs(step.recipe))
    return f"{num_done} of {num_runs} runs are finished" if num_done < num_runs else None


def _upstream(step: Step, manifest: Manifest, rebuilt: Iterable[Path]) -> str | None:
    """Whether an earlier step of this run built something that this one reads."""
    recorded = [str(entry.get("reference", "")) for entry in manifest.inputs]
    sources = [_fixed_part(text) for text in [*_texts(step.recipe), *recorded] if text]
    for out in rebuilt:
        built = _absolute(out)
        if any(source.is_relative_to(built) or built.is_relative_to(source) for source in sources):
            return f"{out} is new"
    return None


def _damaged(out: Path, manifest: Manifest) -> str | None:
    """Whether a file or member that the manifest lists is gone or has another size (`verify` reads every
    byte)."""
    for name in manifest.notes.get("members", []):
        if not (out / name).is_dir():
            return f"{name} is missing"
    for name, entry in manifest.outputs.get("files", {}).items():
        path = out / name
        if not path.is_file() or path.stat().st_size != entry.get("bytes"):
            return f"{name} is missing or has another size"
    return None


def _changed_given(step: Step, manifest: Manifest) -> str | None:
    """What the options name, data or a scorer or a file, that is no longer what the output was made with."""
    now = given_by(recipe_to_json(step.recipe))
    changed = [key for key in sorted({*now, *manifest.given}) if now.get(key) != manifest.given.get(key)]
    if not changed:
        return None
    recorded = "changed" if all(key in manifest.given for key in changed) else "not as recorded"
    return f"the content of {', '.join(changed)}: {recorded}"


def _changed_inputs(step: Step, out: Path, manifest: Manifest) -> str | None:
    """Which input has other weights than the output was made from, or is new among the references."""
    try:
        for entry in manifest.inputs:
            if content_of_input(out, entry, ALONE) != entry.get("content"):
                return f"{entry.get('reference')} changed"
            if companions_of_input(out, entry) != entry.get("companions"):
                return f"the files beside the weights of {entry.get('reference')} changed"
        return _new_input(step, manifest)
    except SoupkitError as error:
        return error.message


def _new_input(step: Step, manifest: Manifest) -> str | None:
    """Whether the references name a checkpoint that the output does not record.

    With `top`, most are left out on purpose; then only those made after the output count.
    """
    recorded = {entry.get("reference") for entry in manifest.inputs}
    refs = step.recipe.refs if isinstance(step.recipe, Refers) else ()
    some = isinstance(step.recipe, Narrows) and step.recipe.top is not None
    for checkpoint in open_references(refs) if refs and step.command != "convert" else []:
        if checkpoint.reference not in recorded:
            made = Manifest.read_if_any(checkpoint.directory) if some else None
            if made is None or made.created > manifest.created:
                return f"{checkpoint.reference} is new"
    return None


def _texts(recipe: Recipe) -> Iterator[str]:
    """Every string, path and list of strings in a recipe, but its output: what may be a path that it
    reads."""
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        if field.name != "out":
            yield from (
                str(item) for item in (value if isinstance(value, tuple) else [value]) if _is_text(item)
            )


def _is_text(value: object) -> bool:
    return isinstance(value, str | Path)


def _fixed_part(reference: str) -> Path:
    """A path up to its first wildcard."""
    parts = _absolute(Path(reference)).parts
    fixed = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return Path(*parts[:fixed])


def _absolute(path: Path) -> Path:
    return path.expanduser().resolve()


def _check_expectations(steps: Sequence[Step], results: Json, report: Report) -> None:
    """Raises ExpectationError for what is not met, UnfoundedError for what cannot be evaluated."""
    failures, nonsense = [], []
    for step in steps:
        for condition in step.expect:
            seen = condition.failure(results, own=step.name)
            if unfounded := condition.unfounded(results, own=step.name):
                nonsense.append(f"step {step.name}: expect {condition.text!r}: {unfounded}")
            elif seen is None:
                report(Told(f"expected of {step.name}: {condition.text}: met"))
            else:
                failures.append(f"step {step.name}: expected {condition.text}, but {seen}")
    if nonsense:
        raise UnfoundedError(
            "\n".join([*nonsense, *failures]), hint="name a number of the step's result (--json shows it)"
        )
    if failures:
        raise ExpectationError("\n".join(failures))
