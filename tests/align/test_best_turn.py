"""Transformers matched beyond permutations: hidden turns are found, outputs are plain and can be remade."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from align.traced import traced_once
from safetensors.torch import save_file
from task.small import FEW_WORDS, saved
from torch import Tensor, nn

from soupkit.align.graph.trial import randomise
from soupkit.align.matching.similarity import all_permuted
from soupkit.align.turns.best_turn import (
    Found,
    Matching,
    best_heads,
    best_rotations,
    match_turned,
    procrustes,
)
from soupkit.align.turns.proof import proved
from soupkit.align.turns.turn import Turn, balanced, complement_of_ones, fold, heads, random_turn, turned
from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.errors import AlignError, CheckpointError, RecipeError
from soupkit.events import silent
from soupkit.jobs.align.align import align
from soupkit.jobs.align.barrier import barrier_job
from soupkit.jobs.files.verify import reproduce, verify
from soupkit.manifest import Manifest
from soupkit.recipe.align import Align, Barrier
from soupkit.recipe.inspect import Reproduce, Verify
from soupkit.stages.alignment import permute
from soupkit.stages.alignment.examples import example_inputs
from soupkit.task.images.models import ModelSpec, build, load_weights, parse_model
from soupkit.world import World

VIT = "timm:test_vit,num_classes=10,img_size=32,depth=2"
MODELS = {
    "class token": parse_model(VIT),
    "layer scale, norms of queries and keys": parse_model(f"{VIT},init_values=0.1,qk_norm=True"),
    "two towers": ModelSpec("open_clip", "ViT-B-32", config=FEW_WORDS),
}
WORLD = World("cpu", 1)


@pytest.fixture(autouse=True, scope="module")
def graphs_once() -> Iterator[None]:
    """The first job follows the graph; the same network is not traced again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(permute, "permutations_of", traced_once)
        yield


class Case:
    """A network away from special values, folded and balanced, and what may be moved of it."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        described = MODELS[name]
        self.model: nn.Module = build(described).eval()
        randomise(self.model, 1)
        self.inputs = example_inputs(self.model, described)
        self.towers = proved(self.model, self.inputs).towers
        self.matching = Matching(traced_once(self.model, self.inputs), self.towers)
        folded = fold(self.model.state_dict(), self.towers)
        self.even = turned(folded, self.towers, balanced(folded, self.towers))

    def near(self, noise: float, seed: int) -> dict[str, Tensor]:
        """The network with noise of so many standard deviations in everything that is not 1."""
        generator = torch.Generator().manual_seed(seed)
        ones = {name for name, tensor in self.even.items() if bool((tensor == 1).all())}
        return {
            name: tensor
            + noise * tensor.std() * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if tensor.numel() > 1 and name not in ones
            else tensor
            for name, tensor in self.even.items()
        }

    def hidden(self, tensors: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
        """The same function, turned at random."""
        return turned(tensors, self.towers, random_turn(self.towers, tensors, seed))


@pytest.fixture(params=MODELS, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def worst(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    pairs = [(a[name], b[name]) for name in a if a[name].is_floating_point()]
    return max(float((x - y).abs().max()) for x, y in pairs)


def test_a_hidden_turn_is_found(case: Case) -> None:
    _, found = match_turned([case.even, case.hidden(case.even, 3)], 0, case.matching)
    assert found.cosine > 1 - 1e-6 > found.cosine_before


def test_under_noise_it_is_found_as_well(case: Case) -> None:
    """At least as near as the hidden network is when nothing is hidden."""
    other = case.near(0.3, 2)
    _, plain = match_turned([case.even, other], 0, case.matching)
    _, found = match_turned([case.even, case.hidden(other, 3)], 0, case.matching)
    assert found.cosine > plain.cosine - 2e-3
    assert found.cosine > plain.cosine_before > 0.9


def test_three_are_matched_to_one_another(case: Case) -> None:
    models = [case.even, *(case.hidden(case.near(0.5, seed), seed) for seed in (4, 5))]
    found = match_turned(models, 0, case.matching)
    assert found[0].cosine == pytest.approx(1)
    assert all(each.cosine > 0.85 for each in found[1:])
    pairwise = [match_turned([models[0], model], 0, case.matching)[1] for model in models[1:]]
    together = [_moved(case, model, each) for model, each in zip(models[1:], found[1:], strict=True)]
    apart = [_moved(case, model, each) for model, each in zip(models[1:], pairwise, strict=True)]
    assert _inner(*together) >= _inner(*apart) - 1e-6 * _inner(together[0], together[0])


def _moved(case: Case, model: dict[str, Tensor], found: Found) -> dict[str, Tensor]:
    spec = case.matching.spec
    return turned(all_permuted(model, spec, found.permutation), case.towers, found.turn)


def _inner(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return sum(float((a[name] * b[name]).sum()) for name in a if a[name].is_floating_point())


def test_steps_are_the_best_of_many(case: Case) -> None:
    """No random map of the same kind beats the step's, and each is orthogonal."""
    other = case.hidden(case.even, 6)
    even = turned(other, case.towers, balanced(other, case.towers))
    for step in (best_rotations, best_heads):
        best = step(case.even, even, case.towers)
        value = _inner(case.even, turned(even, case.towers, best))
        for matrices in (*best.rotations.values(), *best.qk.values(), *best.vo.values()):
            size = matrices.shape[-1]
            assert torch.allclose(matrices @ matrices.mT, torch.eye(size, dtype=torch.float64), atol=1e-10)
        for rotation in best.rotations.values():
            assert torch.allclose(rotation.sum(1), torch.ones(len(rotation), dtype=torch.float64), atol=1e-10)
        assert value >= _inner(case.even, even)
        for seed in range(5):
            orthogonal = _orthogonal(random_turn(case.towers, even, seed), streams=step is best_rotations)
            assert value > _inner(case.even, turned(even, case.towers, orthogonal))


