"""Several soups of the same ingredients: written from one read of them, scored as they are written, one kept
or all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from soupkit.asked import Weighs
from soupkit.checkpoint.config.companions import write_companions
from soupkit.checkpoint.tensors import TensorFiles
from soupkit.events import Advanced, Finished, Report, Started
from soupkit.merge.mixture import Mixture
from soupkit.merge.stream import stream_all
from soupkit.merge.writer import Streamed
from soupkit.stages.inputs.download import download
from soupkit.stages.outputs.soup import Ingredients, stream_options, warn_of_streamed
from soupkit.world import World


def write_candidates(
    directory: Path,
    ingredients: Ingredients,
    mixtures: Mapping[str, Mixture],
    recipe: Weighs,
    world: World,
    report: Report,
) -> dict[str, Streamed]:
    """Write the weights of each mixture, and what travels with them, into DIRECTORY/NAME: one read for
    all."""
    download(ingredients.checkpoints, report)
    plan = ingredients.plan
    for name in mixtures:
        (directory / name).mkdir()
        write_companions(ingredients.model, directory / name, plan.slots)
    report(Started("merging", plan.num_bytes, "bytes"))
    with ExitStack() as stack:
        sinks = [stack.enter_context(TensorFiles(directory / name, plan)) for name in mixtures]
        found = stream_all(
            ingredients.checkpoints,
            list(zip(mixtures.values(), sinks, strict=True)),
            slots=plan.slots,
            options=stream_options(recipe, world),
            advance=lambda size: report(Advanced("merging", size)),
        )
    report(Finished("merging"))
    warn_of_streamed(found[0], ingredients, report)
    return dict(zip(mixtures, found, strict=True))


def keep_one(directory: Path, name: str, names: Sequence[str]) -> None:
    """Put what DIRECTORY/NAME holds into the directory itself, and remove the other candidates."""
    for path in (directory / name).iterdir():
        path.rename(directory / path.name)
    for each in names:
        shutil.rmtree(directory / each)
