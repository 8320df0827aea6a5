"""Files as training frameworks write them: the average and the trained weights are each what `--prefer`
says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from convert.pickled import save
from safetensors.torch import load_file

from soupkit.cli.app import run_command_line
from soupkit.errors import CheckpointError
from soupkit.events import Event, Told, Warned
from soupkit.jobs.files.convert import convert
from soupkit.manifest import Manifest
from soupkit.recipe.hub import Convert
from soupkit.world import World

Tensors = dict[str, torch.Tensor]


def model(value: float) -> Tensors:
    return {
        "net.0.weight": torch.full((3, 2), value),
        "net.0.bias": torch.full((3,), value + 0.5),
        "net.1.num_batches_tracked": torch.tensor(7),
    }


RAW, EMA, COUNT = model(0.0), model(1.0), torch.tensor(9)


def under(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def floats(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}


def converted(*values: Any, out: Path, **options: Any) -> tuple[list[Tensors], str]:
    """What is written for files with these values, and what was told."""
    files = [save(value, out.parent / f"m-{number}.pt") for number, value in enumerate(values)]
    events: list[Event] = []
    convert(Convert(refs=tuple(map(str, files)), out=out, **options), World(threads=1), events.append)
    folders = [out / name for name in Manifest.read(out).notes.get("members", ["."])]
    said = "\n".join(event.message for event in events if isinstance(event, Told | Warned))
    return [load_file(folder / "model.safetensors") for folder in folders], said


def assert_equal(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def assert_refused(value: Any, message: str, out: Path, hint: str = "", **options: Any) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        converted(value, out=out, **options)
    assert hint in str(caught.value.hint)
    assert not out.exists()


FILES: dict[str, Any] = {
    "mmengine": {"meta": {}, "state_dict": EMA, "ema_state_dict": {"steps": COUNT, **under("module.", RAW)}},
    "mmengine by its version": {
        "meta": {"mmengine_version": "0.10.7"}, "state_dict": EMA, "ema_state_dict": under("module.", RAW),
    },
    "mmengine without meta": {"state_dict": EMA, "ema_state_dict": {"steps": COUNT, **under("module.", RAW)}},
    "lightning": {"state_dict": EMA, "current_model_state": RAW, "averaging_state": {"n_averaged": COUNT}},
    "avg_model": {"model": RAW, "avg_model": {"n_averaged": COUNT, **under("module.", EMA)}},
    "model_avg": {"net": RAW, "net_avg": EMA, "step": COUNT},
    "camel case": {"model": RAW, "modelEMA": EMA},
    "timm": {"state_dict": RAW, "state_dict_ema": under("module.", EMA), "arch": "resnet18"},
    "ema_state_dict of others": {"state_dict": RAW, "ema_state_dict": {"n_averaged": COUNT, **under("module.",
    EMA)}},
    "ema-pytorch": {**under("online_model.", RAW), **under("ema_model.", EMA), "initted": COUNT > 0,
    "step": COUNT},
    "ema-pytorch inside": {
        "ema": {**under("online_model.", RAW), **under("ema_model.", EMA), "initted": COUNT > 0,
        "step": COUNT}
    },
}  # fmt: skip


@pytest.mark.parametrize("prefer", ["auto", "ema", "raw"])
@pytest.mark.parametrize("name", FILES)
def test_averaged_and_raw_are_what_they_are_called(tmp_path: Path, name: str, prefer: str) -> None:
    (found,), _ = converted(FILES[name], out=tmp_path / "out", prefer=prefer)
    assert_equal(found, RAW if prefer == "raw" else EMA)
    assert Manifest.read(tmp_path / "out").notes["kind"] == ("raw" if prefer == "raw" else "averaged")


def test_the_average_of_a_callback_is_told_and_taken_if_asked(tmp_path: Path) -> None:
    value = {"state_dict": RAW, "callbacks": {"SWA{'epochs': 3.5}": {"average_model_state": EMA, "n": 3}}}
    (found,), said = converted(value, out=tmp_path / "auto")
    assert_equal(found, RAW)
    assert "an average is at callbacks.SWA{'epochs': 3.5}.average_model_state (--prefer ema, --key)" in said
    (found,), _ = converted(value, out=tmp_path / "ema", prefer="ema")
    assert_equal(found, EMA)


def test_what_is_not_there_is_refused_with_the_truth(tmp_path: Path) -> None:
    assert_refused(
        {"state_dict": RAW},
        r"holds no averaged \(EMA\) weights; there are state_dict",
        tmp_path / "o",
        prefer="ema",
    )
    assert_refused(
        {"model_ema": EMA}, r"holds averaged \(EMA\) weights only, at model_ema", tmp_path / "o", prefer="raw"
    )
    assert_refused(
        {**under("ema_model.", EMA), "step": COUNT},
        "averaged .EMA. weights only, ema_model",
        tmp_path / "o",
        prefer="raw",
    )
    nameless = {"model": RAW, "ema": {"decay": 0.9, "shadow_params": list(EMA.values())}}
    (found,), said = converted(nameless, out=tmp_path / "out")
    assert_equal(found, RAW)
    assert "ema.shadow_params is an average without names" in said
    assert_refused(nameless, r"holds no averaged", tmp_path / "o", prefer="ema")


INNER: dict[str, tuple[Tensors, Tensors, Tensors]] = {
    "stable diffusion": (
        {
            **under("model.diffusion_model.", RAW), "first_stage.w": COUNT,
            **{f"model_ema.diffusion_model{n.replace('.', '')}": t for n, t in floats(EMA).items()},
            "model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(3),
        },
        {**under("model.diffusion_model.", RAW), "first_stage.w": COUNT},
        {**under("model.diffusion_model.", {**RAW, **floats(EMA)}), "first_stage.w": COUNT},
    ),
    "a module beside": ({**RAW, **under("ema.", EMA)}, RAW, EMA),
    "two modules": (
        {**under("model.", RAW), **under("model_ema.module.", EMA)}, under("model.", RAW), under("model.",
        EMA)
    ),
    "a module inside": (
        {**under("student.", RAW), **under("student.swa_copy.", EMA)}, under("student.", RAW),
        under("student.", EMA)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", INNER)
def test_an_average_inside_a_state_dict_is_told_and_can_be_taken_or_left(tmp_path: Path, name: str) -> None:
    value, raw, averaged = INNER[name]
    (both,), said = converted({"state_dict": value}, out=tmp_path / "auto")
    assert_equal(both, value)
    assert "beside those that they average; both were taken (--prefer raw, --prefer ema)" in said
    (found,), _ = converted({"state_dict": value}, out=tmp_path / "raw", prefer="raw")
    assert_equal(found, raw)
    (found,), _ = converted({"state_dict": value}, out=tmp_path / "ema", prefer="ema")
    assert_equal(found, averaged)


def test_mmcv_1_does_not_say_which_is_the_average(tmp_path: Path) -> None:
    value = {
        "state_dict": {**RAW, **{f"ema_{n.replace('.', '_')}": t for n, t in floats(EMA).items()}},
        "meta": {},
    }
    _, said = converted(value, out=tmp_path / "auto")
    assert "(--drop ema_)" in said
    for prefer in ("raw", "ema"):
        assert_refused(
            value, "names do not tell which is the average", tmp_path / "o", "--drop ema_", prefer=prefer
        )
    (found,), _ = converted(value, out=tmp_path / "out", drop=("ema_",))
    assert_equal(found, RAW)


def test_modules_that_only_sound_like_averages_are_left_alone(tmp_path: Path) -> None:
    value = {**RAW, "avg_pool.weight": torch.ones(2), "quantize.ema_count.hidden": torch.ones(3)}
    (found,), said = converted(
        {"model": value, "optimizer": {"exp_avg": under("", EMA)}}, out=tmp_path / "out"
    )
    assert_equal(found, value)
    assert said == ""


def test_prefixes_that_the_user_takes_care_of_are_left_to_them(tmp_path: Path) -> None:
    options = {"strip": ("ema_model.",), "drop": ("online_model.", "initted", "step")}
    (found,), _ = converted(FILES["ema-pytorch"], out=tmp_path / "out", **options)
    assert_equal(found, EMA)


ZERO: dict[str, Any] = {
    "empty module": {"module": {"a.weight": torch.empty(0), "b.bias": torch.empty(0)}, "ds_version": "0.19"},
    "shapes of one group": {"module": {"a.w": torch.empty(0)}, "param_shapes": {"a.w": torch.Size([4, 4])}},
    "shapes of groups": {
        "module": {"a.w": torch.ones(4), "b.w": torch.empty(0)}, "ds_config": {},
        "param_shapes": [{"a.w": torch.Size([4])}, {"b.w": torch.Size([4, 4])}],
    },
    "nothing in it": {"module": {}, "param_shapes": [{"a.w": torch.Size([4, 4])}], "ds_version": "0.19"},
    "a flat part": {"module": {"a.w": torch.ones(8)}, "param_shapes": [{"a.w": torch.Size([4, 4])}]},
    "optimizer": {"optimizer_state_dict": {"fp32_flat_groups": [torch.ones(8)]}, "ds_version": "0.19"},
}  # fmt: skip


@pytest.mark.parametrize("name", ZERO)
def test_parts_that_deepspeed_spread_out_are_refused(tmp_path: Path, name: str) -> None:
    assert_refused(ZERO[name], "DeepSpeed", tmp_path / "o", "zero_to_fp32.py")


def test_whole_files_of_deepspeed_are_taken(tmp_path: Path) -> None:
    shapes = [{name: tensor.shape for name, tensor in floats(RAW).items()}]
    value = {"module": RAW, "ds_version": "0.19", "param_shapes": shapes}
    (found,), _ = converted(value, out=tmp_path / "out")
    assert_equal(found, RAW)


@pytest.mark.parametrize("shape", [(0,), (0, 768)])
def test_files_that_are_empty_in_part_are_refused_unless_asked_for(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    value = {"model": {**RAW, "head.weight": torch.empty(shape)}}
    assert_refused(value, "1 of 4 tensors are empty, for example head.weight", tmp_path / "o", "--empty keep")
    (found,), _ = converted(value, out=tmp_path / "out", empty="keep")
    assert found["head.weight"].shape == shape
    (found,), _ = converted(value, out=tmp_path / "dropped", drop=("head.",))
    assert_equal(found, RAW)


@pytest.mark.parametrize("state", [None, torch.ones(3), {"scale": torch.ones(1)}])
def test_extra_state_is_left_out_and_named(tmp_path: Path, state: Any) -> None:
    value = {"model": {**RAW, "net.0._extra_state": state, "_extra_state": state}}
    (found,), said = converted(value, out=tmp_path / "out")
    assert_equal(found, RAW)
    assert "left out net.0._extra_state, _extra_state: not tensors of the model" in said
    assert Manifest.read(tmp_path / "out").notes["told"]


def test_mixing_averaged_and_raw_files_is_warned_about(tmp_path: Path) -> None:
    timm, plain = {"state_dict": RAW, "state_dict_ema": EMA}, {"state_dict": RAW}
    found, said = converted(timm, plain, out=tmp_path / "out")
    assert [float(each["net.0.weight"][0, 0]) for each in found] == [1.0, 0.0]
    assert "1 of 2 files gave averaged (EMA) weights, the others raw ones" in said
    assert "mixes" in Manifest.read(tmp_path / "out").notes["warnings"][0]
    found, said = converted(timm, plain, out=tmp_path / "raw", prefer="raw")
    assert [float(each["net.0.weight"][0, 0]) for each in found] == [0.0, 0.0]
    assert "mixes" not in said
    with pytest.raises(CheckpointError, match=r"m-1.pt: holds no averaged"):
        converted(timm, plain, out=tmp_path / "ema", prefer="ema")


KEYS: list[tuple[str, Any]] = [
    (
        "classy_state_dict.base_model.model.trunk",
        {"classy_state_dict": {"base_model": {"model": {"trunk": RAW}}}},
    ),
    (
        "callbacks.SWA.average_model_state",
        {"state_dict": EMA, "callbacks": {"SWA": {"average_model_state": RAW}}},
    ),
    ("optimal_state_dict", {"state_dict": EMA, "optimal_state_dict": RAW}),
    ("optimizer.best", {"state_dict": EMA, "optimizer": {"best": RAW}}),
    ("loops.0.weights", {"state_dict": EMA, "loops": [{"weights": RAW}]}),
    ("history.7", {"state_dict": EMA, "history": {7: RAW}}),
    ("a.b.c", {"state_dict": EMA, "a.b": {"c": RAW}}),
    ("state_dict", {"state_dict": {**RAW, "version": 1, "none": None}}),
    (".", {**RAW, "epoch": 3}),
    ("", {**RAW, "epoch": 3}),
    ("a" + ".a" * 20, __import__("functools").reduce(lambda inner, _: {"a": inner}, range(21), RAW)),
]


@pytest.mark.parametrize(("key", "value"), KEYS, ids=[key or "empty" for key, _ in KEYS])
def test_an_explicit_key_reaches_anything(tmp_path: Path, key: str, value: Any) -> None:
    (found,), said = converted(value, out=tmp_path / "out", key=key)
    assert_equal(found, RAW)
    if key in ("state_dict", ".", ""):
        assert "left out" in said


def test_hints_lead_on(tmp_path: Path) -> None:
    """What a hint says to type does what it promises; it is never what was typed."""
    mixed = {"state_dict": {**RAW, "version": 1}, "log": {"loss": [1.0]}}
    assert_refused(
        mixed,
        "tensors are at state_dict",
        tmp_path / "o",
        "--key state_dict takes 3 tensors and leaves out version",
    )
    assert_refused(
        {**RAW, "epoch": 3}, "tensors are at the file itself", tmp_path / "o", "--key . takes 3 tensors"
    )
    value = {"model": {"deep": RAW}, "optimizer": {"state": {0: {"exp_avg": COUNT}}}}
    for key in ("model", "model.depe", "optimizer"):
        assert_refused(
            value, "there are model.deep, optimizer.state.0", tmp_path / "o", "--key model.deep", key=key
        )
    assert_refused({"epoch": 3}, "no named tensor anywhere", tmp_path / "o", "torch.save", key="epoch")
    assert_refused({"a": [torch.ones(2)]}, "no named tensor anywhere", tmp_path / "o", "torch.save", key="a")


NAMES: dict[str, tuple[list[str], list[str]]] = {
    "in the middle": (["a.0._orig_mod.w", "a.1._orig_mod.w", "head.w"], ["a.0.w", "a.1.w", "head.w"]),
    "in front of some": (["_orig_mod.a.w", "b.w"], ["a.w", "b.w"]),
    "twice": (["module._orig_mod.a._orig_mod.w", "module._orig_mod.b"], ["a.w", "b"]),
    "checkpointed": (["a._checkpoint_wrapped_module.w"], ["a.w"]),
    "would collide": (["a._orig_mod.w", "a.w"], ["a._orig_mod.w", "a.w"]),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_wrappers_inside_of_names_go(tmp_path: Path, name: str) -> None:
    old, new = NAMES[name]
    (found,), said = converted({each: torch.ones(2) for each in old}, out=tmp_path / "out")
    assert sorted(found) == sorted(new)
    assert "names" in said


def test_a_counter_that_is_the_models_own_stays(tmp_path: Path) -> None:
    value = {"steps": COUNT, "module.w": torch.ones(2), "other.w": torch.ones(2)}
    (found,), _ = converted(value, out=tmp_path / "out")
    assert_equal(found, value)
    vector = {"steps": torch.ones(3), "module.w": torch.ones(2)}
    (found,), _ = converted(vector, out=tmp_path / "vector")
    assert_equal(found, vector)


@pytest.mark.parametrize("name", ["__metadata__", "\ud800"])
def test_names_that_no_safetensors_file_can_hold(tmp_path: Path, name: str) -> None:
    assert_refused(
        {"w": torch.ones(2), name: torch.ones(2)}, "a name that soupkit writes into no", tmp_path / "o"
    )


def test_the_choice_is_recorded_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(FILES["mmengine"], tmp_path / "epoch_10.pth")
    assert run_command_line(["convert", str(path), "--out", str(tmp_path / "out"), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["notes"]["kind"] == "averaged"
    assert "state_dict is the average in files of this program" in printed.err
