"""The parsers of texts that the fuzzer feeds: for each how an input is drawn, and what reads it."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import safetensors
import torch
import xxhash
import yaml
from fuzz import mergekit_mutations, pickle_mutations, samples
from fuzz.hostile import json_text, mutated_bytes, mutated_json, mutated_text, mutated_value

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.compatible import check_compatible
from soupkit.checkpoint.config.meaning import check_meaning
from soupkit.checkpoint.config.restacked import Origin, stacked_config
from soupkit.checkpoint.config.vocabulary import difference, token_rows
from soupkit.checkpoint.formats.convert import read_pickled
from soupkit.checkpoint.header import parse_header, read_header
from soupkit.checkpoint.hub.hub import looks_like_hub, parse_hub
from soupkit.checkpoint.reference import spelled_out
from soupkit.checkpoint.tensors import parse_bytes, write_tensors
from soupkit.checkpoint.views.adapted import open_adapter
from soupkit.errors import SoupkitError
from soupkit.events import silent
from soupkit.jobs.files.inspect import inspect
from soupkit.jobs.files.report import report
from soupkit.jobs.files.verify import reproduce, verify
from soupkit.manifest import MANIFEST_NAME, Manifest
from soupkit.merge.windows import rows_of
from soupkit.recipe.expect import parse_condition
from soupkit.recipe.inspect import Inspect, Reproduce, Verify
from soupkit.recipe.report import Report
from soupkit.recipe.settings import check_matches, parse_settings
from soupkit.recipe.steps import parse_steps
from soupkit.remembered import _MAGIC, Remembered
from soupkit.report.card import model_card
from soupkit.stages.steps import show_plan
from soupkit.train.ranges import DRAWN, in_order, parse_range
from soupkit.world import World

ALONE = World(threads=1)
STEPS = np.array([10e3, 20e3, 40e3, 80e3, 100e3])


@dataclass(frozen=True)
class Parser:
    """draw: an input; read: what soupkit makes of it, a SoupkitError where it refuses; share: of all
    executions."""

    draw: Callable[[Random], Any]
    read: Callable[[Any], None]
    share: int


def each_of(*tasks: Callable[[], object]) -> None:
    """Do all of them; raises what the first that is refused raises, once all were tried."""
    refused: list[SoupkitError] = []
    for task in tasks:
        try:
            task()
        except SoupkitError as error:
            refused.append(error)
    if refused:
        raise refused[0]


def draw_header(rng: Random) -> bytes:
    """A file: the length is mostly that of the JSON."""
    value, size = rng.choice(samples.HEADERS)
    raw = mutated_json(value, rng)
    content = struct.pack("<Q", len(raw)) + raw + bytes(size)
    return mutated_bytes(content, rng) if rng.random() < 0.05 else content


def read_a_header(content: bytes) -> None:
    """As read_header does; what is taken must be what safetensors takes."""
    length = struct.unpack_from("<Q", content.ljust(8, b"\0"))[0]
    if len(content) < 8 or length > len(content) - 8 or content[-1:] == b"\1":
        Path("x.safetensors").write_bytes(content)
        read_header(Path("x.safetensors"))
    found = parse_header(content[8 : 8 + length], Path("x.safetensors"), len(content))
    assert {name for name, _ in safetensors.deserialize(content)} == set(found.specs)


def directory(name: str, tensors: Mapping[str, Any], **options: Any) -> Path:
    """A checkpoint in this folder, which is made once."""
    path = Path(name)
    if not path.exists():
        path.mkdir()
        write_tensors(path, tensors, **options)
    return path


def in_directory(
    name: str, file: str, use: Callable[[Path], None], **options: Any
) -> Callable[[bytes], None]:
    """A reader of one file of a directory with tiny weights."""

    def read(content: bytes) -> None:
        place = directory(name, samples.FACTORS if name == "adapter" else samples.TENSORS, **options)
        (place / file).write_bytes(content)
        use(place)

    return read


def read_adapter(place: Path) -> None:
    """Open an adapter of one layer."""
    open_adapter(place)


def read_manifest(place: Path) -> None:
    """Everything that reads the manifest of an output."""
    out = Path("page.html")
    out.unlink(missing_ok=True)
    again = Reproduce(directory=place, out=place / "again", dry_run=True)
    each_of(
        lambda: model_card(Manifest.read(place), place, Checkpoint(place)),
        lambda: report(Report(path=place, out=out), ALONE, silent),
        lambda: inspect(Inspect(refs=(str(place),), tensors=True), ALONE, silent),
        lambda: verify(Verify(directory=place, inputs=True, threads=1), ALONE, silent),
        lambda: reproduce(again, ALONE, silent),
    )


def draw_recipe(rng: Random) -> str:
    """A recipe file, mutated as a value or as text."""
    text = rng.choice(samples.RECIPES)
    if rng.random() < 0.5:
        return mutated_text(text, rng)
    value = mutated_value(yaml.safe_load(text), rng)
    if rng.random() < 0.5:
        return json_text(value, rng)  # YAML in its flow style
    return str(yaml.dump(value, Dumper=yaml.SafeDumper, sort_keys=False))


def read_recipe(text: str) -> None:
    """Read it, and plan it, which runs nothing."""
    show_plan(parse_steps(text, where="recipe.yaml").steps, silent)


def draw_mergekit(rng: Random) -> str:
    """A mergekit file, as the mutations of its own make it, at times with more of them."""
    text = mergekit_mutations.mutated(rng)
    return mutated_text(text, rng) if rng.random() < 0.3 else text


def read_mergekit(text: str) -> None:
    """Translate it; the harness tells refusals by name."""
    if mergekit_mutations.run(text).endswith("Error"):
        raise SoupkitError("refused")


def read_settings(text: str) -> None:
    """Read one --set of a merge, and hold it against names."""
    check_matches(
        parse_settings([text], known=["weight", "coefficient"], references=["a/b", "c"]), samples.TENSORS
    )


def read_variables(text: str) -> None:
    """Read one --set of a recipe file."""
    parse_steps(samples.RECIPES[0], [text], where="recipe.yaml")


def read_range(text: str) -> None:
    """Read a drawn option and draw from it."""
    name, _, value = text.partition(":")
    if name not in DRAWN:
        name, value = "lr", text
    found = parse_range(value, name)
    others = {
        "optimizer": parse_range("choice(sgd,adamw)", "optimizer"),
        "epochs": parse_range("int(1,20)", "epochs"),
    }
    in_order({**others, name: found})
    for branch in found.branches:
        for u in (0.0, 0.5, 0.999999):
            branch.draw.at(u)


def read_reference(text: str) -> None:
    """Spell a reference out; a Hub reference is only parsed."""
    found = parse_hub(text)
    assert found is None or parse_hub(str(found)) == found
    looks_like_hub(text)
    spelled_out(text)


def read_expectation(text: str) -> None:
    """Read a condition, and hold it against results."""
    condition = parse_condition(text, where="recipe.yaml")
    results = {step.step or "own": samples.RESULT for step in condition.paths()} | {"own": samples.RESULT}
    condition.failure(results, own="own")


def read_size(text: str) -> None:
    """Read a size; it is a number of bytes."""
    assert parse_bytes(text) >= 0


def read_window(text: str) -> None:
    """Read a window; it holds checkpoints."""
    losses = STEPS, np.array([3.0, 1, 1, 2, 2])
    assert len(rows_of(text, STEPS, tokens_per_step=100.0, losses=losses, swad=(2, 2, 1.1)))


def draw_remembered(rng: Random) -> bytes:
    """An entry with the hash of its damaged rest, or with a wrong one."""
    store, key = Remembered("scores"), "0" * 32
    path = Path(os.environ["SOUPKIT_CACHE"], "scores", f"{key}.remembered")
    if not path.exists():
        store.write(key, {"top1": 0.5, "names": ["a"]}, {"x": np.arange(6.0).reshape(2, 3)})
        path.rename("entry")
        path.touch()
    content = Path("entry").read_bytes()
    if rng.random() < 0.3:
        return mutated_bytes(content, rng)
    rest = mutated_bytes(content[len(_MAGIC) + 16 :], rng)
    return _MAGIC + xxhash.xxh3_128(rest).digest() + rest


def read_remembered(content: bytes) -> None:
    """A damaged entry is as none."""
    path = Path(os.environ["SOUPKIT_CACHE"], "scores", f"{'1' * 32}.remembered")
    path.write_bytes(content)
    if Remembered("scores").read("1" * 32) is None:
        raise SoupkitError("refused")


def read_configuration(content: bytes) -> None:
    """What a changed config.json means beside the first, and in a stack with it; and in a directory."""
    in_directory(
        "config", "config.json", lambda place: check_compatible([Checkpoint(place), samples.TENSORS])
    )(content)
    try:
        changed = json.loads(content)
    except (ValueError, RecursionError):
        return
    if isinstance(changed, dict):
        pair = [samples.CONFIGS[0], changed]
        origins = [Origin(samples.CONFIGS[0], 4, 0, 3), Origin(changed, 4, 1, 4)]
        each_of(
            lambda: check_meaning(pair, ["a", "b"]),
            lambda: check_meaning(pair[::-1], ["b", "a"], mismatch="warn", by_layer=False),
            lambda: stacked_config(origins, "model.layers"),
            lambda: stacked_config(origins[::-1], "model.layers"),
            lambda: stacked_config([replace(origins[1], start=0, stop=2)], "encoder.layer"),
        )


def read_vocabulary(place: Path) -> None:
    """Read the rows of tokens, and compare them."""
    difference(token_rows(place / "tokenizer.json"), {"a": 0, "b": 1})


def draw_archive(rng: Random) -> bytes:
    """An archive of torch.save: its bytes changed, or its pickle within a whole archive."""
    path = Path("whole.pt")
    if not path.exists():
        torch.save(samples.STATE_DICT, path)
        torch.load(path, weights_only=True)  # imports much the first time, which is not the input's doing
    if rng.random() < 0.6:
        return pickle_mutations.mutated(path.read_bytes(), rng)
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile("repacked.pt", "w") as archive:
        for info in whole.infolist():
            content = whole.read(info)
            if info.filename.endswith("data.pkl"):
                content = pickle_mutations.mutated(content, rng)
            archive.writestr(info.filename, content)
    return Path("repacked.pt").read_bytes()


def read_archive(content: bytes) -> None:
    """What is taken is whole, and holds what torch.load finds, where that reads it at all."""
    path = Path("x.pt")
    path.unlink(missing_ok=True)  # a mapped file must not change
    path.write_bytes(content)
    found = read_pickled(path)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    try:
        theirs = torch.load(path, weights_only=True)
    except Exception:  # it knows fewer classes
        return
    known = theirs if isinstance(theirs, dict) else {}
    flat = {
        **known,
        **{key: item for value in known.values() if isinstance(value, dict) for key, item in value.items()},
    }
    for name, tensor in found.tensors.items():
        assert tensor.dtype == flat[name].dtype, name
        assert tensor.numpy().tobytes() == flat[name].numpy().tobytes(), name


def texts(choices: list[str]) -> Callable[[Random], str]:
    """A mutated one of some texts."""
    return lambda rng: mutated_text(rng.choice(choices), rng)


def jsons(choices: list[Any]) -> Callable[[Random], bytes]:
    """The JSON of a mutated one of some values."""
    return lambda rng: mutated_json(rng.choice(choices), rng)


INDEX, SHARD = "model.safetensors.index.json", {"file_name": "shard.safetensors"}
PARSERS = {
    "header": Parser(draw_header, read_a_header, 40),
    "index": Parser(
        jsons(samples.INDEXES),
        in_directory("sharded", INDEX, lambda place: inspect(Inspect(refs=(str(place),)), ALONE, silent),
        **SHARD),
        3,
    ),
    "manifest": Parser(jsons(samples.MANIFESTS), in_directory("output", MANIFEST_NAME, read_manifest), 1),
    "recipe": Parser(draw_recipe, read_recipe, 2),
    "variables": Parser(texts(samples.VARIABLES), read_variables, 1),
    "settings": Parser(texts(samples.SETTINGS), read_settings, 6),
    "mergekit": Parser(draw_mergekit, read_mergekit, 1),
    "references": Parser(texts(samples.REFERENCES), read_reference, 40),
    "expectations": Parser(texts(samples.EXPECTATIONS), read_expectation, 40),
    "sizes": Parser(texts(samples.SIZES), read_size, 40),
    "windows": Parser(texts(samples.WINDOWS), read_window, 40),
    "ranges": Parser(texts(samples.RANGES), read_range, 40),
    "remembered": Parser(draw_remembered, read_remembered, 3),
    "adapter": Parser(
        jsons(samples.ADAPTERS),
        in_directory("adapter", "adapter_config.json", read_adapter, file_name="adapter_model.safetensors"),
        3,
    ),
    "configuration": Parser(jsons(samples.CONFIGS), read_configuration, 3),
    "vocabulary": Parser(jsons(samples.TOKENIZERS), in_directory("tokens", "tokenizer.json", read_vocabulary),
    4),
    "archives": Parser(draw_archive, read_archive, 1),
}  # fmt: skip
