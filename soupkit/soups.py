"""Soups from Python, with any function as the score.

best = soupkit.soups.greedy(["runs/a", "runs/b"], score=lambda tensors: accuracy(model_with(tensors)))
best.save("soups/greedy")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from soupkit import api
from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.dtypes import Array
from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.output import OutputDirectory
from soupkit.checkpoint.source import name_of
from soupkit.checkpoint.tensors import write_tensors
from soupkit.events import Report, silent
from soupkit.manifest import Manifest
from soupkit.merge.mixture import Mixture
from soupkit.recipe.merge import MergeWeighted
from soupkit.soup.greedy import Bar
from soupkit.soup.greedy import greedy as search
from soupkit.stages.outputs.described import describe_outputs
from soupkit.stages.outputs.soup import Record, prepare, write_soup
from soupkit.task.score import Score
from soupkit.world import World

Tensors = Mapping[str, Array]


@dataclass(frozen=True)
class Soup:
    """A soup that a search found: its coefficients, and what it was found among.

    picks: numbers of the chosen ingredients, in the order in which they were added. score: of the soup;
    singles: of each ingredient alone.
    """

    ingredients: tuple[Tensors, ...]
    mixture: Mixture
    picks: tuple[int, ...]
    score: float
    singles: tuple[float, ...]

    def tensors(self) -> dict[str, Array]:
        """The weights, in memory."""
        return api.combine(self.ingredients, self.mixture)

    def save(self, out: str | Path, *, overwrite: bool = False, report: Report = silent) -> Checkpoint:
        """Write it as a checkpoint directory; `soupkit reproduce` can make a soup of checkpoints again.

        Raises OutputError. Ingredients that are plain dicts leave no references to reproduce it from.
        """
        checkpoints = [each for each in self.ingredients if isinstance(each, Checkpoint)]
        notes = {"picks": [self.mixture.ingredients[pick] for pick in self.picks], "score": self.score}
        if len(checkpoints) < len(self.ingredients):
            return self._save_tensors(Path(out), overwrite, notes)
        coefficients = tuple(float(value) for value in self.mixture.matrix[:, 0])
        recipe = MergeWeighted(
            refs=self.mixture.ingredients, out=Path(out), overwrite=overwrite, coefficients=coefficients
        )
        prepared = prepare(checkpoints, recipe, report)
        record = Record(notes=notes)
        write_soup(prepared, self.mixture, recipe, World(), report, command="merge weighted", record=record)
        return Checkpoint(Path(out))

    def _save_tensors(self, out: Path, overwrite: bool, notes: dict[str, object]) -> Checkpoint:
        with OutputDirectory(out, overwrite=overwrite) as directory:
            tensors = self.tensors()
            write_tensors(directory, tensors)
            outputs = describe_outputs(directory, content_hash(tensors))
            manifest = Manifest(command="soupkit.soups", recipe={}, outputs=outputs, notes=notes)
            manifest.write(directory)
        return Checkpoint(out)


def greedy(
    ingredients: Sequence[api.Source],
    score: Callable[[Tensors], float],
    *,
    direction: Literal["max", "min"] = "max",
    accept: Literal["ge", "gt"] = "ge",
    report: Report = silent,
) -> Soup:
    """The greedy soup (Wortsman et al. 2022, arXiv:2203.05482, Recipe 1) by any score of your own.

    ingredients: references, or tensors by name. score(tensors) → a number, on data that only selects; it is
    called once for each ingredient and once for each trial. direction: which way is better. accept: ge takes
    an ingredient that does not make it worse, as published, gt only one that makes it better. Memory: one set
    of weights.
    """
    opened = tuple(api.open_source(source) for source in ingredients)
    names = [name_of(each, number) for number, each in enumerate(opened)]

    def measure(mixture: Mixture, bar: Bar | None) -> Score:  # noqa: ARG001  (a score of one's own cannot stop early)
        return Score("score", float(score(api.combine(opened, mixture))), None, None)

    found = search(names, measure, direction=direction, accept=accept, report=report)
    singles = tuple(single.value for single in found.singles)
    return Soup(opened, found.mixture, found.picks, found.score.value, singles)
