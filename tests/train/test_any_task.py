"""The loop, a run and a population learn what is no image: linear regression, against closed forms in
float64.

Shapes: N rows, D weights, M members.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from task.fake import Fake, Rows, Written
from torch import nn
from train.population_small import CPU, population_of, population_recipe
from train.small import finetune_recipe

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.events import Event, Scored, silent
from soupkit.recipe.train import Finetune
from soupkit.stages.training.run import train_from
from soupkit.task.epochs import epoch_places
from soupkit.train.loop import fit
from soupkit.train.population.regularise import member_recipes
from soupkit.train.population.vectorised import Vectorised, choose_advance
from soupkit.world import ALONE

N, D, M = 40, 3, 3
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((N, D)).astype(np.float32)
Y = (X @ RANDOM.standard_normal(D) + 0.3 * RANDOM.standard_normal(N)).astype(np.float32)
STARTS = RANDOM.standard_normal((M, D)).astype(np.float32)
ROWS = Rows(torch.from_numpy(X), torch.from_numpy(Y[:, None]))
PLAIN: dict[str, Any] = {
    "model": "a line", "data": None, "optimizer": "momentum", "momentum": 0.0, "weight_decay": 0.0, "lr": 0.1,
    "warmup_epochs": 0.0, "min_lr": 0.0,
}  # fmt: skip


def line(number: int) -> nn.Module:
    model = nn.Linear(D, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(STARTS[number])[None])
    return model


def weights(model: nn.Module) -> np.ndarray:
    return model.get_parameter("weight").detach().numpy()[0]


def gradient(w: np.ndarray, rows: Any = slice(None)) -> np.ndarray:
    """Of the mean of (x w − y)² over some rows."""
    x, y = X[rows].astype(np.float64), Y[rows]
    return 2 * x.T @ (x @ w - y) / len(y)


def descended(w: np.ndarray, num_updates: int) -> np.ndarray:
    """Gradient descent on all rows: w_k = w* + (1 − 2 lr XᵀX / N)^k (w_0 − w*)."""
    x = X.astype(np.float64)
    best = np.linalg.lstsq(x, Y.astype(np.float64), rcond=None)[0]
    step = np.eye(D) - 0.2 * x.T @ x / N
    return best + np.linalg.matrix_power(step, num_updates) @ (w - best)


def mse(w: np.ndarray) -> float:
    return float(np.square(X.astype(np.float64) @ w - Y).mean())


def full_batch(out: Path = Path("out"), **values: Any) -> Finetune:
    return finetune_recipe(out=out, **PLAIN, epochs=6, batch_size=N, schedule="constant", **values)


def test_the_loop_descends_as_the_closed_form() -> None:
    task = Fake(line(0), ROWS)
    losses = fit(task, full_batch(), report=silent).losses
    np.testing.assert_allclose(weights(task.model), descended(STARTS[0], 6), rtol=1e-4)
    np.testing.assert_allclose(losses, [mse(descended(STARTS[0], k)) for k in range(6)], rtol=1e-4)
    assert not task.model.training


def test_a_run_writes_and_scores_what_the_closed_form_says(tmp_path: Path) -> None:
    """The run of `finetune` and of each member of a sweep: snapshots, and the last epochs' mean (SWA)."""
    events: list[Event] = []
    recipe = full_batch(tmp_path / "run", swa_start=0.5, snapshot_every=2)
    manifest = train_from(None, Written(line(0), ROWS), recipe, ALONE, events.append, began=0.0)
    points = [descended(STARTS[0], k) for k in range(7)]
    mean = np.mean(points[4:], axis=0)
    places = {".": points[6], "snapshots/epoch-0002": points[2], "swa": mean}
    for place, expected in places.items():
        written = Checkpoint(recipe.out / place)
        np.testing.assert_allclose(written["weight"][0], expected, rtol=1e-4)
        assert (recipe.out / place / "line.txt").is_file()
    for role in ("held_out", "test"):
        assert manifest["metrics"][role]["mse"]["value"] == pytest.approx(mse(points[6]), rel=1e-4)
        averaged = manifest["notes"]["averages"]["swa"][role]["mse"]["value"]
        assert averaged == pytest.approx(mse(mean), rel=1e-4)
    assert manifest["notes"]["data"] == "rows"
    told = [(event.name, event.metric, event.note) for event in events if isinstance(event, Scored)]
    assert told[:2] == [("held_out", "mse", "run"), ("test", "mse", "run")]
    assert len(told) == 4


@pytest.mark.parametrize("wish", ["off", "on"], ids=["loop", "vectorised"])
@pytest.mark.parametrize("scaling", ["none", "linear"])
def test_papa_pulls_are_those_of_a_loop_by_hand(wish: str, scaling: str) -> None:
    """w_m ← (1 − s) w_m + s mean(w) after every second update, s = 0.3, or that by the cosine of the rate."""
    recipe = population_recipe(
        **PLAIN, num_members=M, batch_size=10, epochs=3, average_every=2, decay=0.7, lr_scaling=scaling
    )
    trained = population_of(recipe, lambda number: Fake(line(number), ROWS))
    advance = choose_advance(trained.members, trained.flat, wish=wish, device=CPU)
    assert isinstance(advance, Vectorised) == (wish == "on")
    trained.train(silent, advance=advance)

    w, losses, num = STARTS.astype(np.float64), np.zeros((3, M)), 3 * N // 10
    seeds = [own.seed for own in member_recipes(recipe)]
    for update in range(num):
        epoch, place = divmod(update, N // 10)
        rate = (1 + np.cos(np.pi * update / num)) / 2
        for m, seed in enumerate(seeds):
            rows = list(epoch_places(N, 10, seed=seed, epoch=epoch, even=False)[place].indices)
            losses[epoch, m] += np.square(X[rows].astype(np.float64) @ w[m] - Y[rows]).sum() / N
            w[m] -= 0.1 * rate * gradient(w[m], rows)
        if update % 2 == 1:
            share = 0.3 * (rate if scaling == "linear" else 1)
            w = (1 - share) * w + share * w.mean(0)
    np.testing.assert_allclose([weights(member.model) for member in trained.members], w, rtol=1e-4)
    np.testing.assert_allclose(trained.history.losses, losses, rtol=1e-4)
    assert len(set(seeds)) == M
