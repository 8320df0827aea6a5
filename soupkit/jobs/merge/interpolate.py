"""`merge interpolate` (WiSE-FT)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.output import OutputDirectory
from soupkit.errors import RecipeError
from soupkit.events import Report, Scored, Table, Wrote, silent
from soupkit.jsons import Json, JsonView
from soupkit.manifest import Manifest
from soupkit.merge.mixture import Mixture, interpolate, keep_batch_norm
from soupkit.metrics import Direction, rank_key
from soupkit.recipe.merge import MergeInterpolate
from soupkit.recipe.parse import recipe_to_json
from soupkit.stages.alignment.merges import check_align_options, ingredients_to_merge, replaced_tensors
from soupkit.stages.outputs.described import describe_inputs
from soupkit.stages.outputs.soup import Ingredients, Record, open_ingredients, show_plan, write_soup
from soupkit.stages.scoring.direction import decide
from soupkit.world import World

if TYPE_CHECKING:
    from soupkit.stages.scoring.judges import Judge
    from soupkit.task.score import Score

COMMAND = "merge interpolate"


def merge_interpolate(recipe: MergeInterpolate, world: World, report: Report) -> Json:
    """Write one point of the segment from A to B, the best on held-out data, or every point."""
    check_align_options(recipe)
    ingredients = open_ingredients(recipe, report)
    if len(ingredients.checkpoints) != 2:
        raise RecipeError(f"refs name {len(ingredients.checkpoints)} checkpoints, expected two: A and B")
    scored = bool(recipe.data or recipe.score_command)
    if len(recipe.at) > 1 and recipe.write == "best" and not scored:
        raise RecipeError(
            f"at names {len(recipe.at)} points, and nothing says which is best",
            hint="give --data (or --score-command) to choose on held-out data, or --write all",
        )
    if recipe.bn == "refresh" and not recipe.data:
        raise RecipeError("--bn refresh needs --data", hint="name the data, or use --bn average")
    better = decide(recipe, report) if scored else None
    if recipe.dry_run:
        return show_plan(ingredients, recipe, world, report)
    ingredients, alignment = ingredients_to_merge(ingredients, recipe, world, report)
    points = [_mixture(ingredients, at, recipe) for at in recipe.at]
    write = _Points(ingredients, recipe, world, report, better=better, notes=alignment)
    return write.all(points) if recipe.write == "all" else write.best(points)


def _mixture(ingredients: Ingredients, at: float, recipe: MergeInterpolate) -> Mixture:
    mixture = interpolate(ingredients.names[0], ingredients.names[1], at)
    return keep_batch_norm(mixture, 0, list(ingredients.plan.slots)) if recipe.bn == "keep" else mixture


class _Points:
    """Scores and writes points; the model comes in only when there is data. A point is chosen before it is
    repaired."""

    def __init__(
        self,
        ingredients: Ingredients,
        recipe: MergeInterpolate,
        world: World,
        report: Report,
        *,
        better: Direction | None,
        notes: JsonView,
    ) -> None:
        self.ingredients, self.recipe, self.world, self.report = ingredients, recipe, world, report
        self.notes = notes
        self.better = better
        self.judge: Judge | None = None
        if better is not None:
            from soupkit.stages.scoring.judges import open_judge

            self.judge = open_judge(ingredients, recipe, world, report)
        self.soup = self.judge.soup if self.judge else None

    def best(self, points: Sequence[Mixture]) -> Json:
        """Write the best point (the earlier of equals); the table shows them all."""
        scores = self._scores(points)
        best = self._best_of(scores)
        notes = {"at": self.recipe.at[best], "scores": self._rows(scores)}
        if self.soup and len(points) > 1:
            from soupkit.stages.inputs.seen import fitted_on

            notes |= fitted_on(self.soup)
        return self._write(points[best], self.recipe.out, Record(notes=notes), self.report)

    def all(self, points: Sequence[Mixture]) -> Json:
        """Write every point as OUT/at-X; OUT appears when the last is whole."""
        recipe, names = self.recipe, [f"at-{at:g}" for at in self.recipe.at]
        size = self.ingredients.plan.num_bytes * len(points)
        inputs = [file for checkpoint in self.ingredients.checkpoints for file in checkpoint.files]
        with OutputDirectory(
            recipe.out, overwrite=recipe.overwrite, num_bytes=size, inputs=inputs
        ) as directory:
            scores = self._scores(points)
            manifests = [
                self._write(point, directory / name, Record(notes={"at": at}), silent)
                for point, name, at in zip(points, names, recipe.at, strict=True)
            ]
            contents = [entry["content"] for entry in manifests[0]["inputs"]]
            manifest = Manifest(
                command=COMMAND,
                recipe=recipe_to_json(recipe),
                inputs=describe_inputs(self.ingredients.checkpoints, recipe.out, contents),
                outputs={name: written["outputs"] for name, written in zip(names, manifests, strict=True)},
                metrics={name: written["metrics"] for name, written in zip(names, manifests, strict=True)},
                notes={"members": names, "scores": self._rows(scores)},
            )
            manifest.write(directory)
        self.report(Wrote(recipe.out, size))
        return manifest.to_json()

    def _write(self, point: Mixture, out: Path, record: Record, report: Report) -> Json:
        replaced, notes = replaced_tensors(
            self.ingredients, point, self.recipe, self.world, self.report, soup=self.soup
        )
        measure: Callable[[Checkpoint], JsonView] | None = None
        if soup := self.soup:
            measure = lambda written: soup.measure(written, test=True)  # noqa: E731
        return write_soup(
            self.ingredients,
            point,
            dataclasses.replace(self.recipe, overwrite=self.recipe.overwrite and out == self.recipe.out),
            self.world,
            report,
            command=COMMAND,
            record=dataclasses.replace(record, notes={**record.notes, **self.notes, **notes}),
            replaced=replaced,
            measure=measure,
            out=out,
        )

    def _scores(self, points: Sequence[Mixture]) -> list[Score]:
        if self.judge is None:
            return []
        scores = []
        for at, point in zip(self.recipe.at, points, strict=True):
            score = self.judge(point, None)
            scores.append(score)
            self.report(
                Scored(f"at {at:g}", score.metric, score.value, score.standard_error, score.num_examples)
            )
        if len(scores) > 1:
            columns = ("at", "metric", "held-out", "± s.e.", "n")
            self.report(
                Table("interpolation", columns, tuple(tuple(row.values()) for row in self._rows(scores)))
            )
        return scores

    def _rows(self, scores: Sequence[Score]) -> list[Json]:
        keys = ("metric", "value", "standard_error", "num_examples")
        pairs = zip(self.recipe.at, scores, strict=False)
        return [{"at": at, **{key: getattr(score, key) for key in keys}} for at, score in pairs]

    def _best_of(self, scores: Sequence[Score]) -> int:
        if self.better is None:
            return 0
        better = self.better
        return min(range(len(scores)), key=lambda k: (rank_key(scores[k].value, better), k))
