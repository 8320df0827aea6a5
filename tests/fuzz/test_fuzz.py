"""Whatever a file holds, what comes out is a result or a SoupkitError.

SOUPKIT_FUZZ=5000 pytest tests/fuzz      more examples, other ones each time
"""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from fuzz import mergekit_mutations, pickle_mutations
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.compatible import check_compatible
from soupkit.checkpoint.dtypes import NUMPY_DTYPES
from soupkit.checkpoint.header import Slot, canonical_order, header_bytes, parse_header, read_header
from soupkit.checkpoint.hub.hub import expand_braces, looks_like_hub, parse_hub
from soupkit.checkpoint.layout import choose_weights
from soupkit.checkpoint.reference import open_references
from soupkit.cli.app import run_command_line
from soupkit.commands import COMMANDS
from soupkit.errors import CheckpointError, SoupkitError
from soupkit.events import silent
from soupkit.jobs.files.inspect import inspect
from soupkit.jobs.files.verify import reproduce, verify
from soupkit.manifest import MANIFEST_NAME, Manifest
from soupkit.merge.mixture import Mixture
from soupkit.recipe.inspect import Inspect, Reproduce, Verify
from soupkit.recipe.parse import parse_recipe, recipe_to_json
from soupkit.recipe.steps import parse_steps
from soupkit.world import World

MORE = os.environ.get("SOUPKIT_FUZZ")
fuzz = settings(
    max_examples=int(MORE or 60),
    derandomize=MORE is None,
    database=None,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)
numbers = st.one_of(
    st.integers(-2, 300), st.integers(), st.sampled_from([2**31, 2**63 - 1, 2**63, 2**64, 10**30])
)
scalars = st.one_of(st.none(), st.booleans(), numbers, st.floats(), st.text(max_size=8))
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
names = st.text(max_size=6)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*NUMPY_DTYPES, "F4", ""]) | values,
        "shape": st.lists(st.integers(0, 5), max_size=3) | st.lists(numbers, max_size=3) | values,
        "data_offsets": st.lists(st.integers(0, 64), min_size=2, max_size=2)
        | st.lists(numbers, max_size=3)
        | values,
    }
)
headers = st.dictionaries(
    names | st.just("__metadata__"), entries | values | st.dictionaries(names, names, max_size=2), max_size=4
)
slots = st.dictionaries(
    names,
    st.builds(
        Slot, st.sampled_from(sorted(NUMPY_DTYPES)), st.lists(st.integers(0, 4), max_size=3).map(tuple)
    ),
    max_size=5,
)


def accepted(raw: bytes, size: int) -> Any:
    """The parsed header, None for one that is refused."""
    try:
        return parse_header(raw, Path("x.safetensors"), size)
    except CheckpointError:
        return None


@fuzz
@given(st.binary(max_size=200), st.integers(0, 2**64))
@example(b"[" * 100_000, 10)
@example(b'{"a":' * 10_000, 10)
@example(b'{"a": 1e999}', 10)
@example(b'{"a": NaN}', 10)
@example(b'{"\\ud800": {}}', 10)
@example(b"\xef\xbb\xbf{}", 13)
@example(b'{"a": ' + b"9" * 5000 + b"}", 10)
def test_bytes_as_a_header(raw: bytes, size: int) -> None:
    accepted(raw, size)


