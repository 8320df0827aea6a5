"""From a mixture to an output directory: the one way in which soupkit writes a soup."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from soupkit.asked import Merges, Streams, Sums, Weighs
from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.compatible import Agreement, check_compatible
from soupkit.checkpoint.config.companions import write_companions
from soupkit.checkpoint.dtypes import FLOATING, LONG_NAMES, Array
from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.header import Slot
from soupkit.checkpoint.hub.ranges import NUM_READERS
from soupkit.checkpoint.output import OutputDirectory, check_output
from soupkit.checkpoint.reference import open_references
from soupkit.checkpoint.source import Source
from soupkit.checkpoint.tensors import Plan, TensorFiles, parse_bytes, plan_files
from soupkit.checkpoint.views.view import checkpoint_of
from soupkit.events import Advanced, Finished, Report, Started, Told, Warned, Wrote
from soupkit.jsons import Json, JsonView
from soupkit.manifest import Manifest
from soupkit.merge.mixture import Mixture, uniform
from soupkit.merge.policy import Sink, check_made
from soupkit.merge.stream import stream
from soupkit.merge.writer import CHUNK, MOST_THREADS, Streamed, StreamOptions
from soupkit.recipe.parse import recipe_to_json
from soupkit.report.card import model_card
from soupkit.report.tables import amounts, tell_plan
from soupkit.stages.inputs.agreed import warn_of
from soupkit.stages.inputs.download import download
from soupkit.stages.outputs.described import describe_inputs, describe_outputs
from soupkit.world import World

Engine = Callable[[Sink, StreamOptions, Callable[[int], None]], Streamed]
"""Writes every planned tensor to a sink, and tells its progress in bytes."""


@dataclass(frozen=True)
class Ingredients:
    """Opened checkpoints that agree with each other, and what will be written of them."""

    checkpoints: Sequence[Source]
    agreement: Agreement
    plan: Plan
    model: Source
    """Whose configuration and tokenizer go with the output."""

    @property
    def names(self) -> list[str]:
        return [checkpoint.reference for checkpoint in self.checkpoints]


@dataclass(frozen=True)
class Record:
    """What a search adds to the manifest of its soup."""

    trace: Sequence[JsonView] = ()
    notes: JsonView = field(default_factory=dict)


def open_ingredients(recipe: Merges, report: Report) -> Ingredients:
    """Open what a merge recipe refers to and check everything that headers can tell, the output included."""
    return prepare(open_references(recipe.refs, stream=recipe.stream), recipe, report)


def prepare(checkpoints: Sequence[Source], recipe: Weighs, report: Report) -> Ingredients:
    """Check opened checkpoints against each other and plan the files of their soup."""
    agreement = check_compatible(checkpoints, mismatch=recipe.mismatch)
    return plan_soup(agreement, checkpoints, recipe, report, model=checkpoints[0])


def plan_soup(
    agreement: Agreement, checkpoints: Sequence[Source], recipe: Weighs, report: Report, *, model: Source
) -> Ingredients:
    """Plan the files of a soup of checkpoints that agree; the output takes `model`'s configuration and
    tokenizer."""
    warn_of(agreement, report)
    for each in checkpoints:
        tell_how_read(each, report)
    if agreement.mixed and recipe.dtype == "auto":
        report(
            Told(f"{len(agreement.mixed)} tensors have mixed dtypes; the wider is written (--dtype chooses)")
        )
    plan = plan_files(
        _with_dtype(agreement.slots, recipe.dtype),
        file_name=_file_name(model),
        max_shard_bytes=parse_bytes(recipe.max_shard_size),
        metadata=_metadata(model, agreement),
        parts=checkpoint.parts if (checkpoint := checkpoint_of(model)) else None,
    )
    inputs = [path for checkpoint in checkpoints for path in checkpoint.files]
    check_output(recipe.out, overwrite=recipe.overwrite, num_bytes=plan.num_bytes, inputs=inputs)
    return Ingredients(checkpoints, agreement, plan, model)


def tell_how_read(source: Source, report: Report) -> None:
    """Tell what was chosen in a checkpoint of another program."""
    checkpoint = checkpoint_of(source)
    for note in checkpoint.notes if checkpoint else ():
        report(Told(f"{source.reference}: {note}"))


def _with_dtype(slots: Mapping[str, Slot], dtype: str) -> dict[str, Slot]:
    if dtype == "auto":
        return dict(slots)
    return {
        name: slot._replace(dtype=LONG_NAMES[dtype]) if slot.dtype in FLOATING else slot
        for name, slot in slots.items()
    }


def _file_name(model: Source) -> str:
    open_clip = bool(model.files) and model.files[0].name.startswith("open_clip")
    return "open_clip_model.safetensors" if open_clip else "model.safetensors"


def _metadata(model: Source, agreement: Agreement) -> dict[str, str]:
    """Keep `format` and the ties; other metadata speaks of the ingredient, not of the soup."""
    checkpoint = checkpoint_of(model)
    return {"format": checkpoint.metadata.get("format", "pt") if checkpoint else "pt", **agreement.ties}


def stream_options(recipe: Sums, world: World) -> StreamOptions:
    """The engine's options out of a recipe with WeightOptions."""
    return StreamOptions(recipe.integers, recipe.non_finite, recipe.accumulate, _threads(recipe, world))