def _orthogonal(turn: Turn, *, streams: bool) -> Turn:
    if streams:
        return Turn(rotations=turn.rotations)
    qk, vo = ({name: procrustes(maps) for name, maps in part.items()} for part in (turn.qk, turn.vo))
    return Turn(orders=turn.orders, qk=qk, vo=vo)


def test_the_complement_of_ones() -> None:
    basis = complement_of_ones(7)
    assert torch.allclose(basis.T @ basis, torch.eye(6, dtype=torch.float64), atol=1e-12)
    assert float(basis.sum(0).abs().max()) < 1e-12


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two checkpoints that compute the same in other directions."""
    folder = tmp_path_factory.mktemp("pair")
    a, b = folder / "a", folder / "b"
    first = saved(a, VIT)
    saved(b, VIT, seed=1)
    randomise(first, 0)
    towers = proved(first, (torch.randn(2, 3, 32, 32),)).towers
    folded = fold(first.state_dict(), towers)
    for directory, state in (
        (a, first.state_dict()),
        (b, turned(folded, towers, random_turn(towers, folded, 5))),
    ):
        single = {name: tensor.float().contiguous() for name, tensor in state.items()}
        save_file(single, directory / "model.safetensors")
    return a, b


def outputs(checkpoint: Checkpoint) -> Tensor:
    model = build(parse_model(VIT))
    load_weights(model, checkpoint)
    found: Tensor = model(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))).detach()
    return found


@pytest.fixture(scope="module")
def out(pair: tuple[Path, Path]) -> Path:
    """The pair, aligned; nothing writes into it."""
    directory = pair[0].parent / "out"
    align(Align(refs=tuple(map(str, pair)), rotate=True, out=directory, threads=1), WORLD, silent)
    return directory


def test_the_job_writes_plain_checkpoints_that_can_be_made_again(
    tmp_path: Path, pair: tuple[Path, Path], out: Path
) -> None:
    written = [Checkpoint(out / name) for name in "ab"]
    for name in written[0]:
        assert np.allclose(written[0][name], written[1][name], atol=2e-3), name
    for source, checkpoint in zip(pair, written, strict=True):
        assert torch.allclose(outputs(checkpoint), outputs(Checkpoint(source)), atol=1e-4)
    verify(Verify(directory=out), WORLD, silent)
    reproduce(Reproduce(directory=out / "b", out=tmp_path / "again"), WORLD, silent)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        out / "b" / "model.safetensors"
    ).read_bytes()
    reproduce(Reproduce(directory=tmp_path / "again", out=tmp_path / "twice"), WORLD, silent)


def test_a_record_in_pieces_is_refused(tmp_path: Path, out: Path) -> None:
    broken = shutil.copytree(out, tmp_path / "out")
    (broken / "b" / "turn.npz").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="how it was turned cannot be read"):
        reproduce(Reproduce(directory=broken / "b", out=tmp_path / "again"), WORLD, silent)
    assert not (tmp_path / "again").exists()
    with pytest.raises(CheckpointError, match=r"turn\.npz"):
        verify(Verify(directory=broken), WORLD, silent)


def test_narrow_weights_are_turned_and_rounded(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    for source in pair:
        directory = tmp_path / source.name
        directory.mkdir()
        (directory / "config.json").write_bytes((source / "config.json").read_bytes())
        tensors = {name: torch.from_numpy(np.array(values)) for name, values in Checkpoint(source).items()}
        save_file(
            {name: tensor.bfloat16() for name, tensor in tensors.items()}, directory / "model.safetensors"
        )
    out = tmp_path / "out"
    align(
        Align(refs=(str(tmp_path / "a"), str(tmp_path / "b")), rotate=True, out=out, threads=1), WORLD, silent
    )
    assert {slot.dtype for slot in Checkpoint(out / "b").slots.values()} == {"BF16"}
    assert torch.allclose(outputs(Checkpoint(out / "b")), outputs(Checkpoint(pair[1])), atol=0.2)


def test_the_line_between_two_turns_of_one_function_is_flat(pair: tuple[Path, Path]) -> None:
    common = {"data": "digits", "num_train": 50, "num_held_out": 50, "num_test": 100, "num_points": 3}
    recipe = Barrier(refs=tuple(map(str, pair)), rotate=True, repair="off", device="cpu", threads=1, **common)  # type: ignore[arg-type]
    points = barrier_job(recipe, WORLD, silent)["notes"]["points"]
    losses = {line: [point["nll"] for point in points[line]] for line in ("naive", "aligned")}
    assert np.ptp(losses["aligned"]) < 1e-4 < np.ptp(losses["naive"]) / 10


def test_what_cannot_be_turned_is_refused(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    for number in range(2):
        saved(tmp_path / f"resnet-{number}", "timm:test_resnet,num_classes=5,img_size=32", seed=number)
    refs = tuple(str(tmp_path / f"resnet-{number}") for number in range(2))
    with pytest.raises(AlignError, match="no pre-norm vision transformer"):
        align(Align(refs=refs, rotate=True, out=tmp_path / "out", threads=1, dry_run=True), WORLD, silent)
    assert not (tmp_path / "out").exists()
    for recipe in (Align, Barrier):
        with pytest.raises(RecipeError, match="--rotate goes by weights"):
            recipe(
                refs=tuple(map(str, pair)), rotate=True, by="activations", data="digits", out=tmp_path / "out"
            )


def test_heads_are_where_they_were_said_to_be() -> None:
    """Attention computed from what `heads` gives equals the module's own."""
    case = Case("class token")
    attention = case.towers[0].attentions[0]
    q, k, v, out = heads(case.even, attention)
    x = torch.randn(6, q.shape[-1] - 1, dtype=torch.float64)
    ones = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    scores = torch.einsum("hdx,nx,hdy,my->hnm", q, ones, k, ones) / q.shape[1] ** 0.5
    expected = torch.einsum("hnm,hdx,mx,hdo->no", scores.softmax(-1), v, ones, out)
    module = build(MODELS["class token"]).double().eval()
    module.load_state_dict(case.even)
    found = module.blocks[0].attn(x[None])[0] - case.even["blocks.0.attn.proj.bias"]
    assert torch.allclose(found, expected, atol=1e-10)


def test_the_manifest_says_what_was_turned(out: Path) -> None:
    notes = Manifest.read(out).notes["alignment"]
    assert notes["towers"]["freedoms"] == {"transformer": ["stream", "qk", "vo"]}
    assert set(notes["verification"]["turned"]) == {"actual", "randomised"}
    assert max(notes["verification"]["turned"].values()) < 1e-10
