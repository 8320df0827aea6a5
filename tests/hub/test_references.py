"""References to the Hub: what they may look like, what they open, and what is fetched for that."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hub.conftest import checkpoint, tensors
from hub.server import TOKEN, Hub

from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.hub.hub import HubReference, expand_braces, looks_like_hub, parse_hub
from soupkit.checkpoint.reference import open_checkpoint, open_references
from soupkit.checkpoint.tensors import TensorFiles, plan_files
from soupkit.cli.app import run_command_line
from soupkit.errors import CheckpointError, ReferenceError
from soupkit.manifest import Manifest

FORMS = {
    "org/name": HubReference("org/name"),
    "org/name@v1": HubReference("org/name", "v1"),
    "org/name@refs/pr/3": HubReference("org/name", "refs/pr/3"),
    "org/name:sub/folder": HubReference("org/name", None, "sub/folder"),
    "org/name@v1:model.safetensors": HubReference("org/name", "v1", "model.safetensors"),
    "hf://org/na.me-1": HubReference("org/na.me-1"),
    "hf://models/org/name": HubReference("org/name"),
    "hf://org/name@v1": HubReference("org/name", "v1"),
    "hf://org/name/sub/folder": HubReference("org/name", None, "sub/folder"),
    "hf://org/name@v1/sub": HubReference("org/name", "v1", "sub"),
    "hf://org/name@refs/pr/3/sub": HubReference("org/name", "refs/pr/3", "sub"),
    "hf://org/name@v1:sub": HubReference("org/name", "v1", "sub"),
}
NOT_FORMS = (
    "name",
    "a/b/c",
    "/abs/path",
    "./org/name",
    "~/x",
    "org/name:../../etc",
    "hf://",
    "hf://x",
    "org/",
    "-o/n",
)
BRACES = {
    "a/b@step{1000..3000..1000}": ["a/b@step1000", "a/b@step2000", "a/b@step3000"],
    "a/b@{3..1}": ["a/b@3", "a/b@2", "a/b@1"],
    "a/b@{08..10}": ["a/b@08", "a/b@09", "a/b@10"],
    "a/b@{x,y}:run-{0..1}": ["a/b@x:run-0", "a/b@x:run-1", "a/b@y:run-0", "a/b@y:run-1"],
    "a/b@{1..10..4}": ["a/b@1", "a/b@5", "a/b@9"],
    "a/b": ["a/b"],
}


@pytest.mark.parametrize("text", FORMS)
def test_forms(text: str) -> None:
    assert parse_hub(text) == FORMS[text]


@pytest.mark.parametrize("text", NOT_FORMS)
def test_what_is_no_reference(text: str) -> None:
    assert parse_hub(text) is None


@pytest.mark.parametrize("text", BRACES)
def test_braces_expand_as_in_a_shell(text: str) -> None:
    assert expand_braces(text) == BRACES[text]
    if "{" in text and Path("/bin/bash").exists():
        shell = subprocess.run(
            ["/bin/bash", "-c", f"echo {text}"], capture_output=True, text=True, check=True
        )
        assert expand_braces(text) == shell.stdout.split()


def test_a_huge_range_is_refused() -> None:
    with pytest.raises(ReferenceError, match="names more than"):
        expand_braces("a/b@{0..99999999}")


def test_opening_fetches_headers_and_configuration_only(hub: Hub, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", size=50_000)
    commit = hub.add("org/toy", source)
    opened = open_checkpoint("org/toy")
    assert opened.reference == f"org/toy@{commit}"
    assert opened.config == {"architecture": "toy"}
    assert opened.specs.keys() == tensors().keys()
    assert hub.sent < 200_000 < (source / "model.safetensors").stat().st_size
    assert not any(request.range is None for request in hub.asked(r"GET /blobs/"))
    assert not list((tmp_path / "hf-cache").rglob("*.safetensors"))
    assert not hub.asked("vocab|training_args|README")


def test_reading_downloads_the_weights_once(hub: Hub, tmp_path: Path) -> None:
    commit = hub.add("org/toy", checkpoint(tmp_path / "source"))
    opened = open_checkpoint("org/toy")
    for name, array in tensors().items():
        np.testing.assert_array_equal(opened[name], array)
    assert len([request for request in hub.asked("GET /blobs/") if request.range is None]) == 1
    assert content_hash(opened) == content_hash(open_checkpoint(str(tmp_path / "source")))
    assert (tmp_path / f"hf-cache/models--org--toy/snapshots/{commit}/model.safetensors").exists()
    again = open_checkpoint("org/toy")
    before = hub.sent
    np.testing.assert_array_equal(again["layer.bias"], tensors()["layer.bias"])
    assert hub.sent == before
    assert not hub.asked("training_args|README|vocab")


def test_revisions_subfolders_and_files(hub: Hub, tmp_path: Path) -> None:
    files = {
        "model.safetensors": (checkpoint(tmp_path / "a", 1) / "model.safetensors").read_bytes(),
        "sub/deep/model.safetensors": (checkpoint(tmp_path / "b", 2) / "model.safetensors").read_bytes(),
        "other.safetensors": (checkpoint(tmp_path / "c", 3) / "model.safetensors").read_bytes(),
    }
    hub.add("org/toy", files)
    hub.add(
        "org/toy",
        {"model.safetensors": (checkpoint(tmp_path / "d", 4) / "model.safetensors").read_bytes()},
        tag="v2",
    )
    for reference, seed in {
        "org/toy": 1,
        "org/toy:sub/deep": 2,
        "org/toy:other.safetensors": 3,
        "org/toy@v2": 4,
        "hf://org/toy@main/sub/deep": 2,
        "hf://org/toy@v2": 4,
    }.items():
        assert int(open_checkpoint(reference)["steps"]) == seed, reference


def test_brace_ranges_over_revisions(hub: Hub, tmp_path: Path) -> None:
    for step in (1000, 2000, 3000):
        hub.add("org/toy", checkpoint(tmp_path / f"s{step}", step), tag=f"step{step}")
    opened = open_references(["org/toy@step{1000..3000..1000}"])
    assert [int(each["steps"]) for each in opened] == [1000, 2000, 3000]


def test_shards(hub: Hub, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    from soupkit.checkpoint.source import slots_of

    with TensorFiles(source, plan_files(slots_of(tensors()), max_shard_bytes=1000)) as files:
        for name, array in tensors().items():
            files.write(name, 0, array.reshape(-1))
    hub.add("org/toy", source)
    opened = open_checkpoint("org/toy")
    assert len(opened.files) > 1
    assert not list((tmp_path / "hf-cache").rglob("*.safetensors"))
    assert content_hash(opened) == content_hash(open_checkpoint(str(source)))
    index = json.loads((source / "model.safetensors.index.json").read_text())
    shard = next(iter(set(index["weight_map"].values())))
    broken = {path.name: path.read_bytes() for path in source.iterdir() if path.name != shard}
    hub.add("org/toy", broken, tag="broken")
    with pytest.raises(CheckpointError, match=f"shards that are not there, for example {shard}"):
        open_checkpoint("org/toy@broken")


def test_a_pushed_sweep_is_its_members(hub: Hub, tmp_path: Path) -> None:
    for seed in range(3):
        checkpoint(tmp_path / f"sweep/run-{seed}", seed)
    Manifest(command="finetune-sweep", recipe={}, notes={"members": [f"run-{s}" for s in range(3)]}).write(
        tmp_path / "sweep"
    )
    hub.add("org/sweep", tmp_path / "sweep")
    opened = open_references(["org/sweep"])
    assert [int(each["steps"]) for each in opened] == [0, 1, 2]
    assert opened[1].reference.endswith(":run-1")
    with pytest.raises(ReferenceError, match="names 3 checkpoints, expected one"):
        open_checkpoint("org/sweep")


def test_what_is_here_wins(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "org/toy", 5)
    assert not looks_like_hub("org/other")  # a misspelled path, as org is a folder here
    assert int(open_checkpoint("org/toy")["steps"]) == 5
    with pytest.raises(ReferenceError, match="org/other: no such file"):
        open_checkpoint("org/other")
    assert not hub.requests
    hub.add("org/toy", checkpoint(tmp_path / "source", 6))
    assert int(open_checkpoint("hf://org/toy")["steps"]) == 6


def test_the_commit_is_pinned_whatever_happens_to_the_branch(hub: Hub, tmp_path: Path) -> None:
    first = hub.add("org/toy", checkpoint(tmp_path / "a", 1))
    opened = open_checkpoint("org/toy")
    second = hub.add("org/toy", checkpoint(tmp_path / "b", 2))
    assert int(opened["steps"]) == 1
    assert open_checkpoint("org/toy").reference == f"org/toy@{second}"
    assert int(open_checkpoint(f"org/toy@{first}")["steps"]) == 1


def test_tokens_go_to_the_hub_and_not_to_the_storage(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.add("org/secret", checkpoint(tmp_path / "source"), private=True)
    opened = open_checkpoint("org/secret")
    assert int(opened["steps"]) == 0
    assert all("authorization" in request.headers for request in hub.requests if request.server == "hub")
    stored = [request for request in hub.requests if request.server == "storage"]
    assert stored
    assert not any("authorization" in request.headers for request in stored)


def test_offline_works_with_the_cache(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    commit = hub.add("org/toy", checkpoint(tmp_path / "source", 3))
    open_checkpoint("org/toy").fetch()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(hub.requests)
    for reference in ("org/toy", "org/toy@main", f"org/toy@{commit}"):
        opened = open_checkpoint(reference)
        assert opened.reference == f"org/toy@{commit}"
        assert int(opened["steps"]) == 3
        assert [path.name for path in opened.companions] == ["config.json", "vocab.txt"]
    assert len(hub.requests) == before
    for reference in ("org/toy@v2", "org/other"):
        with pytest.raises(ReferenceError, match="is not in the cache, and HF_HUB_OFFLINE is set") as caught:
            open_checkpoint(reference)
        assert f"soupkit pull {reference}" in str(caught.value.hint)


def test_inspect_by_ranges(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = checkpoint(tmp_path / "source", size=50_000)
    hub.add("org/toy", source)
    assert run_command_line(["inspect", "org/toy", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["checkpoints"][0]
    assert run_command_line(["inspect", str(source), "--json"]) == 0
    local = json.loads(capsys.readouterr().out)["checkpoints"][0]
    assert found["reference"].startswith("org/toy@")
    assert {**found, "reference": ""} == {**local, "reference": ""}
    assert hub.sent < 200_000


def test_a_header_longer_than_the_first_request(hub: Hub, tmp_path: Path) -> None:
    many = {f"a_rather_long_name_of_a_tensor.{number}": np.zeros(1, np.float32) for number in range(3000)}
    (tmp_path / "source").mkdir()
    from soupkit.checkpoint.tensors import write_tensors

    write_tensors(tmp_path / "source", many)
    hub.add("org/toy", tmp_path / "source")
    assert open_checkpoint("org/toy").specs.keys() == many.keys()
    assert len(hub.asked("GET /blobs/")) == 2


PROCESS = """
import sys
from soupkit.cli.app import run_command_line
code = run_command_line(sys.argv[1:])
print("HUB", code, sorted({"huggingface_hub", "torch"} & set(sys.modules)))
"""


def test_local_merges_do_not_import_the_hub(tmp_path: Path) -> None:
    for seed in (0, 1):
        checkpoint(tmp_path / f"c{seed}", seed)
    arguments = [
        "merge",
        "uniform",
        str(tmp_path / "c0"),
        str(tmp_path / "c1"),
        "--out",
        str(tmp_path / "out"),
        "--quiet",
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "HUB 0 []"


def test_the_environment_decides_where_the_hub_is(hub: Hub, tmp_path: Path) -> None:
    """The real variables, in a process of its own."""
    hub.add("org/toy", checkpoint(tmp_path / "a", 1), tag="v1")
    hub.add("org/toy", checkpoint(tmp_path / "b", 2), tag="v2")
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
    }
    arguments = ["merge", "uniform", "org/toy@v{1..2}", "--out", str(tmp_path / "out"), "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "HUB 0 ['huggingface_hub']"
    manifest = Manifest.read(tmp_path / "out")
    commits = [hub.repos["org/toy"].tags[name] for name in ("v1", "v2")]
    assert [entry["reference"] for entry in manifest.inputs] == [f"org/toy@{commit}" for commit in commits]
    assert [entry["commit"] for entry in manifest.inputs] == commits
    assert list((tmp_path / "home/hub").rglob("model.safetensors"))
    assert (tmp_path / "out/vocab.txt").exists()
    assert "base_model:\n- org/toy\nbase_model_relation: merge" in (tmp_path / "out/README.md").read_text()
