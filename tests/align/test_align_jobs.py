"""`align`, `repair` and merges that align, end to end: what is written is right, or nothing is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from align.checkpoints import permuted_copy, spec_of, trained
from align.traced import traced_once
from safetensors.torch import save_file
from task.small import CLIP_CONFIG

from soupkit.align.graph.expression import Atom
from soupkit.align.permutation import random_permutation
from soupkit.align.permuted import Permuted
from soupkit.align.spec import PermutationSpec
from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.reference import open_references
from soupkit.checkpoint.tensors import write_tensors
from soupkit.errors import AlignError, CheckpointError, OutputError, RecipeError, SoupkitError
from soupkit.events import Event, Table, Told, silent
from soupkit.jobs.align.align import align
from soupkit.jobs.align.repair import repair
from soupkit.jobs.files.verify import reproduce, verify
from soupkit.jobs.merge.interpolate import merge_interpolate
from soupkit.jobs.merge.uniform import merge_uniform, merge_weighted
from soupkit.jobs.soups.greedy import merge_greedy
from soupkit.manifest import Manifest
from soupkit.recipe.align import Align, Repair
from soupkit.recipe.inspect import Reproduce, Verify
from soupkit.recipe.merge import MergeGreedy, MergeInterpolate, MergeUniform, MergeWeighted
from soupkit.stages.alignment import permute
from soupkit.task.images.models import ModelSpec, build
from soupkit.world import World

WORLD = World("cpu", 1)
DATA: dict[str, Any] = {
    "data": "digits",
    "num_train": 128,
    "num_held_out": 60,
    "num_test": 60,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A network, and the same in another order; nothing writes into them."""
    folder = tmp_path_factory.mktemp("pair")
    a = trained(folder / "a")
    return a, permuted_copy(a, folder / "b")


@pytest.fixture(autouse=True)
def graphs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first job follows the graph; the same network is not traced again."""
    monkeypatch.setattr(permute, "permutations_of", traced_once)


def refs(*paths: Path) -> tuple[str, ...]:
    return tuple(map(str, paths))


def same(a: Path, b: Path) -> bool:
    first, second = Checkpoint(a), Checkpoint(b)
    return all(np.array_equal(first[name], second[name]) for name in first)


def test_a_permuted_copy_comes_back_bit_for_bit(pair: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = pair
    out = tmp_path / "out"
    events: list[Event] = []
    manifest = align(Align(refs=refs(a, b), to=str(a), out=out, threads=1), WORLD, events.append)
    assert same(a, out / "a")
    assert same(a, out / "b")
    assert not same(a, b)
    assert [checkpoint.path.name for checkpoint in open_references([str(out)])] == ["a", "b"]
    matches = manifest["notes"]["alignment"]["matches"]
    assert matches[0]["groups_changed"] == 0
    assert matches[1]["groups_changed"] == matches[1]["groups"] > 5
    assert matches[1]["cosine"] == pytest.approx(1.0, abs=1e-9)
    assert manifest["notes"]["alignment"]["verification"]["errors"]["randomised"] < 1e-10
    assert any(isinstance(event, Table) for event in events)
    verify(Verify(directory=out, inputs=True), WORLD, silent)


def test_the_output_goes_with_the_weights(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Each member is a checkpoint with the configuration of its source, which can be made again."""
    a, b = pair
    align(Align(refs=refs(a, b), out=tmp_path / "out", threads=1), WORLD, silent)
    member = tmp_path / "out" / "b"
    assert (member / "config.json").read_bytes() == (b / "config.json").read_bytes()
    again = tmp_path / "again"
    reproduce(Reproduce(directory=member, out=again), WORLD, silent)
    assert same(member, again)


def test_nothing_to_do_is_said(pair: tuple[Path, Path], tmp_path: Path) -> None:
    a, _ = pair
    events: list[Event] = []
    copy = permuted_copy(a, tmp_path / "c", noise=0.05)
    aligned = tmp_path / "aligned"
    align(Align(refs=refs(a, copy), out=aligned, threads=1), WORLD, silent)
    align(Align(refs=refs(aligned), out=tmp_path / "twice", threads=1), WORLD, events.append)
    said = [event.message for event in events if isinstance(event, Told)]
    assert any("identity, 0 of" in line and "aligned already" in line for line in said)
    assert same(aligned / "c", tmp_path / "twice" / "c")


