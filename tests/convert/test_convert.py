"""`convert`: what comes out is what was in the file, under the model's own names."""

import argparse
import json
import pathlib
import subprocess
import sys
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from convert.pickled import foreign_class, save, weights
from safetensors import safe_open
from safetensors.torch import load_file

from soupkit.checkpoint.formats.pickles import load_pickle, mappings_of, release
from soupkit.cli.app import run_command_line
from soupkit.errors import CheckpointError, ReferenceError, SoupkitError
from soupkit.events import Event, Told, silent
from soupkit.jobs.files.convert import convert
from soupkit.jobs.files.verify import verify
from soupkit.jobs.recipes.run import run as run_job
from soupkit.manifest import Manifest
from soupkit.recipe.hub import Convert
from soupkit.recipe.inspect import Verify
from soupkit.recipe.run import Run
from soupkit.world import World


def run(*refs: Path, out: Path, **options: Any) -> dict[str, Any]:
    return convert(Convert(refs=tuple(map(str, refs)), out=out, **options), World(threads=1), silent)


def told(*refs: Path, out: Path, **options: Any) -> str:
    events: list[Event] = []
    convert(Convert(refs=tuple(map(str, refs)), out=out, **options), World(threads=1), events.append)
    return "\n".join(event.message for event in events if isinstance(event, Told))


def assert_same(directory: Path, expected: dict[str, torch.Tensor]) -> None:
    found = load_file(directory / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name].float(), tensor.float()), name


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("name", ["m.pt", "m.pth", "m.pth.tar", "m.bin", "m.ckpt"])
def test_every_format(tmp_path: Path, name: str, legacy: bool) -> None:
    run(save(weights(legacy=legacy), tmp_path / name, legacy=legacy), out=tmp_path / "out")
    assert_same(tmp_path / "out", weights(legacy=legacy))


