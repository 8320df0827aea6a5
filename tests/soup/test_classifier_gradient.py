"""Coefficients of CLIP classifiers: their gradient against central finite differences in float64, for every
head."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published import MODEL, NUM_CLASSES, SIDE

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.header import Slot
from soupkit.checkpoint.tensors import write_tensors
from soupkit.recipe.evaluate import Evaluate
from soupkit.soup.live import LiveModel, layout_of
from soupkit.soup.subspace import Ingredients, Subspace
from soupkit.task.images.examples import ImageBatch
from soupkit.task.images.heads import judged
from soupkit.task.images.models import ModelSpec, build, describe
from soupkit.task.images.task import ImageTask
from soupkit.task.weights import arrays
from soupkit.world import World

FORMS: dict[str, dict[str, bool] | None] = {
    "normalised": {},
    "plain": {"normalize": False},
    "no bias": {"bias": False},
    "logit scale": {"logit_scale": True},
    "zero-shot": None,
}
NUM, STEP = 3, 1e-4


def checkpoints(folder: Path, form: dict[str, bool] | None) -> list[Checkpoint]:
    """Three models of one form, a little apart in every tensor."""
    config: dict[str, Any] = {"model_cfg": MODEL, "preprocess_cfg": {}}
    parts = ["logit_scale"] if form and form.get("logit_scale") else []
    if form is not None:
        head = {"num_classes": NUM_CLASSES, "num_features": MODEL["embed_dim"], "parts": parts}
        config["classifier"] = head | form
    found = []
    for number in range(NUM):
        directory = folder / str(number)
        directory.mkdir()
        (directory / "open_clip_config.json").write_text(json.dumps(config))
        torch.manual_seed(0)
        model = build(ModelSpec("open_clip", "toy", {}, config))
        random = np.random.default_rng(number)
        tensors = {
            name: (array + 0.2 * random.standard_normal(array.shape)).astype(np.float32)
            for name, array in arrays(model).items()
        }
        write_tensors(directory, tensors, file_name="open_clip_model.safetensors")
        found.append(Checkpoint(directory))
    return found


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_of_the_coefficients_is_that_of_finite_differences(form: str, tmp_path: Path) -> None:
    models = checkpoints(tmp_path, FORMS[form])
    names = tuple(f"class {number}" for number in range(NUM_CLASSES))
    model = judged(describe(models[0], None), names, Evaluate(refs=("",)))
    task = ImageTask.__new__(ImageTask)
    task.model, task.device, task.world = model, torch.device("cpu"), World("cpu", threads=1)
    slots = {name: Slot("F32", slot.shape) for name, slot in models[0].slots.items()}
    layout = layout_of(task, slots, "tensor")
    generator = torch.Generator().manual_seed(1)
    batch = ImageBatch(torch.randn(6, 3, SIDE, SIDE, generator=generator), torch.arange(6))
    coefficients_KB = np.random.default_rng(2).dirichlet(np.ones(NUM), layout.num_blocks).T
    reference = copy.deepcopy(task)
    space = Subspace(Ingredients(models, layout), np.full(coefficients_KB.shape, 1 / NUM), world=task.world)
    live = LiveModel(task, layout, slots, task.world, head_moves=form == "zero-shot")
    beta, gamma = torch.from_numpy(coefficients_KB), torch.ones(layout.num_blocks, dtype=torch.float64)
    space.point(beta, gamma, out=live.weights)
    live.moved()
    live.backward([batch], num_examples=6)
    found_KB = space.pullback(live.gradient)[0].double().numpy()
    random = np.random.default_rng(3)
    for _ in range(3):
        direction_KB = random.standard_normal(coefficients_KB.shape)
        direction_KB -= direction_KB.mean(0)  # then the centre has no say
        losses = [
            _loss(reference, models, layout.blocks, coefficients_KB + sign * STEP * direction_KB, batch)
            for sign in (1, -1)
        ]
        expected = (losses[0] - losses[1]) / (2 * STEP)
        assert abs(expected) > 2e-4
        assert float((found_KB * direction_KB).sum()) == pytest.approx(expected, rel=2e-3, abs=2e-6)


def _loss(task: Any, models: Any, blocks: Any, coefficients_KB: np.ndarray, batch: ImageBatch) -> float:
    """The mean loss of the mixture, all of it in float64."""
    state = {}
    for name in models[0]:
        own = coefficients_KB[:, blocks[name]] if name in blocks else np.full(NUM, 1 / NUM)
        state[name] = sum(c * m[name].astype(np.float64) for c, m in zip(own, models, strict=True))
    task.model.double()
    task.saved.load_state_dict({name: torch.from_numpy(np.asarray(array)) for name, array in state.items()})
    if task.head is not None:
        task.head.rebuild_head()
    with torch.no_grad():
        logits = task.model(batch.images.double())
        return float(torch.nn.functional.cross_entropy(logits, batch.targets))
