"""`pull` and `push` against the loopback Hub."""

import json
from pathlib import Path
from typing import Any

import pytest
from hub.conftest import checkpoint
from hub.server import TOKEN, Hub

from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.reference import open_checkpoint, open_references
from soupkit.cli.app import run_command_line
from soupkit.manifest import Manifest

# huggingface_hub hands its files to httpx2 in a way that httpx2 no longer likes.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture
def logged_in(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def soup(tmp_path: Path) -> Path:
    """A soup of two checkpoints, as soupkit writes it."""
    sources = [str(checkpoint(tmp_path / f"c{seed}", seed)) for seed in (0, 1)]
    assert run_command_line(["merge", "uniform", *sources, "--out", str(tmp_path / "soup"), "--quiet"]) == 0
    return tmp_path / "soup"


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    code = run_command_line([*arguments, "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    values: dict[str, Any] = json.loads(captured.out)
    return values


def fails(*arguments: str, capsys: pytest.CaptureFixture[str], code: int = 1) -> str:
    capsys.readouterr()
    assert run_command_line(list(arguments)) == code
    return capsys.readouterr().err


def test_pull_fills_the_cache(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commit = hub.add("org/toy", checkpoint(tmp_path / "source"))
    (pulled,) = run("pull", "org/toy", capsys=capsys)["checkpoints"]
    assert pulled["commit"] == commit
    assert pulled["reference"] == f"org/toy@{commit}"
    names = sorted(path.name for path in Path(pulled["directory"]).iterdir())
    assert names == ["config.json", "model.safetensors", "vocab.txt"]
    before = hub.sent
    run("pull", "org/toy", capsys=capsys)
    assert hub.sent - before < 5000


def test_pull_into_a_directory(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = checkpoint(tmp_path / "source")
    commit = hub.add("org/toy", source)
    manifest = run("pull", "org/toy", "--out", str(tmp_path / "out"), capsys=capsys)
    assert manifest["inputs"][0]["commit"] == commit
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    assert content_hash(open_checkpoint(str(tmp_path / "out"))) == content_hash(open_checkpoint(str(source)))
    assert run("verify", str(tmp_path / "out"), "--inputs", capsys=capsys)["checks"]
    assert "exists already" in fails("pull", "org/toy", "--out", str(tmp_path / "out"), capsys=capsys)


def test_pull_of_several(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2):
        hub.add("org/toy", checkpoint(tmp_path / f"s{step}", step), tag=f"step{step}")
    run("pull", "org/toy@step{1..2}", "--out", str(tmp_path / "out"), capsys=capsys)
    assert [int(each["steps"]) for each in open_references([str(tmp_path / "out")])] == [1, 2]
    run("verify", str(tmp_path / "out"), capsys=capsys)


def test_pull_plans(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.add("org/toy", checkpoint(tmp_path / "source"))
    (plan,) = run("pull", "org/toy", "--dry-run", capsys=capsys)["checkpoints"]
    assert plan["bytes"] > 0
    assert not list((tmp_path / "hf-cache").rglob("*.safetensors"))
    assert "is on this disk already" in fails("pull", str(tmp_path / "source"), capsys=capsys, code=2)


@pytest.mark.usefixtures("logged_in")
def test_push_then_pull_is_the_same(
    hub: Hub, soup: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pushed = run("push", str(soup), "org/soup", "--private", capsys=capsys)
    repo = hub.repos["org/soup"]
    assert repo.private
    files = repo.commits[pushed["commit"]]
    assert files.keys() == {path.name for path in soup.iterdir()} | {".gitattributes"}
    for path in soup.iterdir():
        assert files[path.name] == path.read_bytes()
    run("pull", "org/soup", "--out", str(tmp_path / "pulled"), capsys=capsys)
    assert Manifest.read(tmp_path / "pulled").to_json() == Manifest.read(soup).to_json()
    run("verify", str(tmp_path / "pulled"), capsys=capsys)


@pytest.mark.usefixtures("logged_in")
def test_push_again_sends_nothing_twice(hub: Hub, soup: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run("push", str(soup), "org/soup", capsys=capsys)
    uploads = len(hub.asked("PUT /upload/"))
    again = run("push", str(soup), "org/soup", capsys=capsys)
    assert len(hub.asked("PUT /upload/")) == uploads == 1
    assert again["commit"] == first["commit"]
    assert len(hub.asked("POST .*/commit/")) == 1


@pytest.mark.usefixtures("logged_in")
def test_an_interrupted_push_continues(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        checkpoint(tmp_path / f"sweep/run-{seed}", seed)
    members = [f"run-{seed}" for seed in range(3)]
    Manifest(command="finetune-sweep", recipe={}, notes={"members": members}).write(tmp_path / "sweep")
    digest = (
        __import__("hashlib").sha256((tmp_path / "sweep/run-1/model.safetensors").read_bytes()).hexdigest()
    )
    hub.fail(f"PUT /upload/{digest}", "status", status=403)
    assert "access is forbidden" in fails("push", str(tmp_path / "sweep"), "org/sweep", capsys=capsys)
    assert len(hub.uploads) >= 1
    done = set(hub.uploads)
    hub.faults.clear()
    hub.requests.clear()
    run("push", str(tmp_path / "sweep"), "org/sweep", capsys=capsys)
    assert not [request for request in hub.asked("PUT") if request.path.rpartition("/")[2] in done]
    assert [int(each["steps"]) for each in open_references(["org/sweep"])] == [0, 1, 2]


@pytest.mark.usefixtures("logged_in")
@pytest.mark.parametrize(
    "where",
    ["PUT /upload/", "POST .*/preupload/", "POST .*/batch", "POST /api/repos/create", "POST .*/commit/"],
)
@pytest.mark.parametrize(("kind", "status"), [("status", 503), ("status", 429), ("drop", 0)])
def test_push_tries_again(
    hub: Hub, soup: Path, capsys: pytest.CaptureFixture[str], where: str, kind: str, status: int
) -> None:
    fault = hub.fail(where, kind, status=status, times=2)
    run("push", str(soup), "org/soup", capsys=capsys)
    assert fault.seen == 2
    assert int(open_checkpoint("org/soup")["steps"]) == 1


@pytest.mark.usefixtures("logged_in")
def test_push_to_a_branch_and_as_a_pull_request(
    hub: Hub, soup: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("push", str(soup), "org/soup", "--revision", "experiment", capsys=capsys)
    assert "model.safetensors" in hub.repos["org/soup"].commits[hub.repos["org/soup"].branches["experiment"]]
    assert "model.safetensors" not in hub.repos["org/soup"].commits[hub.repos["org/soup"].branches["main"]]
    pushed = run("push", str(soup), "org/soup", "--pr", "--message", "Better", capsys=capsys)
    assert pushed["pull_request"] == f"{hub.url}/org/soup/discussions/1"
    assert "model.safetensors" not in hub.repos["org/soup"].commits[hub.repos["org/soup"].branches["main"]]
    assert int(open_checkpoint("org/soup@refs/pr/1")["steps"]) == 1
    assert "no such repository" in fails("push", str(soup), "org/none", "--pr", capsys=capsys)


def test_push_needs_a_token(
    hub: Hub, soup: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = fails("push", str(soup), "org/soup", capsys=capsys)
    assert "org/soup: the Hub wants a token, and there is none" in text
    assert "hf auth login" in text
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "access is forbidden" in fails("push", str(soup), "forbidden/soup", capsys=capsys)


@pytest.mark.usefixtures("logged_in")
def test_private_weights_never_go_where_all_can_read_them(
    hub: Hub, soup: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add("org/public", {"README.md": b"x"})
    text = fails("push", str(soup), "org/public", "--private", capsys=capsys, code=2)
    assert "org/public: exists already and is public" in text
    assert not hub.uploads
    assert not hub.asked("POST .*/(preupload|commit)")


@pytest.mark.usefixtures("logged_in")
def test_weights_that_the_manifest_does_not_know_are_refused(
    hub: Hub, soup: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray((soup / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (soup / "model.safetensors").write_bytes(content)
    assert "the weights are not those that soupkit.json records" in fails(
        "push", str(soup), "org/soup", capsys=capsys
    )
    assert not hub.requests


@pytest.mark.usefixtures("logged_in")
def test_push_of_what_is_no_soup(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = checkpoint(tmp_path / "source")
    (source / "README.md").unlink()
    (source / ".hidden").write_text("secret")
    pushed = run("push", str(source), "org/toy", capsys=capsys)
    files = hub.repos["org/toy"].commits[pushed["commit"]]
    assert b"library_name" in files["README.md"]
    assert ".hidden" not in files
    for bad in ("name", "org/name@main", "org/name:sub", "a/b/c"):
        assert "expected org/name" in fails("push", str(source), bad, capsys=capsys, code=2)
    (tmp_path / "empty").mkdir()
    assert "holds no .safetensors" in fails("push", str(tmp_path / "empty"), "org/toy", capsys=capsys)


@pytest.mark.usefixtures("logged_in")
def test_push_plans(hub: Hub, soup: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = run("push", str(soup), "org/soup", "--dry-run", capsys=capsys)["plan"]
    assert set(plan["files"]) == {path.name for path in soup.iterdir()}
    assert not hub.requests


@pytest.mark.usefixtures("logged_in")
def test_a_bad_model_card_is_refused_before_the_upload(
    hub: Hub, soup: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = {"errors": [{"message": "license must be a string"}], "warnings": []}
    monkeypatch.setattr("hub.server._Handler._route", _with_yaml(answer))
    text = fails("push", str(soup), "org/soup", capsys=capsys)
    assert "the Hub cannot read the head of README.md" in text
    assert "license must be a string" in text
    assert not hub.uploads


def _with_yaml(answer: dict[str, Any]) -> Any:
    from hub.server import _Handler

    route = _Handler._route

    def replaced(handler: Any) -> None:
        if handler.path == "/api/validate-yaml":
            handler._answer(400, json.dumps(answer).encode(), {"Content-Type": "application/json"})
        else:
            route(handler)

    return replaced


@pytest.mark.parametrize("sharded", [False, True])
def test_convert_from_the_hub(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], sharded: bool
) -> None:
    """A repository of pickles, as the error about it suggests."""
    torch = pytest.importorskip("torch")
    old = tmp_path / "old"
    old.mkdir()
    parts = (
        [{"a": torch.ones(2)}, {"b": torch.zeros(3)}]
        if sharded
        else [{"a": torch.ones(2), "b": torch.zeros(3)}]
    )
    names = (
        [f"pytorch_model-{i + 1:05d}-of-00002.bin" for i in range(2)] if sharded else ["pytorch_model.bin"]
    )
    for part, name in zip(parts, names, strict=True):
        torch.save(part, old / name)
    if sharded:
        weight_map = {key: name for part, name in zip(parts, names, strict=True) for key in part}
        (old / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (old / "config.json").write_text('{"model_type": "bert"}')
    (old / "optimizer.pt").write_bytes(b"not needed")
    commit = hub.add("org/old", old)
    text = fails("inspect", "org/old", capsys=capsys)
    assert f"soupkit convert org/old@{commit} --out DIR" in text
    manifest = run("convert", f"org/old@{commit}", "--out", str(tmp_path / "new"), capsys=capsys)
    assert manifest["inputs"][0]["commit"] == commit
    assert set(open_checkpoint(str(tmp_path / "new")).specs) == {"a", "b"}
    assert (tmp_path / "new/config.json").exists()
    assert not hub.asked("optimizer")
    run("verify", str(tmp_path / "new"), "--inputs", capsys=capsys)
    hub.add("org/older", old)
    run("convert", "org/old", "org/older", "--out", str(tmp_path / "both"), capsys=capsys)
    assert len(open_references([str(tmp_path / "both")])) == 2


def test_two_processes_download_the_same(hub: Hub, tmp_path: Path) -> None:
    """huggingface_hub's locks: both end well, one file is there, each weight file comes at most twice."""
    import os
    import subprocess
    import sys

    source = checkpoint(tmp_path / "source", size=20_000)
    hub.add("org/toy", source)
    hub.fail("GET /blobs/", "slow", pause=0.01)
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
    }
    commands = [
        [sys.executable, "-m", "soupkit", "pull", "org/toy", "--out", str(tmp_path / f"out{i}")]
        for i in (0, 1)
    ]
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) for command in commands]
    outcomes = [(process.communicate()[1], process.returncode) for process in processes]
    assert [code for _, code in outcomes] == [0, 0], outcomes
    for i in (0, 1):
        assert (tmp_path / f"out{i}/model.safetensors").read_bytes() == (
            source / "model.safetensors"
        ).read_bytes()
    assert not list((tmp_path / "home").rglob("*.incomplete"))
