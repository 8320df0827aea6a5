"""Alignment as `align` and `barrier` offer it: by permutations, or with --rotate by turns as well, as
checkpoints that any library loads."""

from __future__ import annotations

import json
from collections.abc import Sequence

from soupkit.align.matching.match import Match
from soupkit.align.turns.best_turn import Matching, match_turned
from soupkit.align.turns.proof import proved
from soupkit.align.turns.towers import Tower, check_names, towers_to_json
from soupkit.align.turns.turn import fold
from soupkit.asked import Matches
from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.dtypes import FLOATING
from soupkit.events import Advanced, Finished, Report, Started, Told
from soupkit.stages.alignment.permute import (
    TOLERANCE,
    Aligned,
    check_same_function,
    match_notes,
    open_network,
    permuted_ingredients,
)
from soupkit.stages.inputs.agreed import agreed
from soupkit.stages.inputs.download import download
from soupkit.stages.inputs.turned import Turned, tensors_of
from soupkit.world import World

NARROW_TOLERANCE = 0.05
"""Relative change of an output beyond which a checkpoint in less than float32 is not the same function: its
weights are rounded anew."""


def check_alignable(checkpoints: Sequence[Checkpoint], recipe: Matches, report: Report) -> None:
    """Raise CompatibilityError, AlignError for checkpoints that `aligned_ingredients` cannot take, by names
    alone."""
    agreed(checkpoints, recipe, report)
    if recipe.rotate:
        check_names(checkpoints[0].slots)


def aligned_ingredients(
    checkpoints: Sequence[Checkpoint], *, to: int | None, recipe: Matches, world: World, report: Report
) -> Aligned:
    """Checkpoints matched to the one at place `to` as the recipe says: permuted, with `rotate` turned as
    well.

    See `soupkit.stages.alignment.permute.permuted_ingredients` and `turned_ingredients`.
    """
    if recipe.rotate:
        return turned_ingredients(checkpoints, to=to or 0, recipe=recipe, report=report)
    return permuted_ingredients(checkpoints, to=to, recipe=recipe, world=world, report=report, by=recipe.by)


def turned_ingredients(
    checkpoints: Sequence[Checkpoint], *, to: int, recipe: Matches, report: Report
) -> Aligned:
    """Match and turn every checkpoint to the one at place `to`; that one is folded and its heads are
    balanced.

    What may be turned is proven on the network first; AlignError where nothing may be, or where a turned
    checkpoint would compute something else; nothing that could be written is returned then. Memory: see
    `soupkit.align.turns.best_turn.match_turned`, and all models once more.
    """
    download(checkpoints, report)
    network = open_network(checkpoints[0], recipe, report)
    proof = proved(network.model, network.inputs, seed=recipe.seed)
    for tower in proof.towers:
        report(Told(f"{tower.name}: {_freedoms(tower)}" + (f" ({tower.why})" if tower.why else "")))
    folded = [fold(tensors_of(each), proof.towers) for each in checkpoints]
    report(Started("turning"))
    matching = Matching(
        network.spec, proof.towers, recipe.seed, recipe.restarts, lambda: report(Advanced("turning"))
    )
    found = match_turned(folded, to, matching)
    report(Finished("turning"))
    for checkpoint, each in zip(checkpoints, found, strict=True):
        if each.num_rounds:
            rounds = f"{each.num_rounds} rounds"
            report(
                Told(f"{checkpoint.reference}: cosine {each.cosine_before:.4f} → {each.cosine:.4f}, {rounds}")
            )
    del folded
    views = [
        Turned(checkpoint, network.spec, proof.towers, each.permutation, each.turn)
        for checkpoint, each in zip(checkpoints, found, strict=True)
    ]
    for checkpoint, view in zip(checkpoints, views, strict=True):
        wide = all(slot.dtype in ("F32", "F64") for slot in view.slots.values() if slot.dtype in FLOATING)
        check_same_function(network, checkpoint, view, tolerance=TOLERANCE if wide else NARROW_TOLERANCE)
    matches = [Match(dict(each.permutation), each.cosine_before, each.cosine, "turned") for each in found]
    notes = {
        "to": checkpoints[to].reference,
        "rotated": True,
        "towers": towers_to_json(proof.towers),
        "verification": {**network.verification.to_json(), "turned": proof.errors},
        "matches": [match_notes(match) for match in matches],
        "spec": json.dumps(network.spec.to_json(), separators=(",", ":")),
    }
    return Aligned(views, to, matches, notes)


def _freedoms(tower: Tower) -> str:
    words = {"stream": "the residual stream", "qk": "queries and keys of heads", "vo": "values of heads"}
    return ", ".join(words[kind] for kind in tower.freedoms()) + " may be turned"