def _threads(recipe: object, world: World) -> int:
    """Over a network more readers only evict each other's buffers."""
    return (
        min(world.num_threads, NUM_READERS)
        if isinstance(recipe, Streams) and recipe.stream
        else world.num_threads
    )


def write_soup(
    ingredients: Ingredients,
    mixture: Mixture | Engine,
    recipe: Weighs,
    world: World,
    report: Report,
    *,
    command: str,
    record: Record = Record(),
    replaced: Mapping[str, Array] | None = None,
    measure: Callable[[Checkpoint], JsonView] | None = None,
    illustrate: Callable[[Path], None] | None = None,
    out: Path | None = None,
) -> Json:
    """Write the soup as a checkpoint directory with its manifest and model card; returns the manifest.

    mixture: the coefficients, or what else makes the tensors (then the command and its recipe are the whole
    record). replaced: tensors outside the span of the ingredients (refreshed batch-norm statistics), written
    as they are. measure: scores the written checkpoint before it is published; its metrics go into the
    manifest. illustrate: draws plots into the directory.
    Raises OutputError, CheckpointError, CompatibilityError; then nothing is left behind.
    """
    out = out or recipe.out
    download(ingredients.checkpoints, report)
    files = [path for checkpoint in ingredients.checkpoints for path in checkpoint.files]
    with OutputDirectory(
        out, overwrite=recipe.overwrite, num_bytes=ingredients.plan.num_bytes, inputs=files
    ) as directory:
        write_companions(ingredients.model, directory, ingredients.plan.slots)
        streamed = _stream_into(directory, ingredients, mixture, recipe, world, report, replaced or {})
        warn_of_streamed(streamed, ingredients, report, counted=command != "merge passthrough")
        metrics = measure(Checkpoint(directory, reference=str(out))) if measure else {}
        if illustrate:
            illustrate(directory)
        manifest = describe_soup(
            directory,
            ingredients,
            mixture,
            streamed,
            recipe,
            command=command,
            record=record,
            metrics=metrics,
            out=out,
        )
    report(Wrote(out, ingredients.plan.num_bytes))
    return manifest.to_json()


def describe_soup(
    directory: Path,
    ingredients: Ingredients,
    mixture: Mixture | Engine,
    streamed: Streamed,
    recipe: Weighs,
    *,
    command: str,
    record: Record,
    metrics: JsonView,
    out: Path,
) -> Manifest:
    """Write the manifest and the model card of a soup whose weights lie in `directory` and will be `out`."""
    manifest = Manifest(
        command=command,
        recipe=recipe_to_json(recipe),
        inputs=describe_inputs(ingredients.checkpoints, out, streamed.inputs, sha256=recipe.sha256),
        outputs=describe_outputs(directory, streamed.output, sha256=recipe.sha256),
        metrics=dict(metrics),
        mixture=mixture.to_json() if isinstance(mixture, Mixture) else None,
        trace=[dict(step) for step in record.trace],
        notes={**record.notes, **ingredients.agreement.notes},
    )
    manifest.write(directory)
    (directory / "README.md").write_text(model_card(manifest, out, ingredients.model), encoding="utf-8")
    return manifest


