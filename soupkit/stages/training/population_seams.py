"""What a population in training asks of other rooms: held-out scores, greedy soups, alignment, REPAIR."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy

import numpy as np
from torch import Tensor

from soupkit.align.graph.verify import verify
from soupkit.align.members import align_members, repair_members
from soupkit.errors import AlignError
from soupkit.recipe.population import TrainPopulation
from soupkit.soup.greedy import greedy
from soupkit.stages.alignment.examples import example_inputs, permutations_of
from soupkit.stages.scoring.scoring import training_batches
from soupkit.task.images.task import ImageTask
from soupkit.task.score import Score
from soupkit.task.task import Task
from soupkit.task.weights import to_numpy
from soupkit.train.population.population import Judge, Named, Seams

NUM_CONTROLS = 4


def seams_of(recipe: TrainPopulation, own: ImageTask) -> Seams:
    """The callables that the recipe's method needs; none that it does not."""
    task = own.twin() if recipe.judges or recipe.repair != "off" else None  # no member's is touched
    return Seams(
        judge=_judge(task) if recipe.judges and task else None,
        greedy=_greedy_picks if recipe.judges else None,
        align=_aligner(own, recipe.seed) if recipe.align else None,
        repair=_repairer(task, recipe) if recipe.repair != "off" and task else None,
    )


def _judge(task: Task) -> Judge:
    def judge(tensors: Mapping[str, Tensor], metric: str) -> Score:
        task.load({name: to_numpy(tensor) for name, tensor in tensors.items()})
        return task.score(task.held_out, metric)

    return judge


def _greedy_picks(names: Sequence[str], score: Callable[[np.ndarray], Score]) -> Sequence[int]:
    """The picks of a greedy soup of members: strictly better ones, as in PAPA."""
    found = greedy(
        names, lambda mixture, _bar: score(mixture.coefficients[:, 0] / mixture.divisor), accept="gt"
    )
    return found.picks


def _aligner(task: ImageTask, seed: int) -> Callable[[Sequence[Named]], None]:
    """Groups are derived and proven once. Raises AlignError for a network that cannot be followed."""
    model = deepcopy(task.saved).cpu().eval()
    inputs = example_inputs(model, task.spec)
    spec = verify(model, permutations_of(model, inputs), inputs, num_controls=NUM_CONTROLS).spec

    def align(members: Sequence[Named]) -> None:
        align_members(members, spec, seed=seed)

    return align


def _repairer(
    task: Task, recipe: TrainPopulation
) -> Callable[[Sequence[Named], Sequence[Named], np.ndarray], None]:
    """REPAIR by a few training batches, the same each time."""
    if task.head is not None:
        raise AlignError(
            "repair of a zero-shot CLIP population is not offered", hint="soupkit repair, after training"
        )
    assert recipe.repair != "off"
    kind, batches = recipe.repair, training_batches(task, recipe, num_batches=recipe.bn_batches)

    def repair(children: Sequence[Named], parents: Sequence[Named], coefficients: np.ndarray) -> None:
        whole = [_whole(task, each) for each in children], [_whole(task, each) for each in parents]
        repair_members(*whole, coefficients, task, kind=kind, batches=batches)

    return repair


def _whole(task: Task, named: Named) -> dict[str, Tensor]:
    """A whole state: counters are those of any model."""
    return {**task.model.state_dict(), **named}
