"""The recipes of the published CLIP fine-tunes, run whole on small files of the same layout: every number is
that of a loop like the published one over the same files, in torch and float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import published
import pytest
import torch
from published import MEAN, STD, Wrapper
from torch import Tensor

from soupkit.cli.app import run_command_line
from soupkit.manifest import Manifest
from soupkit.recipe.evaluate import Evaluate
from soupkit.task.images.data import Part, open_data

ROOT = Path(__file__).parents[2]
NUM_HELD_OUT = 100
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    published.know_architecture(folder / "configs")
    published.write_images(folder / "data")
    published.write_models(folder / "files", *published.read_images(folder / "data" / "train"))
    return folder


def run(recipe: str, folder: Path, **values: object) -> Path:
    """Run a recipe of the repository on the toy, from the published files on."""
    settings = {
        "files": folder / "files",
        "architecture": published.NAME,
        "models": folder / "checkpoints",
        "imagenet": folder / "data",
        "held_out": NUM_HELD_OUT,
        "workers": 0,
        "out": folder / recipe,
    }
    words = [f"{key}={value}" for key, value in (settings | values).items()]
    assert run_command_line(["run", str(ROOT / "recipes" / f"{recipe}.yaml"), "--quiet", *sets(words)]) == 0
    return folder / recipe


def sets(words: list[str]) -> list[str]:
    return [each for word in words for each in ("--set", word)]


def shown(part: Part) -> tuple[Tensor, Tensor]:
    """The examples of a split as the published code shows them."""
    examples = [part[index] for index in range(len(part))]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image, _ in examples]))
    return (pixels.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD, torch.tensor([c for _, c in examples])


def num_right(state: State, images: Tensor, classes: Tensor) -> int:
    model = Wrapper()
    model.load_state_dict(state)
    with torch.no_grad():
        return int((model.eval()(images).argmax(1) == classes).sum())


def mean(states: list[State]) -> State:
    """As published: summed up in float32, each times 1/n."""
    return {key: sum(state[key] * (1 / len(states)) for state in states) for key in states[0]}  # type: ignore[misc]


def published_greedy(states: list[State], images: Tensor, classes: Tensor) -> list[int]:
    """Ranked by held-out accuracy; a model stays in where it makes the soup better."""
    right = [num_right(state, images, classes) for state in states]
    order = sorted(range(len(states)), key=lambda number: right[number], reverse=True)
    picks, best = order[:1], right[order[0]]
    for number in order[1:]:
        found = num_right(mean([states[i] for i in (*picks, number)]), images, classes)
        if found > best:
            picks, best = [*picks, number], found
    return picks


def test_greedy_finds_what_the_published_loop_finds(toy: Path) -> None:
    out = run("greedy-clip-vit-b32-imagenet", toy)
    splits = open_data(Evaluate(refs=("",), data=str(toy / "data"), num_held_out=NUM_HELD_OUT))
    held_out, test = shown(splits.held_out), shown(splits.test)
    states = [torch.load(path, weights_only=True) for path in sorted((toy / "files").glob("*.pt"))]
    manifest = Manifest.read(out / "greedy")
    picks = published_greedy(states, *held_out)
    assert 1 < len(picks) < len(states)
    assert manifest.mixture is not None
    coefficients = np.array(manifest.mixture["coefficients"])[:, 0]
    assert sorted(np.flatnonzero(coefficients)) == sorted(picks)
    scores = json.loads((out / "scores" / "scores.json").read_text())
    for name, chosen in (("uniform", range(len(states))), ("greedy", picks)):
        expected = num_right(mean([states[i] for i in chosen]), *test)
        (value,) = (v["test"]["top1"] for key, v in found_in(scores).items() if key.endswith(name))
        assert (value["value"], value["num_examples"]) == (expected / len(test[0]), len(test[0]))
    greedy = num_right(mean([states[i] for i in picks]), *held_out)
    assert manifest.metrics["held_out"]["top1"]["value"] == greedy / NUM_HELD_OUT


@pytest.mark.slow
def test_learned_soups_are_worth_what_is_said_of_them(toy: Path) -> None:
    """MEHL-Soup+ as published and learned by layer: written, exported as a published file, judged by the
    published code."""
    out = run("soup/mehl-clip-vit-b32-imagenet", toy, model_batch=4)
    splits = open_data(Evaluate(refs=("",), data=str(toy / "data"), num_held_out=NUM_HELD_OUT))
    parts = {"held_out": shown(splits.held_out), "test": shown(splits.test)}
    for name in ("published", "together", "learned"):
        exported = toy / f"exported-{name}"
        words = ["export", str(out / name), "--to", "state-dict", "--out", str(exported), "--quiet"]
        assert run_command_line(words) == 0
        state = torch.load(exported / "model.pt", weights_only=True)
        manifest = Manifest.read(out / name)
        assert manifest.mixture is not None
        matrix = np.array(manifest.mixture["coefficients"])
        assert np.ptp(matrix) > 0
        for split, (images, classes) in parts.items():
            top1 = manifest.metrics[split]["top1"]["value"]
            assert top1 == num_right(state, images, classes) / len(images), (name, split)


def found_in(scores: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = scores.get("metrics", scores)
    return found