@fuzz
@given(headers, st.integers(0, 400))
@example({"a": {"dtype": "F32", "shape": [-1, -4], "data_offsets": [0, 16]}}, 200)
@example({"\ud800": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}, 0)
@example({"a": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, 200)
@example({"a": {"dtype": "U8", "shape": [2**32, 2**32], "data_offsets": [0, 0]}}, 200)
@example({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, 200)
@example({"a": {"dtype": "U8", "shape": [0, 2**63 - 1], "data_offsets": [0, 0]}}, 200)
@example({"__metadata__": {"a": "b"}}, 200)
def test_json_as_a_header(header: Any, data: int) -> None:
    raw = json.dumps(header).encode()
    accepted(raw, 8 + len(raw) + data)


@fuzz
@given(slots, st.dictionaries(names, names, max_size=2))
def test_good_headers_are_accepted_and_mean_what_safetensors_reads(
    made: dict[str, Slot], metadata: dict[str, str]
) -> None:
    assume("__metadata__" not in made)
    prefix, _ = header_bytes(made, canonical_order(made), metadata)
    data = bytes(sum(slot.num_bytes for slot in made.values()))
    found = accepted(prefix[8:], len(prefix) + len(data))
    assert {name: Slot(spec.dtype, spec.shape) for name, spec in found.specs.items()} == made
    theirs = {
        name: (info["dtype"], tuple(info["shape"])) for name, info in safetensors.deserialize(prefix + data)
    }
    assert theirs == {name: (slot.dtype, slot.shape) for name, slot in made.items()}


@fuzz
@given(slots, st.data())
def test_what_soupkit_accepts_safetensors_accepts(made: dict[str, Slot], draw: st.DataObject) -> None:
    """One part of a good file is changed; soupkit may be stricter, never laxer."""
    assume("__metadata__" not in made)
    prefix, _ = header_bytes(made, canonical_order(made), {})
    content = bytearray(prefix + bytes(sum(slot.num_bytes for slot in made.values())))
    for _ in range(draw.draw(st.integers(1, 3))):
        position = draw.draw(st.integers(0, len(content) - 1))
        content[position] = draw.draw(st.sampled_from(b'0123456789,:[]{}" \\FUIB\x00\xff'))
    (length,) = struct.unpack("<Q", content[:8])
    found = accepted(bytes(content[8 : 8 + length]), len(content)) if length < len(content) else None
    if found is not None:
        theirs = {name: tuple(info["shape"]) for name, info in safetensors.deserialize(bytes(content))}
        assert theirs == {name: spec.shape for name, spec in found.specs.items()}


LAXER = [
    b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[-0,1]}}',
    b'{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}',
    b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
    b'{"__metadata__":{"a":"\\udfff"},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
]


@pytest.mark.parametrize("raw", LAXER)
def test_what_guided_fuzzing_found(raw: bytes) -> None:
    """Python's JSON reads these, safetensors' does not."""
    with pytest.raises(CheckpointError, match="has a header that is not valid"):
        parse_header(raw, Path("x.safetensors"), 8 + len(raw) + 1)
    with pytest.raises(safetensors.SafetensorError):
        safetensors.deserialize(struct.pack("<Q", len(raw)) + raw + b"x")
    escaped = b'{"\\u00e4-0":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    assert list(parse_header(escaped, Path("x"), 8 + len(escaped) + 1).specs) == ["\u00e4-0"]