def test_three_meet_in_the_middle(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Noisy copies in three orders; the one that is most like the others is the one without noise."""
    a, _ = pair
    noisy = [permuted_copy(a, tmp_path / f"c{seed}", noise=0.3, seed=seed) for seed in (2, 3)]
    manifest = align(Align(refs=refs(noisy[0], a, noisy[1]), out=tmp_path / "out", threads=1), WORLD, silent)
    assert manifest["notes"]["alignment"]["to"] == str(a)
    name = "layer1.0.conv1.weight"
    there = Checkpoint(a)[name]
    for copy in ("c2", "c3"):
        assert np.abs(Checkpoint(tmp_path / "out" / copy)[name] - there).mean() < 0.5 * np.abs(there).mean()


def test_by_activations(pair: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = pair
    for by in ("activations", "both"):
        out = tmp_path / by
        align(Align(refs=refs(a, b), out=out, by=by, num_batches=1, threads=1, **DATA), WORLD, silent)
        assert same(a, out / "b"), by


def test_a_pinned_group_stays(pair: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = pair
    manifest = align(Align(refs=refs(a, b), out=tmp_path / "out", pin=("*",), threads=1), WORLD, silent)
    assert manifest["notes"]["alignment"]["matches"][1]["groups"] == 0
    assert same(b, tmp_path / "out" / "b")


def forgetful(right: PermutationSpec) -> tuple[PermutationSpec, str | None]:
    """The groups as a tool would have them that forgets an axis, and the group that is then wrong."""
    axis, name = next(
        (axes[0], name)
        for name, axes in right.axes.items()
        if name.endswith("bias") and isinstance(axes[0], Atom)
    )
    return PermutationSpec(right.groups, {**right.axes, name: (Atom(None, axis.size),)}), axis.group


def test_a_wrong_permutation_is_never_written(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups that forget an axis get past a checker that does not look; the checkpoint's own check stops
    them."""
    a, b = pair
    wrong, _ = forgetful(spec_of(a))
    network = permute.open_network
    monkeypatch.setattr(
        permute,
        "open_network",
        lambda *arguments: permute.Network(*(vars(network(*arguments)) | {"spec": wrong}).values()),
    )
    with pytest.raises(AlignError, match="its output changes"):
        align(Align(refs=refs(a, b), out=tmp_path / "out", threads=1), WORLD, silent)
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_wrong_groups_are_pinned_by_the_checker(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair
    wrong, group = forgetful(spec_of(a))
    monkeypatch.setattr(permute, "permutations_of", lambda *_arguments, **_options: wrong)
    manifest = align(Align(refs=refs(a, b), out=tmp_path / "out", threads=1), WORLD, silent)
    assert manifest["notes"]["alignment"]["verification"]["culprits"] == [group]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"refs": ("a",)}, RecipeError, "at least two"),
        ({"to": "nowhere"}, SoupkitError, "no such file"),
        ({"out": "a"}, OutputError, "is also an input"),
    ],
)
def test_what_cannot_be_aligned(
    pair: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    error: Any,
    words: str,
) -> None:
    monkeypatch.chdir(pair[0].parent)
    values = {"refs": ("a", "b"), "out": Path("out"), "threads": 1} | change
    with pytest.raises(error, match=words):
        align(Align(**values | {"out": Path(values["out"])}), WORLD, silent)
    assert not Path("out").exists()
    assert pair[0].exists()


