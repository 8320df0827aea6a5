"""`train-population --align --repair`: what the seams do to members that are known to be each other's
permutation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from train.population_small import ALONE, population_recipe

from soupkit.align.graph.trace import permutation_spec
from soupkit.align.graph.trial import permuted_state, randomise
from soupkit.align.permutation import random_permutation
from soupkit.errors import RecipeError
from soupkit.events import silent
from soupkit.jobs.training import population as job
from soupkit.recipe.population import TrainPopulation
from soupkit.stages.alignment.examples import example_inputs
from soupkit.stages.training.population_seams import seams_of

CPU = torch.device("cpu")


def recipe(out: Path, **values: Any) -> TrainPopulation:
    defaults = {"model": "timm:test_resnet,img_size=32", "num_members": 2, "num_held_out": 60, "num_test": 50}
    defaults |= {"method": "papa-all", "merge_every": 1, "bn_batches": 2}
    return population_recipe(out=out, device="cpu", **(defaults | values))


def test_a_permuted_member_is_brought_back_and_repair_restores_a_weakened_child(tmp_path: Path) -> None:
    plan = job._plan(recipe(tmp_path / "run", align=True, repair="forward"), ALONE, silent)
    seams, model = seams_of(plan.recipe, plan.start.task), plan.start.task.model.eval()
    randomise(model, 0)  # fresh residual branches end in gains of zero: nothing in them would tell
    inputs = example_inputs(model, plan.start.task.spec)
    spec = permutation_spec(model, inputs)
    a = {name: tensor.clone() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    b = {**a, **permuted_state(model.state_dict(), spec, random_permutation(spec, 3))}
    b = {name: b[name] for name in a}
    assert not torch.equal(a["layer1.0.conv1.weight"], b["layer1.0.conv1.weight"])

    assert seams.align is not None
    seams.align([a, b])
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=0, atol=0)

    def logits(state: dict[str, torch.Tensor]) -> torch.Tensor:
        model.load_state_dict(state, strict=False)
        with torch.no_grad():
            result: torch.Tensor = model(*inputs)
        return result

    assert seams.repair is not None
    weak = {name: tensor.clone() for name, tensor in a.items()}
    weak["layer2.0.conv1.weight"] *= 0.2
    same = {name: tensor.clone() for name, tensor in a.items()}
    before = float((logits(weak) - logits(a)).norm())
    whole = [{name: tensor.clone() for name, tensor in a.items()} for _ in range(2)]
    seams.repair([same, weak], whole, np.full((2, 2), 0.5))
    assert float((logits(weak) - logits(same)).norm()) < 0.1 * before


@pytest.mark.slow
def test_a_population_trains_with_both(tmp_path: Path) -> None:
    result = job.train_population(recipe(tmp_path / "run", align=True, repair="scale"), ALONE, silent)
    assert len(result["notes"]["history"]["replacements"]) >= 1


@pytest.mark.parametrize("options", [{"align": True}, {"repair": "bn"}])
def test_pulls_alone_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="come with the replacement of members"):
        recipe(tmp_path / "run", method="papa", **options)