def test_mutated_pickles(tmp_path: Path) -> None:
    """In a process of its own: a crash of the reader fails this test and not the whole run."""
    arguments = (tmp_path, int(MORE or 300), 0 if MORE is None else os.getpid())
    process = multiprocessing.get_context("fork").Process(target=pickle_mutations.run, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0
    outcomes = json.loads((tmp_path / "outcomes.json").read_text())
    assert min(outcomes["CheckpointError"], outcomes["read"]) > 0


@pytest.mark.skipif(not MORE, reason="SOUPKIT_FUZZ=1 runs it, for 20 seconds each")
@pytest.mark.parametrize("target", ["header", "index"])
def test_guided(target: str) -> None:
    pytest.importorskip("atheris")
    command = [
        sys.executable,
        str(Path(__file__).with_name("guided.py")),
        target,
        "-max_total_time=20",
        "-max_len=400",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one good shard."""
    from soupkit.checkpoint.tensors import write_tensors

    directory = tmp_path_factory.mktemp("fuzz") / "c"
    directory.mkdir()
    write_tensors(directory, {"a": np.ones(3, np.float32)}, file_name="shard.safetensors")
    return directory


def opens(directory: Path) -> None:
    """Open, inspect and compare a directory, as every command does first."""
    try:
        (opened,) = open_references([str(directory)])
        check_compatible([opened, {"a": np.ones(3, np.float32)}])
        inspect(Inspect(refs=(str(directory),), tensors=True), World(threads=1), silent)
    except SoupkitError:
        return


@fuzz
@given(
    st.binary(max_size=60)
    | st.builds(
        json.dumps,
        values
        | st.fixed_dictionaries(
            {"weight_map": values | st.dictionaries(names, st.just("shard.safetensors") | names, max_size=3)}
        ),
    ).map(str.encode)
)
@example(b'{"weight_map": {"a": "shard.safetensors\\u0000"}}')
@example(b'{"weight_map": {"a": "' + b"x" * 5000 + b'"}}')
@example(b'{"weight_map": {"a": "\\ud800.safetensors"}}')
@example(b"\xff\xfe{")
@example(b"[" * 100_000)
def test_shard_indexes(place: Path, content: bytes) -> None:
    index = place / "model.safetensors.index.json"
    index.write_bytes(content)
    opens(place)
    index.unlink()


@fuzz
@given(
    st.sampled_from(["config.json", "open_clip_config.json"]),
    st.binary(max_size=60)
    | st.builds(
        json.dumps,
        values
        | st.dictionaries(
            st.sampled_from(["architectures", "architecture", "model_type", "model_cfg", "pretrained_cfg"]),
            values,
        ),
    ).map(str.encode),
)
@example("config.json", b"\xff\xfe{")
@example("config.json", b'{"architectures": [3]}')
@example("config.json", b'{"architecture": {"a": 1}}')
@example("open_clip_config.json", b'{"model_cfg": {"vision_cfg": 3}}')
def test_configurations(place: Path, name: str, content: bytes) -> None:
    (place / name).write_bytes(content)
    opens(place)
    (place / name).unlink()


inputs = st.dictionaries(
    st.sampled_from(["reference", "path", "content", "commit", "sha256"]), values, max_size=5
)
files = st.dictionaries(st.sampled_from(["bytes", "xxh3-128", "sha256"]), values)
mixtures = st.fixed_dictionaries(dict.fromkeys(["ingredients", "coefficients", "divisor", "blocks"], values))
manifests = st.fixed_dictionaries(
    {
        "command": st.sampled_from(["merge uniform", "merge greedy", "evaluate", "none"]),
        "recipe": st.dictionaries(
            st.sampled_from(["refs", "out", "dtype", "threads", "top", "bn"]), values, max_size=4
        ),
        "inputs": st.lists(inputs | values, max_size=3),
        "outputs": st.dictionaries(
            st.sampled_from(["content", "files"]), values | st.dictionaries(names, values | files, max_size=3)
        ),
        "metrics": st.dictionaries(st.sampled_from(["held_out", "test"]), values),
        "mixture": st.none() | values | mixtures,
        "trace": st.lists(values, max_size=3),
        "notes": st.dictionaries(st.sampled_from(["members", "picks"]), values),
    },
    optional={
        "format": numbers | values,
        "versions": values,
        "created": values,
        "soupkit": values,
        "other": values,
    },
)


@fuzz
@given(st.binary(max_size=60) | st.builds(json.dumps, values | manifests).map(str.encode))
@example(b'{"command": "merge uniform"}')
@example(json.dumps(dataclasses.asdict(Manifest(command="x", recipe={}, notes={"members": [3]}))).encode())
@example(
    json.dumps(
        dataclasses.asdict(Manifest(command="x", recipe={}, notes={"members": ["../../../etc"]}))
    ).encode()
)
@example(
    json.dumps(dataclasses.asdict(Manifest(command="x", recipe={}, outputs={"files": {"\0": {}}}))).encode()
)
@example(json.dumps(dataclasses.asdict(Manifest(command="x", recipe={}, inputs=[{"reference": 3}]))).encode())
def test_manifests(place: Path, content: bytes) -> None:
    (place / MANIFEST_NAME).write_bytes(content)
    tasks: list[Callable[[], Any]] = [
        lambda: Manifest.read(place),
        lambda: opens(place),
        lambda: verify(Verify(directory=place, inputs=True, threads=1), World(threads=1), silent),
        lambda: reproduce(
            Reproduce(directory=place, out=place / "again", dry_run=True), World(threads=1), silent
        ),
        lambda: open_references([str(place)]),
    ]
    for task in tasks:
        try:
            task()
        except SoupkitError:
            continue
    (place / MANIFEST_NAME).unlink()


@fuzz
@given(
    values
    | st.fixed_dictionaries(
        {"ingredients": values, "coefficients": values, "divisor": values, "blocks": values}
    )
)
def test_mixtures(value: Any) -> None:
    try:
        mixture = Mixture.from_json(value)
    except SoupkitError:
        return
    json.dumps(mixture.to_json())


@fuzz
@given(st.text(max_size=120))
@example("command: merge uniform\nrefs: &a [*a]\nout: x")
@example("a: &a [x, *a]\nsteps: *a")
@example("!!python/object/apply:os.system ['true']")
@example("command: merge uniform\nrefs: [a]\nout: ${x")
@example("variables: {a: '${a}'}\nsteps: {s: {command: '${a}'}}")
@example("? [a]\n: b")
@example("steps: {s: {command: run}}")
@example("command: merge uniform\nrefs: 2024-01-01\nout: 1e400")
@example("steps: {s: {command: merge uniform, refs: [a], out: b, expect: {a: b}}}")
@example("&a : *a")
def test_recipe_files_of_any_text(text: str) -> None:
    with contextlib.suppress(SoupkitError):
        parse_steps(text, where="recipe.yaml")


def test_mergekit_files_of_any_kind() -> None:
    mergekit_mutations.main(int(MORE or 150), 0 if MORE is None else os.getpid())


@fuzz
@given(st.sampled_from(sorted(COMMANDS)), st.data())
def test_recipes_of_any_values(command: str, draw: st.DataObject) -> None:
    """What is accepted comes back the same from its own JSON."""
    kind = COMMANDS[command].recipe_type()
    keys = st.sampled_from([field.name for field in dataclasses.fields(kind)] or ["none"])
    required = [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]
    given_values = draw.draw(st.dictionaries(keys, values, max_size=5))
    given_values |= {name: draw.draw(values) for name in required}
    try:
        recipe = parse_recipe(kind, given_values, where="here")
    except SoupkitError:
        return
    assert parse_recipe(kind, json.loads(json.dumps(recipe_to_json(recipe)))) == recipe


@fuzz
@given(st.text(alphabet="ab/@:.{}[]~,0123-hf", max_size=25) | st.text(max_size=15))
def test_references(text: str) -> None:
    looks_like_hub(text)
    found = parse_hub(text)
    if found is not None:
        assert ".." not in str(found.inside).split("/")
        assert parse_hub(str(found)) == found
    try:
        assert expand_braces(text)
        if not looks_like_hub(text):  # this one asks nobody
            open_references([text])
    except SoupkitError:
        return


@fuzz
@given(
    st.sets(
        st.sampled_from(
            [
                "model.safetensors",
                "open_clip_model.safetensors",
                "a.safetensors",
                "model.safetensors.index.json",
                "open_clip_config.json",
                "pytorch_model.bin",
                "adapter_config.json",
                "x",
            ]
        )
        | names
    )
)
def test_which_file_holds_the_weights(found: set[str]) -> None:
    try:
        chosen = choose_weights(found, "here")
    except SoupkitError:
        return
    assert chosen in found


@fuzz
@given(st.binary(max_size=300))
def test_files_of_any_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        read_header(path)
    with pytest.raises(CheckpointError):
        Checkpoint(path)


@fuzz
@given(
    st.lists(
        st.sampled_from(
            [
                "merge",
                "uniform",
                "inspect",
                "--out",
                "--top",
                "--dtype",
                "--json",
                "-h",
                "--version",
                "x",
                "",
                "--",
                "-1",
                "\udcff",
            ]
        ),
        max_size=6,
    )
)
def test_command_lines(arguments: list[str]) -> None:
    assert run_command_line(arguments) in (0, 1, 2)
