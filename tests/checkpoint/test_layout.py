"""Directories: which file is the checkpoint, and every way a directory can be wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.layout import companions
from soupkit.checkpoint.reference import expand, open_checkpoint, open_references
from soupkit.errors import CheckpointError, ReferenceError
from soupkit.manifest import Manifest

Save = Callable[..., Path]
TENSORS = {f"w{i}": np.full((4, 8), i, np.float32) for i in range(6)}


def test_shards_read_like_one_file(save: Save) -> None:
    one, many = Checkpoint(save("one", TENSORS)), Checkpoint(save("many", TENSORS, max_shard_bytes=300))
    assert len(many.files) == 3
    assert set(one) == set(many) == set(TENSORS)
    for name, value in TENSORS.items():
        np.testing.assert_array_equal(many[name], value)


def test_a_part_of_a_tensor_is_read_into_a_buffer(save: Save) -> None:
    checkpoint = Checkpoint(
        save("one", {"a": np.arange(100, dtype=np.float32), "b": np.arange(7, dtype=np.int16)})
    )
    buffer = np.empty(10, np.float32)
    checkpoint.read_into("a", 42, buffer)
    np.testing.assert_array_equal(buffer, np.arange(42, 52))


def edit_index(directory: Path, change: Callable[[dict[str, str]], object]) -> None:
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


INDEX_FAULTS: dict[str, tuple[Callable[[dict[str, str]], object], str]] = {
    "names a parent": (
        lambda m: m.update(w0="../evil.safetensors"),
        "not the name of a file beside the index",
    ),
    "names an absolute path": (lambda m: m.update(w0="/etc/passwd"), "not the name of a file"),
    "names a missing shard": (lambda m: m.update(w0="model-00009-of-00009.safetensors"), "not there"),
    "forgets a tensor": (lambda m: m.pop("w3"), "puts tensor 'w3' in no shard"),
    "invents a tensor": (lambda m: m.update(ghost=m["w0"]), "'ghost'"),
    "puts a tensor elsewhere": (lambda m: m.update(w0=m["w5"]), "but model-00001"),
    "is empty": (lambda m: m.clear(), "weight_map"),
    "names a number": (lambda m: m.update(w0=3), "not the name"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", INDEX_FAULTS)
def test_an_index_that_lies_is_refused(case: str, save: Save) -> None:
    directory = save("many", TENSORS, max_shard_bytes=300)
    change, message = INDEX_FAULTS[case]
    edit_index(directory, change)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(directory)


def test_a_stale_shard_is_refused(save: Save) -> None:
    directory = save("many", TENSORS, max_shard_bytes=300)
    os.link(directory / "model-00001-of-00003.safetensors", directory / "stale.safetensors")
    edit_index(directory, lambda weight_map: weight_map.update(w5="stale.safetensors"))
    with pytest.raises(CheckpointError):
        Checkpoint(directory)


def test_open_clip_directories_prefer_their_own_file(save: Save) -> None:
    directory = save("clip", TENSORS, file_name="open_clip_model.safetensors")
    (directory / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 8}}')
    os.link(directory / "open_clip_model.safetensors", directory / "model.safetensors")
    checkpoint = Checkpoint(directory)
    assert checkpoint.files[0].name == "open_clip_model.safetensors"
    assert checkpoint.config_name == "open_clip_config.json"


def test_ambiguous_and_empty_directories_say_what_to_do(save: Save, tmp_path: Path) -> None:
    directory = save("several", TENSORS, file_name="a.safetensors")
    assert Checkpoint(directory).files[0].name == "a.safetensors"
    os.link(directory / "a.safetensors", directory / "b.safetensors")
    with pytest.raises(ReferenceError, match="2 candidates") as several:
        Checkpoint(directory)
    assert several.value.hint is not None
    assert "a.safetensors" in several.value.hint
    (tmp_path / "pickles").mkdir()
    (tmp_path / "pickles" / "model.pth").touch()
    with pytest.raises(ReferenceError, match=r"no \.safetensors file"):
        Checkpoint(tmp_path / "pickles")


def test_shards_beside_a_single_file_of_the_same_name_are_refused(save: Save) -> None:
    directory = save("both", TENSORS, max_shard_bytes=300)
    os.link(directory / "model-00001-of-00003.safetensors", directory / "model.safetensors")
    with pytest.raises(ReferenceError, match="both"):
        Checkpoint(directory)


def test_a_lora_adapter_is_not_a_checkpoint(save: Save) -> None:
    directory = save("lora", TENSORS, file_name="adapter_model.safetensors")
    (directory / "adapter_config.json").write_text("{}")
    with pytest.raises(ReferenceError, match="LoRA"):
        Checkpoint(directory)


def test_references_expand_globs_and_sweeps(save: Save, tmp_path: Path) -> None:
    for name in ("sweep/run-001", "sweep/run-000", "other"):
        save(name, TENSORS)
    Manifest(command="finetune-sweep", recipe={}, notes={"members": ["run-001", "run-000"]}).write(
        tmp_path / "sweep"
    )
    assert expand(str(tmp_path / "sweep")) == [tmp_path / "sweep/run-001", tmp_path / "sweep/run-000"]
    assert expand(str(tmp_path / "sweep/run-*")) == [tmp_path / "sweep/run-000", tmp_path / "sweep/run-001"]
    assert expand(f"{tmp_path}/[os]*") == [
        tmp_path / "other",
        tmp_path / "sweep/run-001",
        tmp_path / "sweep/run-000",
    ]
    assert len(open_references([str(tmp_path / "sweep"), str(tmp_path / "other")])) == 3
    file = tmp_path / "other/model.safetensors"
    assert open_checkpoint(str(file)).files == (file,)
    with pytest.raises(ReferenceError, match="2 checkpoints"):
        open_checkpoint(str(tmp_path / "sweep"))


@pytest.mark.parametrize("ref", ["no/such/dir/at/all", "none*", "missing.safetensors"])
def test_a_reference_to_nothing_is_refused(ref: str, tmp_path: Path) -> None:
    with pytest.raises(ReferenceError):
        expand(str(tmp_path / ref))


def test_companions_are_configuration_not_weights(save: Save) -> None:
    directory = save("model", TENSORS, max_shard_bytes=300)
    for name in (
        "config.json",
        "tokenizer.json",
        "merges.txt",
        "LICENSE",
        "optimizer.pt",
        "README.md",
        ".hidden.json",
        "soupkit.json",
        "trainer_state.json",
    ):
        (directory / name).write_text("{}")
    assert [path.name for path in companions(directory)] == [
        "LICENSE",
        "config.json",
        "merges.txt",
        "tokenizer.json",
    ]


def test_tied_tensors_of_save_model_are_seen_under_both_names(save: Save) -> None:
    directory = save("tied", {"embed": TENSORS["w1"]}, metadata={"format": "pt", "head": "embed"})
    checkpoint = Checkpoint(directory)
    assert set(checkpoint) == {"embed", "head"}
    np.testing.assert_array_equal(checkpoint["head"], TENSORS["w1"])


def test_a_file_cut_while_open_is_noticed(save: Save) -> None:
    directory = save("cut", {"a": np.zeros(10_000, np.float32)})
    checkpoint = Checkpoint(directory)
    assert checkpoint["a"].size == 10_000
    os.truncate(directory / "model.safetensors", 5_000)
    with pytest.raises(CheckpointError, match="ended while"):
        checkpoint["a"]
