"""Who scores the mixtures of a search: held-out data under a task's metric, or an external command."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeGuard

import numpy as np

from soupkit.asked import Judges, Remembers, Tests, Weighs
from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.output import temporary_sibling
from soupkit.checkpoint.source import Source
from soupkit.command_identity import command_identity
from soupkit.errors import TaskError
from soupkit.events import Report, Told, silent
from soupkit.identity import digest, files_identity, tree_identity
from soupkit.jsons import Json
from soupkit.merge.mixture import Mixture
from soupkit.metrics import metric_of
from soupkit.remembered import Remembered
from soupkit.soup.greedy import Bar
from soupkit.stages.inputs.seen import check_seen
from soupkit.stages.outputs.soup import Ingredients, write_soup
from soupkit.stages.scoring.scoring import REFRESHING, SoupTask, contents_of
from soupkit.task.external import CommandScorer
from soupkit.task.score import Score, scores_to_json
from soupkit.world import World


class HeldOutScorer:
    """Scores mixtures on held-out data; a count metric's trial ends once the bar is out of reach.

    The examples that the current soup gets wrong, or nearly wrong, come first, so a hopeless trial ends soon;
    the verdict is the same as without early stop, since only trials that cannot reach the bar end early.
    """

    def __init__(self, soup: SoupTask, *, metric: str, early_stop: bool) -> None:
        self.soup, self.ingredients = soup, soup.ingredients
        self._metric = metric
        self._early_stop = early_stop

    def of(self, ingredients: Ingredients) -> HeldOutScorer:
        """The same of other ingredients, views of these: data and model stay open."""
        soup = SoupTask(ingredients, self.soup.recipe, self.soup.world, task=self.soup.task)
        return HeldOutScorer(soup, metric=self._metric, early_stop=self._early_stop)

    def __call__(self, mixture: Mixture, bar: Bar | None) -> Score:
        self.soup.load(mixture)
        task = self.soup.task
        if bar is None or bar.score.num_right is None:
            return task.score(task.held_out, self._metric)
        order = None if bar.score.margins is None else np.argsort(bar.score.margins, kind="stable")
        needed = bar.score.num_right + (bar.accept == "gt") if self._early_stop else None
        return task.trial(task.held_out, metric=self._metric, order=order, needed_right=needed)

    def of_written(self, checkpoint: Checkpoint) -> Score:
        """The score of a checkpoint as it lies there."""
        self.soup.task.load(checkpoint)
        return self.soup.task.score(self.soup.task.held_out, self._metric)

    def measure(self, checkpoint: Checkpoint) -> Json:
        """All metrics of a written checkpoint, as a manifest holds them."""
        recipe = self.soup.recipe
        return self.soup.measure(checkpoint, test=isinstance(recipe, Tests) and recipe.test)

    def fingerprint(self) -> str:
        """What a remembered score depends on beside the weights: model, data and metric, and how soups are
        made."""
        recipe = self.soup.recipe
        batch_norm = [recipe.bn, recipe.bn_batches, recipe.batch_size] if recipe.bn in REFRESHING else []
        return digest(
            self.soup.task.fingerprint(), self._metric, _how_made(self.ingredients, recipe), batch_norm
        )

    def beside(self, _rows: Sequence[int]) -> object:
        """What it reads of some ingredients beside their weights: nothing, the model is the task's."""
        return None


class WrittenScorer:
    """Writes each mixture into a temporary checkpoint directory and lets an external command score it."""

    soup = None

    def __init__(
        self, command: CommandScorer, ingredients: Ingredients, recipe: Judges, world: World
    ) -> None:
        self.ingredients = ingredients
        self._command = command
        self._recipe = recipe
        self._world = world

    def of(self, ingredients: Ingredients) -> WrittenScorer:
        """The same of other ingredients, views of these."""
        return WrittenScorer(self._command, ingredients, self._recipe, self._world)

    def __call__(self, mixture: Mixture, _bar: Bar | None) -> Score:
        return self._world.in_main(lambda: self._score(mixture))

    def _score(self, mixture: Mixture) -> Score:
        rows = mixture.used()
        only = self.ingredients.checkpoints[rows[0]] if len(rows) == 1 else None
        if self._is_as_written(only) and (mixture.matrix[rows[0]] == 1).all():
            return self._command.score(only.fetch())
        with temporary_sibling(self._recipe.out) as directory:
            soup = directory / "soup"
            write_soup(
                self.ingredients,
                mixture,
                dataclasses.replace(self._recipe, sha256=False),
                self._world.alone(),
                silent,
                command="trial",
                out=soup,
            )
            return self._command.score(soup)

    def _is_as_written(self, checkpoint: Source | None) -> TypeGuard[Checkpoint]:
        """Whether a single checkpoint lies there in the dtypes that soups of it are scored and written in."""
        if not isinstance(checkpoint, Checkpoint):
            return False
        slots = self.ingredients.plan.slots.items()
        return checkpoint.path.is_dir() and all(
            checkpoint.slots[name].dtype == slot.dtype for name, slot in slots
        )

    def of_written(self, checkpoint: Checkpoint) -> Score:
        """The command's score of a checkpoint as it lies there."""
        return self._command.score(checkpoint.fetch())

    def measure(self, checkpoint: Checkpoint) -> Json:
        """The command's score of a written checkpoint, as a manifest holds it."""
        score = self._command.score(checkpoint.directory)
        return {"held_out": scores_to_json({score.metric: score})}

    def fingerprint(self) -> str:
        """What a remembered score depends on beside the directory: what the command is, and how soups are
        made."""
        recipe = self._recipe
        return digest(
            command_identity(self._command.command), recipe.metric, _how_made(self.ingredients, recipe)
        )

    def beside(self, rows: Sequence[int]) -> object:
        """The files beside the weights in the directory that the command is given."""
        written = files_identity((path.name, path) for path in self.ingredients.model.companions)
        only = self.ingredients.checkpoints[rows[0]] if len(rows) == 1 else None
        if not self._is_as_written(only):
            return written
        weights = {file.resolve() for file in only.files}
        return [written, tree_identity(only.fetch(), keep=lambda path: path.resolve() not in weights)]


