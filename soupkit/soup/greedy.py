"""The greedy soup (Wortsman et al. 2022, arXiv:2203.05482, Recipe 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from soupkit.events import Advanced, Finished, Report, Scored, Started, silent
from soupkit.jsons import Json
from soupkit.merge.mixture import Mixture, subset_mean
from soupkit.metrics import Direction, rank_key
from soupkit.task.score import Score, better


@dataclass(frozen=True)
class Bar:
    """The score to reach: at least it (ge) or above it (gt)."""

    score: Score
    accept: Literal["ge", "gt"]
    direction: Direction

    def reached_by(self, score: Score) -> bool:
        """Whether a complete or stopped trial is accepted. Counts are compared as counts, so equal is
        equal."""
        if score.stopped:
            return False
        if score.num_right is not None and self.score.num_right is not None:
            margin = score.num_right - self.score.num_right
            return margin >= 0 if self.accept == "ge" else margin > 0
        if self.accept == "gt":
            return better(score.value, self.score.value, self.direction)
        return not better(self.score.value, score.value, self.direction)


class ScoreSoup(Protocol):
    """Scores a mixture on held-out data. It may stop early (Score.stopped) once `bar` is out of reach."""

    def __call__(self, mixture: Mixture, bar: Bar | None) -> Score: ...


@dataclass(frozen=True)
class Trial:
    """One addition that was tried: ingredient number, its score, whether it stayed, and the block if not
    all."""

    ingredient: int
    score: Score
    accepted: bool
    block: str | None = None


@dataclass(frozen=True)
class Greedy:
    """The outcome: picks in the order of addition, their score, all single scores, all trials."""

    picks: tuple[int, ...]
    score: Score
    singles: tuple[Score, ...]
    trials: tuple[Trial, ...]
    mixture: Mixture

    @property
    def share_evaluated(self) -> float:
        """Examples evaluated in trials, as a share of what trials without early stop evaluate."""
        counts = [(trial.score.num_evaluated, trial.score.num_examples) for trial in self.trials]
        full = sum(total or 0 for _, total in counts)
        return sum(seen if seen is not None else total or 0 for seen, total in counts) / full if full else 1.0


def greedy(
    ingredients: Sequence[str],
    score: ScoreSoup,
    *,
    direction: Direction = "max",
    accept: Literal["ge", "gt"] = "ge",
    mix: Callable[[Sequence[str], Sequence[int]], Mixture] = subset_mean,
    report: Report = silent,
) -> Greedy:
    """Rank the ingredients by their own score, then add each in turn if the mean of the picks is accepted.

    S ← {best}; for the others by rank: if score(mean(S ∪ {θ})) ≥ score(mean(S)) then S ← S ∪ {θ}. The paper
    accepts on ≥ (ge), its public code on > (gt). Equal single scores are ranked by name, so the order of the
    references does not matter. Cost: K single scores and K − 1 trials.
    """
    singles, best = score_singles(ingredients, score, mix, direction, report)
    ranking = rank(ingredients, singles, direction)
    picks = [ranking[0]]
    trials: list[Trial] = []
    report(Started("greedy trials", len(ranking) - 1, "trials"))
    for k in ranking[1:]:
        bar = Bar(best, accept, direction)
        trial = score(mix(ingredients, [*picks, k]), bar)
        accepted = bar.reached_by(trial)
        trials.append(Trial(k, without_margins(trial), accepted))
        report(scored(f"+ {ingredients[k]}", trial, accepted))
        report(Advanced("greedy trials", 1, f"{len(picks) + accepted} picked"))
        if accepted:
            picks, best = [*picks, k], trial
    report(Finished("greedy trials"))
    return Greedy(tuple(picks), without_margins(best), tuple(singles), tuple(trials), mix(ingredients, picks))


def rank(ingredients: Sequence[str], singles: Sequence[Score], direction: Direction) -> list[int]:
    """Best first, equals by name, NaN last."""
    return sorted(
        range(len(ingredients)), key=lambda k: (rank_key(singles[k].value, direction), ingredients[k])
    )


def score_singles(
    ingredients: Sequence[str],
    score: ScoreSoup,
    mix: Callable[[Sequence[str], Sequence[int]], Mixture],
    direction: Direction,
    report: Report,
) -> tuple[list[Score], Score]:
    """The score of every ingredient by itself, without margins, and the best of them with its own.

    Margins are as many numbers as there are examples: only those of the soup so far are of use.
    """
    report(Started("scoring ingredients", len(ingredients), "checkpoints"))
    singles: list[Score] = []
    best: Score | None = None
    for k, name in enumerate(ingredients):
        single = score(mix(ingredients, [k]), None)
        singles.append(without_margins(single))
        if rank(ingredients[: k + 1], singles, direction)[0] == k:
            best = single
        report(Scored(name, single.metric, single.value, single.standard_error, single.num_examples))
        report(Advanced("scoring ingredients"))
    report(Finished("scoring ingredients"))
    assert best is not None, "there is an ingredient"
    return singles, best


def without_margins(score: Score) -> Score:
    """The same score, for the record."""
    return score if score.margins is None else replace(score, margins=None)


def scored(name: str, score: Score, accepted: bool) -> Scored:
    """What is told of a trial; a stopped one has only a bound."""
    note = "accepted" if accepted else "rejected"
    if score.stopped:
        seen = f"{score.num_evaluated} of {score.num_examples}"
        return Scored(name, score.metric, score.value, None, None, f"at most, {note} after {seen} examples")
    return Scored(name, score.metric, score.value, score.standard_error, score.num_examples, note)


def trace(result: Greedy, ingredients: Sequence[str]) -> list[Json]:
    """The trials as the manifest records them; a stopped trial's value is a share of what it saw, so it is
    left out."""
    first: Json = {"ingredient": ingredients[result.picks[0]], "accepted": True, "single": True}
    steps = [first | {"value": result.singles[result.picks[0]].value}]
    for trial in result.trials:
        steps.append(
            {
                "ingredient": ingredients[trial.ingredient],
                "accepted": trial.accepted,
                "value": None if trial.score.stopped else trial.score.value,
                "stopped": trial.score.stopped,
                "num_evaluated": trial.score.num_evaluated,
                **({"block": trial.block} if trial.block is not None else {}),
            }
        )
    return steps
