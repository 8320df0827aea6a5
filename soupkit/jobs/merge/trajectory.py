"""`merge trajectory`: averages along one training in place of a learning-rate decay.

Every window and shape is a mixture; all are written from one read of the checkpoints, scored as they are
written, and the best on held-out stays, or all do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.output import OutputDirectory
from soupkit.errors import RecipeError
from soupkit.events import Report, Table, Told, Warned, Wrote
from soupkit.jsons import Json
from soupkit.manifest import Manifest
from soupkit.merge.mixture import Mixture, keep_batch_norm, subset_mean, weighted
from soupkit.merge.writer import Streamed
from soupkit.metrics import Direction, rank_key
from soupkit.recipe.averages import MergeTrajectory
from soupkit.recipe.parse import recipe_to_json
from soupkit.report.tables import score_rows, score_table, split_label
from soupkit.report.trajectory import coefficient_plot, window_plot
from soupkit.stages.inputs.candidates import Candidate, coefficients_table, plan_candidates
from soupkit.stages.inputs.trajectory import Member, open_trajectory
from soupkit.stages.outputs.candidates import keep_one, write_candidates
from soupkit.stages.outputs.described import describe_inputs
from soupkit.stages.outputs.optimizer import check_states, write_state
from soupkit.stages.outputs.soup import Ingredients, Record, describe_soup, prepare, show_plan
from soupkit.stages.scoring.direction import decide
from soupkit.world import World

if TYPE_CHECKING:
    from soupkit.stages.scoring.judges import Judge
    from soupkit.stages.scoring.written import WrittenScores
    from soupkit.task.score import Score

COMMAND = "merge trajectory"


def merge_trajectory(recipe: MergeTrajectory, world: World, report: Report) -> Json:
    """Write the best candidate on held-out, the only one, or every one."""
    scored = bool(recipe.data or recipe.score_command)
    members = open_trajectory(recipe.refs, report, stream=recipe.stream)
    candidates = plan_candidates(recipe, members)
    if len(candidates) > 1 and recipe.write == "best" and not scored:
        raise RecipeError(
            f"{len(candidates)} windows and shapes, and nothing says which is best",
            hint="give --data (or --score-command) to choose on held-out data, or --write all",
        )
    used = range(min(each.rows[0] for each in candidates), max(each.rows[-1] for each in candidates) + 1)
    members = [members[row] for row in used]
    candidates = [
        dataclasses.replace(each, rows=range(each.rows[0] - used[0], each.rows[-1] + 1 - used[0]))
        for each in candidates
    ]
    better = decide(recipe, report) if scored else None
    ingredients = prepare([member.checkpoint for member in members], recipe, report)
    if recipe.optimizer:
        check_states(ingredients.checkpoints)
    report(coefficients_table(candidates, members))
    if recipe.dry_run:
        listed = [{"reference": each.checkpoint.reference, "step": each.step} for each in members]
        plans = {each.name: each.to_json() for each in candidates}
        return show_plan(ingredients, recipe, world, report) | {"members": listed, "candidates": plans}
    return _Writing(ingredients, members, candidates, recipe, world, report, better=better).write()


class _Writing:
    """Writes the candidates, scores them where something scores, and leaves one or all."""

    def __init__(
        self,
        ingredients: Ingredients,
        members: Sequence[Member],
        candidates: Sequence[Candidate],
        recipe: MergeTrajectory,
        world: World,
        report: Report,
        *,
        better: Direction | None,
    ) -> None:
        self.ingredients, self.members, self.recipe = ingredients, members, recipe
        self.candidates = {each.name: each for each in candidates}
        self.mixtures = {name: self._mixture(each) for name, each in self.candidates.items()}
        self.world, self.report, self.better = world, report, better
        self.judge: Judge | None = None
        if better is not None:
            from soupkit.stages.scoring.judges import open_judge, refuse_refresh

            refuse_refresh(recipe)
            self.judge = open_judge(ingredients, recipe, world, report)

    def _mixture(self, candidate: Candidate) -> Mixture:
        names, rows = self.ingredients.names, list(candidate.rows)
        if candidate.shape == "uniform":
            mixture = subset_mean(names, rows)
        else:
            column = np.zeros(len(names))
            column[rows] = candidate.values
            mixture = weighted(names, column.tolist())
        if self.recipe.bn != "last":
            return mixture
        return keep_batch_norm(mixture, rows[-1], self.ingredients.agreement.slots)

    def write(self) -> Json:
        """The output, whole or not at all; returns its manifest."""
        recipe, names = self.recipe, list(self.candidates)
        size = self.ingredients.plan.num_bytes * len(names)
        inputs = [file for checkpoint in self.ingredients.checkpoints for file in checkpoint.files]
        with OutputDirectory(
            recipe.out, overwrite=recipe.overwrite, num_bytes=size, inputs=inputs
        ) as directory:
            streamed = write_candidates(
                directory, self.ingredients, self.mixtures, recipe, self.world, self.report
            )
            scores, last = self._scores(directory, streamed)
            notes = self._notes(scores, last)
            if recipe.write == "best":
                best = self._best_of(scores)
                self._compare(best, scores, last)
                keep_one(directory, best, names)
                manifest = self._finish(directory, best, streamed[best], notes, out=recipe.out, scores=scores)
            else:
                manifest = self._finish_all(directory, streamed, notes, scores)
        self.report(Wrote(recipe.out, size if recipe.write == "all" else self.ingredients.plan.num_bytes))
        if manifest.metrics and recipe.write == "best":
            self.report(
                score_table(COMMAND, score_rows(manifest.notes["best"], manifest.metrics, manifest.notes))
            )
        return manifest.to_json()

    def _scores(
        self, directory: Path, streamed: dict[str, Streamed]
    ) -> tuple[dict[str, Score], Score | None]:
        """The score of each candidate, and of the last checkpoint; what is refreshed is known anew."""
        if self.judge is None:
            return {}, None
        from soupkit.stages.scoring.written import WrittenScores

        refresh = self.recipe.bn == "refresh"
        scorer: WrittenScores = WrittenScores(
            self.judge, self.recipe, self.world, self.report, refresh=refresh
        )
        scores = {}
        for name in self.candidates:
            scores[name], streamed[name] = scorer.candidate(directory / name, streamed[name])
        row, contents = len(self.members) - 1, streamed[name].inputs
        last = self.members[row].checkpoint
        found = scorer.score("last checkpoint", last, contents[row], rows=(row,))
        scorer.tell()
        self.report(self._table(scores, found))
        return scores, found

    def _best_of(self, scores: Mapping[str, Score]) -> str:
        if self.better is None:
            return next(iter(self.candidates))
        better = self.better
        return min(scores, key=lambda name: rank_key(scores[name].value, better))

    def _compare(self, best: str, scores: Mapping[str, Score], last: Score | None) -> None:
        """A search says when it found nothing better than what there was."""
        if last is None or self.better is None:
            return
        ours = scores[best].value
        if rank_key(ours, self.better) > rank_key(last.value, self.better):
            self.report(
                Warned(
                    f"no average is better on held-out than the last checkpoint: {last.metric} {ours:.4g} of "
                    f"{best}, {last.value:.4g} of {self.ingredients.names[-1]}"
                )
            )

    def _finish(
        self,
        directory: Path,
        name: str,
        streamed: Streamed,
        notes: Json,
        *,
        out: Path,
        scores: Mapping[str, Score],
    ) -> Manifest:
        """Optimizer state, metrics, plots, manifest and card of one candidate whose weights are there."""
        recipe, candidate = self.recipe, self.candidates[name]
        if recipe.optimizer:
            written = write_state(directory, self.ingredients.checkpoints, self.mixtures[name])
            self.report(Told(f"training can go on: {', '.join(written)}"))
        metrics = self.judge.measure(Checkpoint(directory, reference=str(out))) if self.judge else {}
        if recipe.plots and out == recipe.out:
            self._draw(directory, scores, notes)
        return describe_soup(
            directory,
            self.ingredients,
            self.mixtures[name],
            streamed,
            recipe,
            command=COMMAND,
            record=Record(notes={"best": name, **candidate.to_json(), **notes}),
            metrics=metrics,
            out=out,
        )

    def _finish_all(
        self, directory: Path, streamed: Mapping[str, Streamed], notes: Json, scores: Mapping[str, Score]
    ) -> Manifest:
        written = {
            name: self._finish(
                directory / name, name, streamed[name], {}, out=self.recipe.out / name, scores=scores
            )
            for name in self.candidates
        }
        if self.recipe.plots:
            self._draw(directory, scores, notes)
        contents = next(iter(streamed.values())).inputs
        manifest = Manifest(
            command=COMMAND,
            recipe=recipe_to_json(self.recipe),
            inputs=describe_inputs(self.ingredients.checkpoints, self.recipe.out, contents),
            outputs={name: each.outputs for name, each in written.items()},
            metrics={name: each.metrics for name, each in written.items()},
            notes={"members": list(written), **notes},
        )
        manifest.write(directory)
        return manifest

    def _notes(self, scores: Mapping[str, Score], last: Score | None) -> Json:
        if self.judge is None or last is None:
            return {}
        from soupkit.stages.inputs.seen import fitted_on
        from soupkit.stages.scoring.judges import score_entry

        chosen = len(scores) > 1 and self.recipe.write == "best"
        return {
            "scores": {name: score_entry(score) for name, score in scores.items()},
            "last_checkpoint": {"reference": self.ingredients.names[-1], **score_entry(last)},
            **(fitted_on(self.judge.soup) if chosen else {}),
        }

    def _draw(self, directory: Path, scores: Mapping[str, Score], notes: Json) -> None:
        lines: dict[str, dict[str, tuple[Sequence[float], Sequence[float]]]] = {}
        points: dict[str, list[tuple[str, float, float | None]]] = {}
        for name, each in self.candidates.items():
            lines.setdefault(each.window, {})[each.shape] = (each.steps.tolist(), each.values.tolist())
            if name in scores:
                point = (each.window, scores[name].value, scores[name].standard_error)
                points.setdefault(each.shape, []).append(point)
        coefficient_plot(directory / "coefficients.png", lines)
        if points:
            last = notes["last_checkpoint"]
            label = f"{last['metric']}, {self._split(scores)}"
            window_plot(directory / "windows.png", points, last=last["value"], ylabel=label)

    def _split(self, scores: Mapping[str, Score]) -> str:
        """What the scores are of, and whether they chose."""
        chose = len(scores) > 1 and self.recipe.write == "best"
        return split_label("held_out", mark="selected on" if chose else None)

    def _table(self, scores: Mapping[str, Score], last: Score) -> Table:
        rows = [
            (each.window, each.shape, len(each.rows), *_cells(scores[name]))
            for name, each in self.candidates.items()
        ]
        columns = ("window", "shape", "checkpoints", "metric", self._split(scores), "± s.e.", "n")
        return Table("trajectory", columns, (*rows, ("last checkpoint", "", 1, *_cells(last))))


def _cells(score: Score) -> tuple[str, float, float | None, int | None]:
    return score.metric, score.value, score.standard_error, score.num_examples