Judge = HeldOutScorer | WrittenScorer


def open_judge(
    ingredients: Ingredients, recipe: Judges, world: World, report: Report, *, early_stop: bool = False
) -> Judge:
    """Who judges mixtures under a recipe with ScoreOptions; its `soup` is the task, None with a command.

    Warns of ingredients that have seen the examples. Raises TaskError where it cannot work.
    """
    if recipe.score_command:
        command = CommandScorer(
            recipe.score_command,
            metric=recipe.metric,
            direction=recipe.direction,
            timeout=recipe.score_timeout,
        )
        return WrittenScorer(command, ingredients, recipe, world)
    soup = SoupTask(ingredients, recipe, world)
    check_seen(ingredients.checkpoints, soup.task.splits, recipe, report)
    return HeldOutScorer(soup, metric=metric_of(recipe), early_stop=early_stop)


def score_entry(score: Score) -> Json:
    """A score as the notes of a manifest hold it: with the name of its metric."""
    return {"metric": score.metric, **scores_to_json({score.metric: score})[score.metric]}


def refuse_refresh(recipe: Judges) -> None:
    """Raise TaskError where a command would score soups without the statistics that are then written."""
    if recipe.score_command and recipe.bn == "refresh":
        hint = "use --bn average with --score-command"
        raise TaskError("--bn refresh needs soupkit's own data and model", hint=hint)


def _how_made(ingredients: Ingredients, recipe: Weighs) -> list[object]:
    """What decides the bits of a soup beside ingredients and coefficients."""
    dtypes = [[name, slot.dtype] for name, slot in ingredients.plan.slots.items()]
    return [recipe.dtype, recipe.integers, recipe.non_finite, recipe.accumulate, dtypes]


class RememberingScorer:
    """Keeps complete scores, so that an interrupted search resumes."""

    def __init__(self, judge: Judge, recipe: Remembers, world: World, report: Report) -> None:
        self._world = world
        self._judge = judge
        self._contents = contents_of(judge.ingredients.checkpoints, world, report)
        self._memory = Remembered.of("scores", recipe)
        self._fingerprint = world.in_main(judge.fingerprint)
        self._beside: dict[int | None, object] = {}
        self.num_remembered = 0

    def __call__(self, mixture: Mixture, bar: Bar | None) -> Score:
        key = self._world.in_main(lambda: self._key(mixture))
        score = self._world.in_main(lambda: self._read(key))  # the ranks must agree on what is known
        if score is not None:
            self.num_remembered += 1
            return score
        score = self._judge(mixture, bar)
        if not score.stopped and self._world.is_main:
            remember_score(self._memory, key, score)
        return score

    def tell(self, report: Report) -> None:
        """Say how many scores were known, and if they could not be kept."""
        for text in self._memory.said(self.num_remembered, "scores"):
            report(Told(text))

    def _key(self, mixture: Mixture) -> str:
        used = mixture.used()
        given = [self._contents[k] for k in used]  # --integers first takes those of the first that is given
        return self._memory.key_of(self._contents, mixture, self._fingerprint, [given, self._files_of(used)])

    def _files_of(self, used: Sequence[int]) -> object:
        """What the judge sees beside the weights, looked at once."""
        which = used[0] if len(used) == 1 else None
        if which not in self._beside:
            self._beside[which] = self._judge.beside(used)
        return self._beside[which]

    def _read(self, key: str) -> Score | None:
        return remembered_score(self._memory, key)


def remember_score(memory: Remembered, key: str, score: Score) -> None:
    """Keep a score with its margins."""
    values = {field.name: getattr(score, field.name) for field in dataclasses.fields(score)}
    margins = values.pop("margins")
    memory.write(key, values, {} if margins is None else {"margins": margins})


def remembered_score(memory: Remembered, key: str) -> Score | None:
    """A score that was kept; None where there is none, or one of another form."""
    found = memory.read(key)
    try:
        return None if found is None else Score(**found[0], margins=found[1].get("margins"))
    except TypeError:
        return None


def write_judged(judge: Judge, world: World, write: Callable[[World], Json]) -> Json:
    """What rank 0 writes by itself while the others wait; every rank returns the manifest."""

    def alone() -> Json:
        if judge.soup is None:
            return write(world.alone())
        with judge.soup.by_itself() as own:
            return write(own)

    return world.in_main(alone)
