"""The memory plan: what is chosen for a limit, and what the parts come to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from soupkit.errors import RecipeError
from soupkit.soup.blocks import lay_out
from soupkit.soup.plan import Demand, choose, plan_for

MB = 10**6
LAYOUT = lay_out({f"w{i}": (1000, 1000) for i in range(10)}, "tensor")  # D = 10⁷: 40 MB in float32
DEMAND = Demand(LAYOUT, 20, batch_size=128, activations=MB // 2, process=300 * MB)


def limit_for(form: str, num: int, piece: int = 128) -> int:
    return plan_for(DEMAND, form, num, piece, 0).num_bytes  # type: ignore[arg-type]


def test_the_parts_are_what_they_stand_for() -> None:
    plan = plan_for(DEMAND, "int8", 20, 16, 10**9)
    parts = {name.partition(",")[0]: size for name, size in plan.parts}
    assert parts["gradient"] == parts["centre"] == 40 * MB
    assert parts["directions"] == 200 * MB + 20 * 10_000 * 4  # a scale per row and direction
    assert parts["activations"] == int(1.3 * 16 * MB / 2)
    assert plan.num_bytes == sum(size for _, size in plan.parts)


@pytest.mark.parametrize("form", ["float32", "bfloat16", "int8"])
def test_the_most_exact_form_that_fits_is_taken(form: str) -> None:
    plan = choose(DEMAND, limit=limit_for(form, 20), piece=128)
    assert (plan.form, plan.model_batch) == (form, 20)
    assert plan.num_bytes <= plan.limit
    assert choose(DEMAND, limit=limit_for(form, 20) - 1, piece=128).form != form


def test_what_needs_all_at_once_falls_back_on_the_disk_and_what_does_not_on_batches() -> None:
    limit = limit_for("int8", 20) - 1
    assert choose(DEMAND, limit=limit, piece=128).form == "disk"
    plan = choose(replace(DEMAND, together=False), limit=limit, piece=128)
    assert (plan.form, plan.model_batch) == ("int8", 10)
    plan = choose(replace(DEMAND, together=False), limit=limit_for("int8", 5), piece=128)
    assert (plan.form, plan.model_batch) == ("int8", 5)


def test_what_is_given_is_kept() -> None:
    plan = choose(DEMAND, limit=10**12, form="int8", model_batch=7, piece=3)
    assert (plan.form, plan.model_batch, plan.piece) == ("int8", 7, 3)
    assert choose(DEMAND, limit=10**12, model_batch=99).model_batch == 20


def test_smaller_passes_come_before_model_batches_and_the_disk() -> None:
    limit = limit_for("int8", 20, piece=16)
    for together in (True, False):
        plan = choose(replace(DEMAND, together=together), limit=limit)
        assert (plan.form, plan.model_batch) == ("int8", 20)
        assert 8 <= plan.piece <= 16


def test_pieces_shrink_with_the_limit_but_not_below_one() -> None:
    assert choose(DEMAND, limit=10**12).piece == 128
    small = choose(DEMAND, limit=520 * MB)
    assert 1 < small.piece < 128
    assert small.num_bytes <= 520 * MB
    assert choose(replace(DEMAND, activations=10**9), limit=3 * 10**9, form="disk").piece == 1


def test_ranks_share_the_directions() -> None:
    alone = {name.partition(",")[0]: size for name, size in plan_for(DEMAND, "float32", 20, 8, 0).parts}
    four = plan_for(replace(DEMAND, num_ranks=4), "float32", 20, 8, 0)
    shared = {name.partition(",")[0]: size for name, size in four.parts}
    assert shared["directions"] == alone["directions"] / 4
    assert shared["centre"] == alone["centre"]


def test_what_cannot_fit_is_refused_with_what_would() -> None:
    with pytest.raises(RecipeError, match=r"max_memory is 100 MB, but \d+ MB are needed") as error:
        choose(DEMAND, limit=100 * MB)
    assert "--model-batch" in (error.value.hint or "")
