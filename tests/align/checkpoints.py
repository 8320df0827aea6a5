"""Checkpoint directories of a small trained network, and of the same network with its units in another
order."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
from align.traced import traced_once

from soupkit.align.permutation import random_permutation
from soupkit.align.permuted import Permuted
from soupkit.align.spec import PermutationSpec
from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.tensors import write_tensors
from soupkit.events import silent
from soupkit.jobs.training.finetune import finetune
from soupkit.recipe.train import Finetune
from soupkit.task.images.models import build, describe
from soupkit.world import World

MODEL = "timm:test_resnet,num_classes=10,img_size=16"


def trained(directory: Path, *, seed: int = 0) -> Path:
    """A network that tells digits apart; trained once per session, in a second."""
    shutil.copytree(_trained(seed), directory)
    return directory


@cache
def _trained(seed: int) -> Path:
    folder = Path(mkdtemp(prefix="soupkit-test-"))
    recipe = Finetune(
        model=MODEL,
        data="digits",
        num_train=256,
        num_held_out=40,
        num_test=40,
        epochs=4,
        batch_size=32,
        lr=4e-3,
        seed=seed,
        device="cpu",
        threads=1,
        out=folder / "model",
    )
    finetune(recipe, World("cpu", 1), silent)
    return folder / "model"


def spec_of(directory: Path) -> PermutationSpec:
    """The groups of a checkpoint's network."""
    model = build(describe(Checkpoint(directory), None))
    return traced_once(model.eval(), (torch.zeros(2, 3, 16, 16),))


def permuted_copy(source: Path, directory: Path, *, noise: float = 0.0, seed: int = 1) -> Path:
    """The checkpoint with all its units in another order, with noise in proportion to each tensor's
    deviation."""
    spec = spec_of(source)
    random = np.random.default_rng(seed)
    view = Permuted(Checkpoint(source), spec, random_permutation(spec, seed))
    tensors = {name: view[name] for name in view}
    if noise:
        for name, values in tensors.items():
            if name.endswith("weight"):
                added = noise * values.std() * random.standard_normal(values.shape)
                tensors[name] = (values + added).astype(values.dtype)
    shutil.copytree(source, directory)
    (directory / "soupkit.json").unlink()
    (directory / "model.safetensors").unlink()
    write_tensors(directory, tensors)
    return directory