SHAPES: dict[str, Any] = {
    "plain": lambda w: w,
    "ordered": OrderedDict,
    "parameters": lambda w: {n: torch.nn.Parameter(t, t.is_floating_point()) for n, t in w.items()},
    "timm": lambda w: {
        "epoch": 3,
        "arch": "resnet18",
        "state_dict": w,
        "optimizer": {"state": {}},
        "metric": 0.5,
    },
    "torchvision": lambda w: {
        "model": w,
        "args": argparse.Namespace(lr=0.1),
        "optimizer": {"m": torch.ones(2)},
    },
    "numpy scalars": lambda w: {"state_dict": w, "best": np.float64(0.5), "scores": np.arange(3)},
    "paths": lambda w: {
        "state_dict": w,
        "output": pathlib.PosixPath("/x"),
        "log": defaultdict(list, loss=[1.0]),
    },
    "nested": lambda w: {"model": {"state_dict": w, "step": 3}},
    "data parallel": lambda w: {"state_dict": {f"module.{n}": t for n, t in w.items()}},
    "compiled": lambda w: {"model": {f"_orig_mod.{n}": t for n, t in w.items()}},
    "both": lambda w: {"model": {f"module._orig_mod.{n}": t for n, t in w.items()}},
    "swa": lambda w: {"n_averaged": torch.tensor(5), **{f"module.{n}": t for n, t in w.items()}},
    "extra state": lambda w: {**w, "layer._extra_state": None},
    "unknown key": lambda w: {"student": w, "step": 3},
    "optimizer beside": lambda w: {
        "state_dict": w,
        "optimizer": {"exp_avg": torch.ones(2)},
        "loss_fn": weights(1),
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_finds_the_state_dict(tmp_path: Path, shape: str) -> None:
    run(save(SHAPES[shape](weights()), tmp_path / "m.pt"), out=tmp_path / "out")
    assert_same(tmp_path / "out", weights())


def test_lightning(tmp_path: Path) -> None:
    callback = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
    with (
        foreign_class("lightning.fabric.utilities.data.AttributeDict", dict) as attributes,
        foreign_class(callback) as checkpoint,
    ):
        value = {
            "state_dict": {f"model.{name}": tensor for name, tensor in weights().items()},
            "hyper_parameters": attributes(lr=0.1),
            "callbacks": {checkpoint: {"best": torch.tensor(0.5)}},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
        }
        save(value, tmp_path / "epoch=9.ckpt")
    run(tmp_path / "epoch=9.ckpt", strip=("model.",), out=tmp_path / "out")
    assert_same(tmp_path / "out", weights())


AVERAGED = [
    ("state_dict", "state_dict_ema"),
    ("model", "model_ema"),
    ("model_state_dict", "ema_state_dict"),
    ("params", "params_ema"),
    ("net", "ema"),
    ("model", "swa_model"),
]


@pytest.mark.parametrize(("raw", "averaged"), AVERAGED)
@pytest.mark.parametrize("prefer", ["auto", "ema", "raw"])
def test_averaged_or_raw(tmp_path: Path, raw: str, averaged: str, prefer: str) -> None:
    path = save({raw: weights(0), averaged: weights(1), "epoch": 3}, tmp_path / "m.pt")
    text = told(path, out=tmp_path / "out", prefer=prefer)
    assert_same(tmp_path / "out", weights(0 if prefer == "raw" else 1))
    assert f"took {raw if prefer == 'raw' else averaged}; the file also holds" in text


def test_no_averaged_weights(tmp_path: Path) -> None:
    path = save({"state_dict": weights(), "state_dict_ema": None}, tmp_path / "m.pt")
    run(path, out=tmp_path / "out")
    assert_same(tmp_path / "out", weights())
    with pytest.raises(CheckpointError, match="holds no averaged"):
        run(path, out=tmp_path / "other", prefer="ema")


def test_several_state_dicts_need_a_key(tmp_path: Path) -> None:
    path = save({"student": weights(0), "teacher": weights(1)}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="holds 2 state dicts: student, teacher"):
        run(path, out=tmp_path / "out")
    run(path, key="teacher", out=tmp_path / "out")
    assert_same(tmp_path / "out", weights(1))
    with pytest.raises(CheckpointError, match="no state dict at 'teachr'; there are student, teacher"):
        run(path, key="teachr", out=tmp_path / "other")


def test_strip_and_drop(tmp_path: Path) -> None:
    value = {
        **{f"net.{name}": tensor for name, tensor in weights().items()},
        "criterion.weight": torch.ones(3),
    }
    path = save({"state_dict": value}, tmp_path / "m.ckpt")
    run(path, strip=("net.",), drop=("criterion.",), out=tmp_path / "out")
    assert_same(tmp_path / "out", weights())
    with pytest.raises(CheckpointError, match=r"no tensor's name begins with 'model.'"):
        run(path, strip=("model.",), out=tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"no tensor's name begins with 'x.'"):
        run(path, drop=("x.",), out=tmp_path / "other")


def test_names_must_stay_distinct(tmp_path: Path) -> None:
    path = save({"a.w": torch.ones(1), "w": torch.zeros(1)}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="would be called 'w', as another is"):
        run(path, strip=("a.",), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tied_tensors_are_written_once_and_come_back(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict(
        {"head": torch.nn.Linear(3, 5, bias=False), "embed": torch.nn.Embedding(5, 3)}
    )
    model["head"].weight = model["embed"].weight
    run(save(model.state_dict(), tmp_path / "m.pt"), out=tmp_path / "out")
    with safe_open(tmp_path / "out/model.safetensors", "np") as file:
        assert list(file.keys()) == ["embed.weight"]
        assert file.metadata() == {"format": "pt", "head.weight": "embed.weight"}
    from safetensors.torch import load_model

    other = torch.nn.ModuleDict(
        {"head": torch.nn.Linear(3, 5, bias=False), "embed": torch.nn.Embedding(5, 3)}
    )
    other["head"].weight = other["embed"].weight
    load_model(other, tmp_path / "out/model.safetensors")
    assert torch.equal(other["head"].weight, model["head"].weight)


def test_slices_of_one_storage_are_written_apart(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(4, 3)
    run(
        save({"whole": whole, "top": whole[:2], "column": whole[:, 1]}, tmp_path / "m.pt"),
        out=tmp_path / "out",
    )
    assert_same(tmp_path / "out", {"whole": whole, "top": whole[:2], "column": whole[:, 1].contiguous()})


REFUSED: list[tuple[Any, str]] = [
    ([torch.ones(2)], "it is a list"),
    ({}, "it is empty"),
    ({"epoch": 3}, "its keys are epoch: int"),
    ({"a": torch.ones(2), "b": "text"}, "its keys are a: Tensor, b: str"),
    ({"a": torch.ones(2, dtype=torch.complex64)}, "tensor 'a' is complex64"),
    ({"a": torch.ones(2, 2).to_sparse()}, "tensor 'a' is float32 torch.sparse_coo"),
    ({3: torch.ones(2)}, "its keys are 3: Tensor"),
]


@pytest.mark.parametrize(("value", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_anything_but_tensors_is_refused(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        run(save(value, tmp_path / "m.pt"), out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "m.pt"))
    with pytest.raises(CheckpointError, match="is a TorchScript program"):
        run(tmp_path / "m.pt", out=tmp_path / "out")


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"PK\x03\x04garbage", b"\x80\x02}q\x00.", b"version https://git-lfs"]
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m.pt: (is damaged|is not a pickle|holds no)"):
        run(tmp_path / "m.pt", out=tmp_path / "out")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = save(weights(), tmp_path / "m.pt")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=r"m.pt: is damaged"):
        run(path, out=tmp_path / "out")


def test_a_directory_keeps_its_companions(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    save(weights(), source / "pytorch_model.bin")
    save(argparse.Namespace(), source / "training_args.bin")
    (source / "config.json").write_text('{"model_type": "bert"}')
    (source / "vocab.txt").write_text("a\nb\n")
    run(source, out=tmp_path / "out")
    assert_same(tmp_path / "out", weights())
    assert (tmp_path / "out/vocab.txt").read_text() == "a\nb\n"
    assert json.loads((tmp_path / "out/config.json").read_text()) == {"model_type": "bert"}


@pytest.mark.parametrize("by", ["directory", "index"])
def test_sharded_pickles(tmp_path: Path, by: str) -> None:
    source, parts = tmp_path / "source", list(weights().items())
    source.mkdir()
    save(dict(parts[:4]), source / "pytorch_model-00001-of-00002.bin")
    save(dict(parts[4:]), source / "pytorch_model-00002-of-00002.bin")
    names = {name: f"pytorch_model-0000{1 if i < 4 else 2}-of-00002.bin" for i, (name, _) in enumerate(parts)}
    index = source / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    run(source if by == "directory" else index, out=tmp_path / "out")
    assert_same(tmp_path / "out", weights())
    (source / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(
        CheckpointError, match=r"names the shard 'pytorch_model-00002-of-00002.bin', which is not there"
    ):
        run(source, out=tmp_path / "other")


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"weight_map": 3}',
        '{"weight_map": {"a": 3}}',
        "nonsense",
        '{"weight_map": {"a": "../m.bin"}}',
    ],
)
def test_bad_shard_indexes_are_refused(tmp_path: Path, text: str) -> None:
    save(weights(), tmp_path / "m.bin")
    (tmp_path / "in").mkdir()
    index = tmp_path / "in/x.bin.index.json"
    index.write_text(text)
    with pytest.raises(CheckpointError, match=r"x.bin.index.json"):
        run(index, out=tmp_path / "out")


def test_several_files_become_members_that_can_be_merged(tmp_path: Path) -> None:
    for seed in range(3):
        save(weights(seed), tmp_path / f"model_{seed}.pth.tar")
    code = run_command_line(
        ["convert", f"{tmp_path}/model_*.pth.tar", "--out", str(tmp_path / "out"), "--quiet"]
    )
    assert code == 0
    for seed in range(3):
        assert_same(tmp_path / f"out/model_{seed}", weights(seed))
    merged = [
        "merge",
        "uniform",
        tmp_path / "out",
        "--integers",
        "max",
        "--out",
        tmp_path / "soup",
        "--quiet",
    ]
    assert run_command_line([*map(str, merged)]) == 0
    found = load_file(tmp_path / "soup/model.safetensors")
    mean = torch.stack([weights(seed)["layer.weight"].double() for seed in range(3)]).mean(0).float()
    assert torch.equal(found["layer.weight"], mean)


def test_files_of_one_name_take_their_folders_names(tmp_path: Path) -> None:
    paths = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        paths.append(save(weights(), tmp_path / name / "model_best.pth"))
    run(*paths, out=tmp_path / "out")
    assert Manifest.read(tmp_path / "out").notes["members"] == ["a-model_best", "b-model_best"]
    with pytest.raises(ReferenceError, match="several files would become a-model_best"):
        run(paths[0], paths[0], out=tmp_path / "other")


def test_one_bad_file_of_many_writes_nothing(tmp_path: Path) -> None:
    good = save(weights(), tmp_path / "good.pt")
    (tmp_path / "bad.pt").write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match=r"bad.pt"):
        run(good, tmp_path / "bad.pt", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_and_unconvertible_references(tmp_path: Path, save_safetensors: Path) -> None:
    for path, message in (
        (tmp_path / "none.pt", "no such file"),
        (tmp_path / "*.pt", "matches nothing"),
        (tmp_path, "holds no .pt"),
        (save_safetensors, "is safetensors already"),
    ):
        with pytest.raises(ReferenceError, match=message):
            run(path, out=tmp_path / "out")


@pytest.fixture
def save_safetensors(tmp_path: Path) -> Path:
    from safetensors.torch import save_file

    (tmp_path / "s").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "s/model.safetensors")
    return tmp_path / "s/model.safetensors"


def test_manifest_and_verify(tmp_path: Path) -> None:
    path = save({"state_dict": weights(), "arch": "resnet18", "epoch": 9}, tmp_path / "m.pt")
    manifest = run(path, out=tmp_path / "out")
    assert manifest["notes"]["facts"] == {"arch": "resnet18", "epoch": 9}
    assert manifest["notes"]["where"] == "state_dict"
    verify(Verify(directory=tmp_path / "out", inputs=True), World(threads=1), silent)
    save({"state_dict": weights(1)}, path)
    with pytest.raises(CheckpointError, match=r"input .*m.pt"):
        verify(Verify(directory=tmp_path / "out", inputs=True), World(threads=1), silent)


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    path = save({"state_dict": weights(), "model_ema": weights()}, tmp_path / "m.pt")
    (plan,) = run(path, out=tmp_path / "out", dry_run=True)["plan"]
    assert plan["where"] == "model_ema"
    assert plan["tensors"] == len(weights())
    assert not (tmp_path / "out").exists()


def test_shards_on_output(tmp_path: Path) -> None:
    run(save(weights(), tmp_path / "m.pt"), out=tmp_path / "out", max_shard_size="60B")
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2
    found: dict[str, torch.Tensor] = {}
    for shard in (tmp_path / "out").glob("*.safetensors"):
        found |= load_file(shard)
    assert found.keys() == weights().keys()


def test_does_not_overwrite(tmp_path: Path) -> None:
    path = save(weights(), tmp_path / "m.pt")
    run(path, out=tmp_path / "out")
    with pytest.raises(SoupkitError, match="exists already"):
        run(path, out=tmp_path / "out")
    run(save(weights(1), path), out=tmp_path / "out", overwrite=True)
    assert_same(tmp_path / "out", weights(1))


PEAK = """
import sys
from pathlib import Path
from soupkit.events import silent
from soupkit.jobs.files.convert import convert
from soupkit.recipe.hub import Convert
from soupkit.world import World
import torch, numpy
torch.ones(10)
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
convert(Convert(refs=(sys.argv[1],), out=Path(sys.argv[2])), World(threads=1), silent)
print(peak() - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/maps").exists(), reason="the system does not say what is mapped where"
)
def test_the_peak_is_about_one_tensor(tmp_path: Path) -> None:
    """80 tensors of 1 MB: resident memory grows by a few of them, not by the file."""
    path = save({f"layer{i}": torch.rand(256, 1024) for i in range(80)}, tmp_path / "m.pt")
    arguments = [sys.executable, "-c", PEAK, str(path), str(tmp_path / "out")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20_000, f"grew by {done.stdout} KB for a file of 80 MB"


def test_a_step_of_a_recipe_is_skipped_until_its_file_changes(tmp_path: Path) -> None:
    path = save(weights(0), tmp_path / "m.pt")
    step = f"{{command: convert, refs: [{path}], out: {tmp_path / 'out'}}}"
    (tmp_path / "recipe.yaml").write_text(f"steps:\n  convert: {step}\n")

    def actions() -> list[str]:
        done = run_job(Run(file=tmp_path / "recipe.yaml", dry_run=True), World(), silent)
        return [entry["action"] for entry in done["steps"].values()]

    assert actions() == ["run"]
    run_job(Run(file=tmp_path / "recipe.yaml"), World(), silent)
    assert actions() == ["skip"]
    save(weights(1), path)
    assert actions() == ["run"]


def test_memory_that_no_file_backs_is_left_alone(tmp_path: Path) -> None:
    """Giving back pages of the heap would zero them."""
    own = torch.full((1 << 20,), 7.0)
    path = save({"mapped": torch.full((1 << 20,), 3.0)}, tmp_path / "m.pt")
    mapped = load_pickle(path)["mapped"]
    mappings = mappings_of(path)
    assert any(mapped.data_ptr() in mapping for mapping in mappings)
    for tensor in (own, mapped, own[100:5000], mapped[100:5000]):
        release(tensor, mappings)
    assert float(own.min()) == float(own.max()) == 7.0
    assert float(mapped.min()) == float(mapped.max()) == 3.0