def _stream_into(
    directory: Path,
    ingredients: Ingredients,
    mixture: Mixture | Engine,
    recipe: Weighs,
    world: World,
    report: Report,
    replaced: Mapping[str, Array],
) -> Streamed:
    """Write the weights."""
    plan = ingredients.plan
    engine = _mixing(ingredients, mixture) if isinstance(mixture, Mixture) else mixture
    report(Started("merging", plan.num_bytes, "bytes"))
    with TensorFiles(directory, plan) as files:
        streamed = engine(
            files, stream_options(recipe, world), lambda size: report(Advanced("merging", size))
        )
        for name, values in replaced.items():
            if recipe.non_finite == "error" and plan.slots[name].dtype in FLOATING:
                check_made(name, values, values, by="what was re-estimated from data")
            files.write(name, 0, values.reshape(-1))
    report(Finished("merging"))
    if replaced:
        streamed.output = content_hash(Checkpoint(directory), threads=world.num_threads)
    return streamed


def _mixing(ingredients: Ingredients, mixture: Mixture) -> Engine:
    """Only ingredients with a coefficient are read; the others' hashes are computed apart."""
    rows = mixture.used()

    def engine(sink: Sink, options: StreamOptions, advance: Callable[[int], None]) -> Streamed:
        streamed = stream(
            [ingredients.checkpoints[row] for row in rows],
            mixture.select(rows),
            sink,
            slots=ingredients.plan.slots,
            options=options,
            advance=advance,
        )
        known = dict(zip(rows, streamed.inputs, strict=True))
        streamed.inputs = [
            known[row] if row in known else content_hash(checkpoint, threads=options.threads)
            for row, checkpoint in enumerate(ingredients.checkpoints)
        ]
        return streamed

    return engine


def copying(ingredients: Ingredients) -> Engine:
    """Writes the one ingredient as it is read. A mixture would be recorded as one that can be made again from
    it."""
    assert len(ingredients.checkpoints) == 1
    return _mixing(ingredients, uniform(ingredients.names))


def warn_of_streamed(
    streamed: Streamed, ingredients: Ingredients, report: Report, *, counted: bool = True
) -> None:
    """Tell of integers that differ, and warn of ingredients that are the same."""
    if streamed.differing_integers:
        names = streamed.differing_integers
        report(
            Told(
                f"{len(names)} integer tensors differ between ingredients, for example {names[0]} (see "
                f"--integers)"
            )
        )
    seen: dict[str, str] = {}
    for content, name in zip(streamed.inputs, ingredients.names, strict=True):
        if content in seen and counted:
            report(Warned(f"{name} holds exactly the same weights as {seen[content]}: it counts twice"))
        seen.setdefault(content, name)


def show_plan(ingredients: Ingredients, recipe: Weighs, world: World, report: Report) -> Json:
    """What --dry-run prints: everything is checked by now and nothing is written."""
    values = plan_values(ingredients, recipe, world)
    tell_plan(amounts(values), report, nothing="was written")
    return {"plan": values}


def plan_values(ingredients: Ingredients, recipe: Weighs, world: World) -> Json:
    """Counts and bytes of what is read and written, the files, and the free disk."""
    plan = ingredients.plan
    to_read = sum(checkpoint.num_bytes for checkpoint in ingredients.checkpoints)
    parent = next(path for path in (recipe.out.resolve(), *recipe.out.resolve().parents) if path.exists())
    return {
        "ingredients": len(ingredients.checkpoints),
        "tensors": len(plan.slots),
        "parameters": sum(slot.num_elements for slot in plan.slots.values()),
        "bytes_to_read": to_read,
        "bytes_to_write": plan.num_bytes,
        "files": [file.name for file in plan.files],
        "free_disk": shutil.disk_usage(parent).free,
        "buffer_bytes": min(world.num_threads, MOST_THREADS) * CHUNK * 46,
    }
