"""CLIP under learned heads: where they start, what trains, what judges, and that every command runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import published
import pytest
import torch
from safetensors.torch import save_file

from soupkit.align.graph.expression import names_in
from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.cli.app import run_command_line
from soupkit.manifest import Manifest
from soupkit.recipe.evaluate import Evaluate
from soupkit.stages.alignment.examples import example_inputs, permutations_of
from soupkit.task.images.models import ModelSpec, build
from soupkit.task.images.task import open_task
from soupkit.task.spec import HeadSpec, parse_head
from soupkit.world import World

WORLD = World("cpu", threads=1)
SIZES = {"num_train": 40, "num_held_out": 20, "num_test": 20}
DATA = ("--data", "digits", *(f"--{k.replace('_', '-')}={v}" for k, v in SIZES.items()), "--batch-size", "20")
HEAD = "classification_head.weight"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP model of random weights, as open_clip writes one."""
    directory = tmp_path_factory.mktemp("heads") / "clip"
    directory.mkdir()
    config = {"model_cfg": published.MODEL, "preprocess_cfg": {}}
    torch.manual_seed(0)
    model = build(ModelSpec("open_clip", "toy", {}, config))
    (directory / "open_clip_config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), directory / "open_clip_model.safetensors")
    return directory


def soupkit_(*words: object) -> None:
    assert run_command_line([*map(str, words), "--quiet"]) == 0


def finetuned(base: Path, out: Path, *options: object) -> Path:
    train: tuple[object, ...] = ("--lr", "1e-3", "--warmup-steps", 1, "--clip-grad", 1, "--threads", 1)
    train += () if "--epochs" in options else ("--epochs", 1)
    soupkit_("finetune", "--base", base, *DATA, *train, *options, "--out", out)
    return out


def said(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert run_command_line([*map(str, words), "--quiet"]) in (1, 2)
    return capsys.readouterr().err


def outputs(directory: Path, **options: Any) -> np.ndarray:
    recipe = Evaluate(refs=("",), data="digits", device="cpu", batch_size=20, **SIZES, **options)
    task = open_task(Checkpoint(directory), recipe, WORLD)
    return task.predict(task.held_out).outputs


@pytest.fixture(scope="module")
def start(clip: Path) -> Path:
    return finetuned(clip, clip.parent / "start", "--head", "zero-shot", "--epochs", 0)


@pytest.fixture(scope="module")
def pair(start: Path) -> list[Path]:
    return [finetuned(start, start.parent / f"run-{seed}", "--seed", seed) for seed in range(2)]


def test_the_learned_head_starts_where_the_zero_shot_head_is(clip: Path, start: Path) -> None:
    np.testing.assert_allclose(outputs(start), outputs(clip), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(outputs(start, head="zero-shot"), outputs(clip))
    section = json.loads((start / "open_clip_config.json").read_text())["classifier"]
    assert section["templates"] == ["a photo of a {}."]
    assert len(section["class_names"]) == 10
    assert not Checkpoint(start)["classification_head.bias"].any()


def test_tower_and_head_learn_and_the_text_tower_rests(start: Path, pair: list[Path], tmp_path: Path) -> None:
    before, after = Checkpoint(start), Checkpoint(pair[0])
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert {HEAD, "classification_head.bias", "visual.proj"} <= changed
    assert all(name.startswith(("visual.", "classification_head.")) for name in changed)
    small = Checkpoint(finetuned(start, tmp_path / "small", "--seed", 0, "--text-tower", "drop"))
    assert all(name.startswith(("visual.", "classification_head.")) for name in small)
    for name in small:
        np.testing.assert_array_equal(small[name], after[name])


def test_a_linear_probe_and_then_everything(clip: Path, tmp_path: Path) -> None:
    """LP-FT: a fresh head on features that stay, then both; for other data the head is anew."""
    options = ("--head", "linear,normalize=false,bias=false", "--trainable", "head", "--text-tower", "drop")
    probe, base = Checkpoint(finetuned(clip, tmp_path / "probe", *options)), Checkpoint(clip)
    assert all(np.array_equal(probe[name], base[name]) for name in probe if name != HEAD)
    tuned = Checkpoint(finetuned(tmp_path / "probe", tmp_path / "tuned"))
    assert not np.array_equal(tuned["visual.proj"], probe["visual.proj"])
    assert not np.array_equal(tuned[HEAD], probe[HEAD])
    assert tuned.config["classifier"]["normalize"] is False
    soupkit_("export", tmp_path / "tuned", "--to", "timm", "--out", tmp_path / "timm")
    np.testing.assert_allclose(outputs(tmp_path / "timm"), outputs(tmp_path / "tuned"), rtol=1e-3, atol=1e-4)


def test_a_head_from_elsewhere(clip: Path, start: Path, tmp_path: Path, capsys: Any) -> None:
    """From a checkpoint, a safetensors file and a pickle: judged under it, and started from it."""
    head = {name: torch.from_numpy(Checkpoint(start)[name]) for name in (HEAD, "classification_head.bias")}
    save_file(head, tmp_path / "head.safetensors")
    torch.save({name.rpartition(".")[2]: tensor for name, tensor in head.items()}, tmp_path / "head.pt")
    expected = outputs(start)
    for file in (start, tmp_path / "head.safetensors", tmp_path / "head.pt"):
        np.testing.assert_array_equal(outputs(clip, head=str(file)), expected)
    begun = finetuned(clip, tmp_path / "begun", "--head", tmp_path / "head.pt", "--epochs", 0)
    np.testing.assert_array_equal(outputs(begun), expected)
    scaled = outputs(clip, head=f"{start},logit_scale=true")
    assert not np.allclose(scaled, expected)


def test_what_has_no_such_head_is_told(clip: Path, start: Path, tmp_path: Path, capsys: Any) -> None:
    small = finetuned(start, tmp_path / "small", "--text-tower", "drop", "--epochs", 0)
    assert "no text tower" in said(capsys, "evaluate", small, *DATA, "--head", "zero-shot")
    assert "no such head" in said(capsys, "evaluate", clip, *DATA, "--head", "linear")
    assert "no such head" in said(capsys, "evaluate", start, *DATA, "--head", "linear,bias=false")
    images = published.write_images(tmp_path / "images", train=3, val=1)
    assert "10 classes apart, the data has 20" in said(capsys, "evaluate", start, "--data", images)
    train = ("finetune", *DATA, "--out", tmp_path / "out")
    assert "text tower" in said(capsys, *train, "--base", clip, "--text-tower", "drop")
    assert "timm's" in said(capsys, *train, "--model", "timm:test_vit", "--head", "linear")
    assert "under the heads" in said(capsys, "fge", start, *DATA, "--head", "linear", "--out", tmp_path / "f")
    with pytest.raises(Exception, match="normalize=maybe"):
        parse_head("linear,normalize=maybe")
    assert parse_head("a,b,bias=false") == HeadSpec("file", "a,b", {"bias": False})


COMMANDS = {
    "merge greedy": "--accept gt",
    "merge learned": "--epochs 1 --no-plots --blocks tensor",
    "merge mehl": "--epochs 1 --no-plots",
    "merge twa": "--epochs 1 --no-plots --fit held_out",
    "merge evolve": "--evaluations 2",
    "merge interpolate": "--at 0,0.5",
    "curve fit": "--epochs 1",
    "chain": "--num-points 3 --jobs 1",
    "align": "",
    "barrier": "--num-points 3",
    "ensemble": "",
    "evaluate": "",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs_it(command: str, pair: list[Path], tmp_path: Path) -> None:
    out, data = tmp_path / "out", () if command == "align" else DATA
    soupkit_(*command.split(), *pair, *data, *COMMANDS[command].split(), "--out", out)
    written = [path.parent for path in out.rglob("open_clip_config.json")]
    for directory in written:
        assert Checkpoint(directory).config["classifier"]["num_classes"] == 10
        assert np.isfinite(outputs(directory)).all()
    assert bool(written) == (command not in ("chain", "barrier", "ensemble", "evaluate"))


@pytest.mark.parametrize(("parts", "free"), [([], True), (["text_projection"], False)])
def test_features_that_a_text_tower_shares_are_not_permuted(parts: list[str], free: bool) -> None:
    section = {"num_classes": 3, "num_features": published.MODEL["embed_dim"], "parts": parts}
    spec = ModelSpec("open_clip", "toy", {}, {"model_cfg": published.MODEL, "classifier": section})
    model = build(spec)
    found = permutations_of(model, example_inputs(model, spec))
    assert bool(names_in(found.axes[HEAD][1])) == free
    assert any(map(names_in, found.axes["visual.transformer.resblocks.0.mlp.c_fc.weight"]))


def test_sweeps_and_populations_begin_with_one_head(clip: Path, tmp_path: Path) -> None:
    options = ("--head", "linear", "--text-tower", "drop", "--epochs", 1, "--num-runs", 2, "--no-plots")
    words = ("finetune-sweep", clip, *DATA, *options, "--lp-epochs", 1, "--lp-lr", "1e-3", "--jobs", 1)
    soupkit_(*words, "--out", tmp_path / "sweep")
    assert [m["head"] for m in (Manifest.read(tmp_path / "sweep" / "run-000").recipe,)] == [None]
    soupkit_("merge", "uniform", tmp_path / "sweep", "--out", tmp_path / "soup")
    assert outputs(tmp_path / "soup").shape == (20, 10)
    words = ("train-population", "--base", clip, "--head", "zero-shot", *DATA, "--num-members", 2)
    soupkit_(*words, "--epochs", 1, "--threads", 1, "--out", tmp_path / "population")
    assert outputs(tmp_path / "population" / "average").shape == (20, 10)