def test_merges_align(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The aligned mean of a network and its permuted copy is the network; it can be made again."""
    a, b = pair
    common: dict[str, Any] = {"refs": refs(a, b), "align": True, "threads": 1, "device": "cpu"}
    merge_uniform(MergeUniform(out=tmp_path / "u", **common), WORLD, silent)
    merge_weighted(MergeWeighted(out=tmp_path / "w", coefficients=(0.25, 0.75), **common), WORLD, silent)
    merge_interpolate(MergeInterpolate(out=tmp_path / "i", at=(0.5,), **common), WORLD, silent)
    for name in "uwi":
        assert same(a, tmp_path / name), name
        verify(Verify(directory=tmp_path / name, inputs=True), WORLD, silent)
    reproduce(Reproduce(directory=tmp_path / "u", out=tmp_path / "again"), WORLD, silent)
    assert same(a, tmp_path / "again")
    assert "permutation" in Manifest.read(tmp_path / "again").inputs[1]


def test_a_greedy_soup_aligns(pair: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = pair
    manifest = merge_greedy(
        MergeGreedy(
            refs=refs(a, b),
            align=True,
            align_by="activations",
            bn_batches=1,
            out=tmp_path / "g",
            threads=1,
            **DATA,
        ),
        WORLD,
        silent,
    )
    assert len(manifest["notes"]["picks"]) == 2
    assert same(a, tmp_path / "g")


def test_repair_reads_what_was_merged(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Of two networks trained apart: repaired through the manifest, and in the merge itself, alike."""
    other = trained(tmp_path / "other", seed=1)
    common: dict[str, Any] = {"refs": refs(pair[1], other), "align": True, "threads": 1} | DATA
    merge_uniform(MergeUniform(out=tmp_path / "soup", **common), WORLD, silent)
    recipe = Repair(soup=str(tmp_path / "soup"), out=tmp_path / "apart", num_batches=1, threads=1, **DATA)
    apart = repair(recipe, WORLD, silent)
    within = merge_uniform(
        MergeUniform(out=tmp_path / "within", repair="forward", bn_batches=1, **common), WORLD, silent
    )
    notes = apart["notes"]["repair"]
    assert notes["kept"]
    assert notes["held_out_after"]["nll"]["value"] < notes["held_out_before"]["nll"]["value"]
    assert within["notes"]["repair"] == notes
    for written in (apart, within):
        assert written["notes"]["selected_on"]["split"] == "held_out"
    assert same(tmp_path / "apart", tmp_path / "within")
    assert apart["metrics"]["held_out"]["nll"]["value"] == pytest.approx(
        notes["held_out_after"]["nll"]["value"], rel=1e-5
    )
    reproduce(Reproduce(directory=tmp_path / "within", out=tmp_path / "again"), WORLD, silent)
    assert same(tmp_path / "within", tmp_path / "again")


def test_a_repair_that_does_not_help_is_not_kept(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The mean of a network and itself has nothing to gain."""
    a, b = pair
    merge_uniform(MergeUniform(refs=refs(a, b), align=True, out=tmp_path / "soup", threads=1), WORLD, silent)
    options: dict[str, Any] = {
        "soup": str(tmp_path / "soup"),
        "num_batches": 1,
        "batch_size": 8,
        "threads": 1,
        **DATA,
    }
    notes = repair(Repair(out=tmp_path / "kept", **options), WORLD, silent)["notes"]["repair"]
    assert not notes["kept"]
    assert same(a, tmp_path / "kept")
    forced = repair(Repair(out=tmp_path / "forced", force=True, **options), WORLD, silent)
    assert forced["notes"]["repair"]["kept"]
    assert "selected_on" not in forced["notes"]
    assert not same(a, tmp_path / "forced")


def test_repair_needs_a_soup(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="records no coefficients"):
        repair(Repair(soup=str(pair[0]), out=tmp_path / "out", threads=1, **DATA), WORLD, silent)
    with pytest.raises(RecipeError, match="needs --data"):
        Repair(soup="x", out=tmp_path / "out")
    with pytest.raises(RecipeError, match="--repair needs --data"):
        merge_uniform(MergeUniform(refs=refs(*pair), repair="bn", out=tmp_path / "out"), WORLD, silent)
    with pytest.raises(RecipeError, match="--align-by both needs --data"):
        merge_uniform(
            MergeUniform(refs=refs(*pair), align=True, align_by="both", out=tmp_path / "out"), WORLD, silent
        )
    with pytest.raises(RecipeError, match="stream"):
        merge_uniform(
            MergeUniform(refs=refs(*pair), align=True, stream=True, out=tmp_path / "out"), WORLD, silent
        )


def test_a_clip_model_is_aligned_in_both_towers(tmp_path: Path) -> None:
    """An open_clip directory and its copy in another order; and the soup of two runs as a zero-shot
    classifier."""
    directories = [clip(tmp_path / name, seed) for seed, name in enumerate("ab")]
    source = Checkpoint(directories[0])
    network = permute.open_network(source, Align(refs=("a", "b"), out=tmp_path / "x"), silent)
    towers = {name.split(".")[0] for group in network.spec.groups for name, _ in network.spec.attached(group)}
    assert {"visual", "transformer"} <= towers
    view = Permuted(source, network.spec, random_permutation(network.spec, 3))
    copy = tmp_path / "copy"
    shutil.copytree(directories[0], copy)
    (copy / "open_clip_model.safetensors").unlink()
    write_tensors(copy, {name: view[name] for name in view}, file_name="open_clip_model.safetensors")
    align(Align(refs=refs(directories[0], copy), out=tmp_path / "out", threads=1), WORLD, silent)
    assert same(directories[0], tmp_path / "out" / "copy")
    options: dict[str, Any] = {
        "refs": refs(*directories),
        "align": True,
        "repair": "forward",
        "bn_batches": 1,
    }
    manifest = merge_uniform(MergeUniform(out=tmp_path / "soup", threads=1, **options, **DATA), WORLD, silent)
    assert "repair" in manifest["notes"]


def clip(directory: Path, seed: int) -> Path:
    """A tiny open_clip model with random weights."""
    directory.mkdir()
    torch.manual_seed(seed)
    model = build(ModelSpec("open_clip", "tiny", {}, CLIP_CONFIG))
    (directory / "open_clip_config.json").write_text(json.dumps(CLIP_CONFIG))
    save_file(model.state_dict(), directory / "open_clip_model.safetensors")
    return directory
