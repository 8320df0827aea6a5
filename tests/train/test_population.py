"""A population in training against plain loops: members alone, pulls by hand, replacements, probing,
vectorised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from train.population_small import (
    CPU,
    assert_same_bits,
    no_dropout,
    population,
    population_recipe,
    states,
)
from train.small import small_model, task_of

from soupkit.errors import RecipeError, TaskError
from soupkit.events import Advanced, Event, silent
from soupkit.task.images.data import open_data
from soupkit.task.score import Score
from soupkit.train.loop import fit
from soupkit.train.population.members import Member
from soupkit.train.population.merging import pull_strength
from soupkit.train.population.population import Seams
from soupkit.train.population.regularise import member_recipes, regularisation
from soupkit.train.population.vectorised import OnStreams, choose_advance, one_by_one


def test_members_that_are_left_alone_are_finetuned() -> None:
    """Without exchange each member is, bit for bit, what the loop of one model makes of it."""
    recipe = population_recipe(method="none", mixup=(0.0, 0.4), random_erasing=(0.2,))
    trained = population(recipe, make=no_dropout)
    trained.train(silent)
    splits = open_data(recipe)
    for number, (member, own) in enumerate(zip(trained.members, member_recipes(recipe))):
        alone = no_dropout(number)
        losses = fit(task_of(alone, splits), own, report=silent).losses
        assert losses == [epoch[number] for epoch in trained.history.losses]
        assert_same_bits([dict(member.model.state_dict())], [dict(alone.state_dict())])


@pytest.mark.parametrize(("scaling", "optimizer"), [("linear", "momentum"), ("none", "sgd")])
def test_papa_equals_a_loop_over_state_dicts(scaling: str, optimizer: str) -> None:
    """The published algorithm on state dicts in float64, around plain updates of each member."""
    recipe = population_recipe(decay=0.8, lr_scaling=scaling, optimizer=optimizer, lr=0.01)
    trained, by_hand = population(recipe, make=no_dropout), population(recipe, make=no_dropout)
    trained.train(silent)
    for member in by_hand.members:
        member.begin()
    for update in range(1, by_hand.num_updates + 1):
        rate = by_hand.members[0].rate
        for member in by_hand.members:
            member.advance()
        if update % recipe.average_every == 0:
            _pull_by_hand([member.model for member in by_hand.members], pull_strength(recipe, rate))
    assert pull_strength(recipe, 1.0) == pytest.approx(0.2)
    for one, other in zip(states(trained), states(by_hand)):
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=2e-4, atol=2e-5)
    apart = population(replace(recipe, method="none", decay=None), make=no_dropout)
    apart.train(silent)
    assert apart.history.similarity[-1]["distance"] > 1.05 * trained.history.similarity[-1]["distance"]


def _pull_by_hand(models: Sequence[torch.nn.Module], share: float) -> None:
    before = [{name: t.double() for name, t in model.state_dict().items()} for model in models]
    for model, own in zip(models, before):
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                mean = sum(state[name] for state in before) / len(models)
                tensor.copy_((1 - share) * own[name] + share * mean)


def test_the_rate_is_that_of_the_update_which_was_made() -> None:
    recipe = population_recipe(min_lr=0.0, epochs=3, average_every=1, decay=0.5)
    trained = population(recipe)
    shares: list[float] = []
    trained.pull.now = shares.append  # type: ignore[method-assign]
    trained.train(silent)
    num = trained.num_updates
    expected = [0.5 * (1 + np.cos(np.pi * u / num)) / 2 for u in range(num)]
    assert shares == pytest.approx(expected)


def test_replaced_members_are_the_mixtures_that_are_noted() -> None:
    recipe = population_recipe(method="papa-2", merge_every=1, num_members=4, epochs=3)
    trained = population(recipe)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    note_losses = trained._note_losses

    def noting(epoch: int) -> None:
        note_losses(epoch)
        seen.append((trained.flat.rows[torch.float32].clone(), torch.zeros(0)))

    trained._note_losses = noting  # type: ignore[method-assign]

    def after(one: Any) -> None:
        if one.num_done % one.per_epoch == 0:
            seen[-1] = (seen[-1][0], one.flat.rows[torch.float32].clone())

    trained.train(silent, after_update=after)
    assert [entry["epoch"] for entry in trained.history.replacements] == [0, 1]
    for (before, later), entry in zip(seen, trained.history.replacements):
        matrix = torch.tensor(entry["coefficients"], dtype=torch.float64)
        torch.testing.assert_close(later, (matrix @ before.double()).float(), rtol=0, atol=1e-7)
    assert torch.equal(*seen[2])


def judged(tensors: Mapping[str, torch.Tensor], metric: str) -> Score:
    """A score that prefers small heads, to be computed by hand."""
    value = float(tensors["head.weight"].double().norm())
    return Score(metric, value if metric == "nll" else -value, 0.0, 1)


@pytest.mark.parametrize("method", ["pair-75", "random"])
def test_selection_keeps_the_fittest(method: str) -> None:
    recipe = population_recipe(
        method=method, selection=True, elitism=1.0, merge_every=1, mutation_sigma=0.1, num_children=2
    )
    trained = population(recipe, seams=Seams(judge=judged))
    fitness: list[list[float]] = []

    def after(one: Any) -> None:
        if one.num_done == one.per_epoch:
            fitness.append([float(m.model.head.weight.detach().double().norm()) for m in one.members])

    trained.train(silent, after_update=after)
    [entry] = trained.history.replacements
    assert len(entry["losses"]) == 3 + 2 * 3
    np.testing.assert_allclose(fitness[0], sorted(entry["losses"])[:3], rtol=1e-6)


def test_tournament_hands_the_losses_on() -> None:
    recipe = population_recipe(method="papa-2", tournament=True, merge_every=1)
    trained = population(recipe, seams=Seams(judge=judged))
    trained.train(silent)
    assert len(trained.history.replacements[0]["losses"]) == 3


def test_greedy_replaces_all_by_the_mean_of_the_picks() -> None:
    recipe = population_recipe(method="greedy", merge_every=1)
    asked: list[float] = []

    def picks(names: Sequence[str], score: Any) -> Sequence[int]:
        asked.append(score(np.array([0.0, 1.0, 0.0])).value)
        return [2, 0]

    trained = population(recipe, seams=Seams(judge=judged, greedy=picks))
    trained.train(silent)
    assert len(asked) == 1
    assert trained.history.replacements[0]["coefficients"] == [[0.5, 0.0, 0.5]] * 3


def test_align_and_repair_see_members_and_children() -> None:
    calls: list[str] = []

    def align(members: Sequence[Mapping[str, torch.Tensor]]) -> None:
        calls.append("align")
        for member in members:
            member["head.bias"].zero_()

    def repair(
        children: Sequence[Mapping[str, torch.Tensor]],
        parents: Sequence[Mapping[str, torch.Tensor]],
        matrix: np.ndarray,
    ) -> None:
        calls.append("repair")
        for child, row in zip(children, matrix):
            mean = sum(float(c) * parent["head.weight"] for c, parent in zip(row, parents))
            torch.testing.assert_close(child["head.weight"], mean, rtol=0, atol=1e-6)
            assert not child["head.bias"].any()
            child["conv.bias"].fill_(7.0)

    recipe = population_recipe(method="papa-all", merge_every=1)
    trained = population(recipe, seams=Seams(align=align, repair=repair))
    after: list[bool] = []
    trained.train(
        silent,
        after_update=lambda one: after.append(all((m.model.conv.bias == 7).all() for m in one.members)),
    )
    assert calls == ["align", "repair"]
    assert after.index(True) == trained.per_epoch - 1


def test_linear_probing_ends() -> None:
    """In the first half only the head moves, statistics stay; then everything learns."""
    from torch import nn

    def with_head(seed: int) -> nn.Module:
        model = small_model(seed)
        model.pretrained_cfg = {"classifier": "head"}  # type: ignore[assignment]
        return model

    recipe = population_recipe(method="none", linear_probe=0.5, epochs=2, weight_decay=0.1)
    trained = population(recipe, make=with_head)
    start = states(trained)
    moved: list[set[str]] = []

    def after(one: Any) -> None:
        now = states(one)
        moved.append({name for name in now[0] if not torch.equal(now[0][name], start[0][name])})

    trained.train(silent, after_update=after)
    half = trained.num_updates // 2
    assert moved[half - 1] == {"head.weight", "head.bias"}
    assert moved[-1] >= set(start[0]) - {"conv.bias"}  # batch norm takes its gradient away, up to rounding
    with pytest.raises(RecipeError, match="names its head"):
        population(recipe)


def test_regularisation_is_the_shuffled_product() -> None:
    recipe = population_recipe(num_members=7, mixup=(0.0, 0.5), cutmix=(0.0, 1.0), label_smoothing=(0.1,))
    chosen = [tuple(each.values()) for each in regularisation(recipe)]
    assert len(set(chosen[:4])) == 4
    assert chosen[4:] == chosen[:3]
    assert {each[1] for each in chosen} == {0.1}
    orders = {
        tuple(tuple(r.values()) for r in regularisation(replace(recipe, seed=seed))) for seed in range(20)
    }
    assert len(orders) > 5
    recipes = member_recipes(recipe)
    assert len({own.seed for own in recipes}) == 7
    assert [(own.mixup, own.label_smoothing, own.cutmix, own.random_erasing) for own in recipes] == chosen
    with pytest.raises(RecipeError, match=r"member-00\d: mixup is -1"):
        member_recipes(population_recipe(mixup=(-1.0,)))


def test_members_differ_and_draw_towards_each_other() -> None:
    events: list[Event] = []
    trained = population(population_recipe(decay=0.5, average_every=1, epochs=4, lr_scaling="none"))
    trained.train(events.append)
    points = trained.history.similarity
    assert [point["update"] for point in points] == [0, 4, 8, 12, 16]
    assert points[0]["cosine"] < 0.7 < 0.9 < points[-1]["cosine"] < 1
    assert sum(event.by for event in events if isinstance(event, Advanced)) == 16
    assert len({tuple(own) for own in trained.history.losses}) == 4


def test_divergence_names_the_member() -> None:
    with pytest.raises(TaskError, match=r"member-000 became (nan|inf) in epoch 1 of 2"):
        population(population_recipe(lr=1e30)).train(silent)


def test_all_in_one_call_equals_one_by_one() -> None:
    recipe = population_recipe(decay=0.9, clip_grad=1.0, label_smoothing=(0.1,))
    loop, together = population(recipe, make=no_dropout), population(recipe, make=no_dropout)
    loop.train(silent)
    advance = choose_advance(together.members, together.flat, wish="on", device=CPU)
    assert advance is not one_by_one
    together.train(silent, advance=advance)
    for one, other in zip(states(loop), states(together)):
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(loop.history.losses, together.history.losses, rtol=1e-4)
    assert choose_advance(loop.members, loop.flat, wish="auto", device=CPU) is one_by_one


def test_on_streams_equals_one_by_one() -> None:
    loop, streams = population(population_recipe(decay=0.9)), population(population_recipe(decay=0.9))
    loop.train(silent)
    streams.train(silent, advance=OnStreams(len(streams.members), CPU))
    for one, other in zip(states(loop), states(streams)):
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)


def test_what_cannot_be_vectorised_is_refused() -> None:
    class Branching(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(768, 10)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits = self.head(images.flatten(1))
            return logits if float(logits.sum()) > 0 else -logits

    trained = population(population_recipe(), make=lambda _: Branching())
    with pytest.raises(RecipeError, match="cannot be vectorised"):
        choose_advance(trained.members, trained.flat, wish="on", device=CPU)


def test_a_member_is_the_same_in_a_smaller_population() -> None:
    """Order, augmentation and masks are keyed by (seed, member)."""
    few = population(population_recipe(method="none", num_members=2))
    many = population(population_recipe(method="none", num_members=4))
    few.train(silent)
    many.train(silent)
    assert_same_bits(states(few), states(many)[:2])
    assert isinstance(few.members[0], Member)
