"""Everything that goes wrong on the way from the Hub: what the user sees, and that nothing wrong stays
behind."""

import errno
import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults.kill_processes import in_child, wait
from hub.conftest import checkpoint, tensors
from hub.server import TOKEN, Hub
from waiting import wait_for

from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.hub.errors import LONGEST_WAIT, Interrupted, _wait, retried
from soupkit.checkpoint.reference import open_checkpoint
from soupkit.cli.app import run_command_line
from soupkit.errors import CheckpointError, OutputError, ReferenceError, SoupkitError
from soupkit.manifest import Manifest

API, HEAD, RESOLVE, BLOB = (
    r"GET /api/models/org/toy$",
    r"HEAD .*safetensors",
    r"GET .*resolve.*safetensors",
    r"GET /blobs/",
)
MODES = pytest.mark.parametrize("stream", [False, True], ids=["download", "stream"])


@pytest.fixture
def toy(hub: Hub, tmp_path: Path) -> Path:
    """org/toy on the Hub, 3.2 MB, as the directory that it came from."""
    source = checkpoint(tmp_path / "source", 1, size=50_000)
    hub.add("org/toy", source)
    return source


def merge(out: Path, *arguments: str) -> tuple[int, Any]:
    """A merge of org/toy with a local copy of it, as a user would run it."""
    return run_command_line(
        ["merge", "weighted", "org/toy", "--coefficients", "1", "--out", str(out), *arguments]
    ), None


def assert_right(out: Path) -> None:
    written = open_checkpoint(str(out))
    for name, array in tensors(1, size=50_000).items():
        np.testing.assert_array_equal(written[name], array)


def read(stream: bool) -> dict[str, Any]:
    """All tensors of org/toy."""
    from soupkit.checkpoint.reference import open_references

    (opened,) = open_references(["org/toy"], stream=stream)
    return dict(opened)


PASSING: list[tuple[str, str, dict[str, Any]]] = [
    *(
        (where, "status", {"status": status})
        for where in (API, HEAD, BLOB)
        for status in (429, 500, 502, 503, 504)
    ),
    (API, "status", {"status": 429, "headers": {"Retry-After": "7"}}),
    *((where, "drop", {}) for where in (API, HEAD, RESOLVE, BLOB)),
    *((BLOB, "cut", {"after": after}) for after in (0, 1000, 2_000_000)),
    (BLOB, "truncate", {"after": 1000}),
    (BLOB, "truncate", {"after": 2_000_000}),
    (API, "cut", {"after": 20}),
]


@MODES
@pytest.mark.parametrize("times", [2])
@pytest.mark.parametrize(("where", "kind", "options"), PASSING, ids=lambda value: str(value)[:40])
def test_what_passes_is_tried_again(
    hub: Hub, toy: Path, where: str, kind: str, options: dict[str, Any], times: int, stream: bool
) -> None:
    fault = hub.fail(where, kind, times=times, **options)
    found = read(stream)
    for name, array in tensors(1, size=50_000).items():
        np.testing.assert_array_equal(found[name], array)
    assert fault.seen == times or (stream and where in (HEAD, RESOLVE))


def test_a_cut_download_goes_on_where_it_was(hub: Hub, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)  # it keeps whole chunks, of 10 MB
    open_checkpoint("org/toy")
    before = hub.sent
    hub.fail(BLOB, "cut", times=3, after=900_000)
    read(False)
    size = (toy / "model.safetensors").stat().st_size
    assert hub.sent - before < 1.1 * size + 200_000
    ranges = [request.range for request in hub.asked(BLOB)]
    assert any(value and value.endswith("-") for value in ranges)


LASTING: list[tuple[str, str, dict[str, Any], str, str]] = [
    (API, "status", {"status": 500}, "the Hub has a problem (it answers 500", "HF_HUB_OFFLINE=1"),
    (API, "status", {"status": 429}, "takes no more requests for now", "higher limit"),
    (API, "status", {"status": 403}, "access is forbidden", "a token that may do this"),
    (API, "drop", {}, "cannot be reached or keeps breaking off", "HF_ENDPOINT"),
    (API, "cut", {"after": 10}, "cannot be reached or keeps breaking off", "HF_HUB_DOWNLOAD_TIMEOUT"),
    (BLOB, "status", {"status": 503}, "the Hub has a problem (it answers 503", "try again later"),
    (BLOB, "status", {"status": 403}, "access is forbidden", "hf auth login"),
    (BLOB, "drop", {}, "cannot be reached or keeps breaking off", "check the connection"),
    (BLOB, "cut", {"after": 0}, "cannot be reached or keeps breaking off", "check the connection"),
    (RESOLVE, "status", {"status": 404}, "the Hub answers 404", "check the reference"),
]


@MODES
@pytest.mark.parametrize(
    ("where", "kind", "options", "message", "hint"), LASTING, ids=lambda value: str(value)[:30]
)
def test_what_lasts_is_explained(
    hub: Hub, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    where: str, kind: str, options: dict[str, Any], message: str, hint: str, stream: bool,
) -> None:  # fmt: skip
    hub.fail(where, kind, **options)
    code, _ = merge(tmp_path / "out", *(["--stream"] if stream else []))
    text = capsys.readouterr().err
    assert code == 1, text
    assert "org/toy" in text
    assert message in text
    assert hint in text.partition("hint:")[2]
    assert "Traceback" not in text
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if ".soupkit-" in path.name]
    hub.faults.clear()
    assert merge(tmp_path / "out", *(["--stream"] if stream else []))[0] == 0
    assert_right(tmp_path / "out")


@pytest.mark.parametrize("what", ["corrupt", "same size"])
def test_a_wrong_hash_is_found_and_thrown_away(hub: Hub, toy: Path, tmp_path: Path, what: str) -> None:
    opened = open_checkpoint("org/toy")
    content = (toy / "model.safetensors").read_bytes()
    if what == "corrupt":
        hub.fail(BLOB, "corrupt", times=1)
    else:
        hub.fail(BLOB, "replace", body=content[:-1] + bytes([content[-1] ^ 128]), times=1)
    with pytest.raises(
        CheckpointError, match=r"arrived with hash [0-9a-f]{64}, the Hub lists .*; it was removed"
    ):
        opened["layer.bias"]
    assert not [
        path for path in (tmp_path / "hf-cache").rglob("*") if path.is_file() and path.stat().st_size > 10_000
    ]
    assert content_hash(open_checkpoint("org/toy")) == content_hash(open_checkpoint(str(toy)))


def test_a_body_that_stays_too_short(hub: Hub, toy: Path) -> None:
    opened = open_checkpoint("org/toy")
    hub.fail(BLOB, "truncate", after=1000)
    with pytest.raises(CheckpointError, match="arrived incomplete"):
        opened["layer.bias"]
    hub.faults.clear()
    assert int(opened["steps"]) == 1


@MODES
def test_a_pointer_instead_of_the_file(hub: Hub, toy: Path, stream: bool) -> None:
    hub.fail(r"(GET|HEAD) .*safetensors", "pointer")
    with pytest.raises(CheckpointError, match=r"is not the file that the Hub listed|Git LFS pointer"):
        read(stream)


def test_a_pointer_after_the_header(hub: Hub, toy: Path, tmp_path: Path) -> None:
    opened = open_checkpoint("org/toy")
    hub.fail(r"(GET|HEAD) .*safetensors", "pointer")
    with pytest.raises(
        CheckpointError, match="arrived as a Git LFS pointer instead of the file; it was removed"
    ):
        opened["layer.bias"]
    hub.faults.clear()
    assert int(opened["steps"]) == 1


def test_a_pointer_on_this_disk(tmp_path: Path) -> None:
    from hub.server import pointer

    (tmp_path / "c").mkdir()
    (tmp_path / "c/model.safetensors").write_bytes(pointer(b"x"))
    with pytest.raises(CheckpointError, match="is a Git LFS pointer") as caught:
        open_checkpoint(str(tmp_path / "c"))
    assert "git lfs pull" in str(caught.value.hint)


@MODES
def test_a_server_without_ranges(hub: Hub, toy: Path, stream: bool) -> None:
    """Without --stream the file is downloaded whole; with it, one line says why that cannot be."""
    hub.fail(BLOB, "whole")
    if stream:
        with pytest.raises(CheckpointError, match=r"does not send parts of files") as caught:
            read(True)
        assert "leave --stream out" in str(caught.value.hint)
    else:
        assert int(read(False)["steps"]) == 1


@MODES
def test_a_slow_connection_only_takes_longer(hub: Hub, toy: Path, stream: bool) -> None:
    hub.fail(BLOB, "slow", pause=0.005)
    assert int(read(stream)["steps"]) == 1


@MODES
def test_a_connection_on_which_nothing_comes(
    hub: Hub, toy: Path, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.fail(BLOB, "stall", times=2, after=1000)
    assert int(read(stream)["steps"]) == 1


def test_the_commit_changes_under_the_reader(hub: Hub, toy: Path) -> None:
    """The same commit with other bytes: only a server at fault, or one in the middle, does that."""
    from soupkit.checkpoint.reference import open_references

    (opened,) = open_references(["org/toy"], stream=True)
    repo = hub.repos["org/toy"]
    other = bytearray((toy / "model.safetensors").read_bytes())
    other[-1] ^= 1
    repo.commits[repo.branches["main"]]["model.safetensors"] = bytes(other)
    import hashlib

    hub.stored[hashlib.sha256(other).hexdigest()] = bytes(other)
    with pytest.raises(CheckpointError, match="is not the file that the Hub listed; did it change"):
        opened["layer.bias"]


def expect(reference: str, message: str, hint: str) -> None:
    with pytest.raises(SoupkitError) as caught:
        open_checkpoint(reference)
    assert message in caught.value.message
    assert hint in str(caught.value.hint)


def test_no_such_repository(hub: Hub) -> None:
    expect(
        "org/none",
        "org/none: no such file or directory here, and no such repository on http",
        "log in: hf auth login",
    )
    expect("hf://org/none", "hf://org/none: no such repository on http", "check the spelling")


def test_a_private_repository(hub: Hub, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["org/toy"].private = True
    expect("org/toy", "no such repository on http", "for a private repository log in")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    expect("org/toy", "the Hub does not accept the token", "set HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert int(open_checkpoint("org/toy")["steps"]) == 1


def test_a_gated_repository(hub: Hub, toy: Path) -> None:
    hub.repos["org/toy"].gated = True
    expect("org/toy", "org/toy: is gated", f"ask for access on {hub.url}/org/toy, then log in")


def test_no_such_revision_or_folder(hub: Hub, toy: Path) -> None:
    hub.add("org/toy", {"run-1/model.safetensors": b""}, tag="v1")
    expect("org/toy@v9", "org/toy@v9: has no such revision", "it has main, v1")
    expect("org/toy@v1:run-2", "there is no folder or file 'run-2'", "there are run-1")


def test_repositories_without_one_checkpoint(hub: Hub, toy: Path) -> None:
    hub.add("org/old", {"pytorch_model.bin": b"x", "config.json": b"{}"})
    expect("org/old", "holds no .safetensors file", "soupkit convert org/old@")
    hub.add("org/lora", {"adapter_config.json": b"{}", "adapter_model.safetensors": b""})
    expect("org/lora", "is a LoRA adapter", "merge_and_unload")
    hub.add("org/two", {"a.safetensors": b"", "b.safetensors": b""})
    expect("org/two", "holds 2 candidates", ":a.safetensors")
    hub.add("org/empty", {"model.safetensors": b""})
    expect("org/empty", "is 0 bytes long, too short", "download or save the file again")
    hub.add("org/damaged", {"model.safetensors": (toy / "model.safetensors").read_bytes()[:-100]})
    expect("org/damaged", "is truncated", "download or save the file again")
    hub.add("org/json", {"model.safetensors": (toy / "model.safetensors").read_bytes(), "config.json": b"{"})
    expect("org/json", "config.json: is not valid JSON", "")


@pytest.mark.parametrize(
    "body", [b"<html>", b"[]", b"{}", b'{"id": "x"}', b'{"id": "x", "sha": "../../x", "siblings": []}']
)
def test_an_endpoint_that_is_no_hub(
    hub: Hub, toy: Path, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub.server._Handler._info", lambda handler, *_: handler._answer(200, body))
    expect("org/toy", "does not answer as a Hub does", "check HF_ENDPOINT")


def test_an_endpoint_where_nothing_listens(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    expect(
        "org/toy",
        f"no such file or directory here, and http://127.0.0.1:{port} cannot be reached",
        "HF_HUB_OFFLINE=1",
    )


def test_names_that_lead_outside_are_never_used(hub: Hub, toy: Path, tmp_path: Path) -> None:
    weights = (toy / "model.safetensors").read_bytes()
    index = {"weight_map": {"a": "../../../evil.safetensors"}}
    hub.add("org/up", {"model.safetensors": weights, "../../../../evil.json": b"{}", "..\\evil.txt": b"x"})
    open_checkpoint("org/up").fetch()
    hub.add("org/index", {"model.safetensors.index.json": json.dumps(index).encode()})
    expect(
        "org/index",
        "which is not the name of a file beside the index",
        "only name files in its own directory",
    )
    assert not list(tmp_path.rglob("*evil*"))


def test_disk_and_permissions(hub: Hub, toy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def failing(number: int) -> Callable[..., str]:
        def download(*_arguments: Any, **_options: Any) -> str:
            raise OSError(number, os.strerror(number))

        return download

    opened = open_checkpoint("org/toy")
    for number, message in (
        (errno.ENOSPC, "the disk of the cache is full"),
        (errno.EACCES, "cannot be written"),
    ):
        monkeypatch.setattr("huggingface_hub.hf_hub_download", failing(number))
        with pytest.raises(OutputError, match=message) as caught:
            opened["layer.bias"]
        assert "HF_HOME" in str(caught.value.hint)


def test_a_small_disk_is_noticed_before_the_download(
    hub: Hub, toy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(
        "soupkit.stages.inputs.download.shutil.disk_usage", lambda _path: usage(1, 1, 18 << 20)
    )
    assert run_command_line(["pull", "org/toy"]) == 1
    assert "the weights to download take 0.00 GB, 0.02 GB are free" in capsys.readouterr().err
    assert not [request for request in hub.asked(BLOB) if request.range is None]


def test_incompatible_checkpoints_are_found_before_the_download(
    hub: Hub, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add("org/other", checkpoint(tmp_path / "other", 2, size=40_000))
    assert run_command_line(["merge", "uniform", "org/toy", "org/other", "--out", str(tmp_path / "out")]) == 1
    assert "has shape" in capsys.readouterr().err
    assert not [request for request in hub.asked(BLOB) if request.range is None]


def test_a_killed_pull_continues(hub: Hub, toy: Path, tmp_path: Path) -> None:
    """kill -9 of a fork in the second of two files: the first is not fetched again, nothing partial taken for
    whole."""
    other = checkpoint(tmp_path / "other", 2, size=50_000)
    hub.add("org/other", other)
    digest = next(d for d, c in hub.stored.items() if c == (other / "model.safetensors").read_bytes())
    slow = hub.fail(rf"GET /blobs/{digest}", "slow", pause=0.2)
    words = ["pull", "org/toy", "org/other", "--out", str(tmp_path / "out")]
    process = in_child(lambda: run_command_line(words), tmp_path / "told")
    wait_for(lambda: slow.seen >= 2)
    os.kill(process, signal.SIGKILL)
    assert wait(process) == -signal.SIGKILL, (tmp_path / "told").read_text()
    assert not (tmp_path / "out").exists()
    hub.faults.clear()
    whole = len([request for request in hub.asked(BLOB) if request.range is None])
    assert run_command_line(words) == 0
    assert len([request for request in hub.asked(BLOB) if request.range is None]) == whole + 1
    assert Manifest.read(tmp_path / "out").notes["members"] == ["toy", "other"]
    for name, source in (("toy", toy), ("other", other)):
        assert (tmp_path / "out" / name / "model.safetensors").read_bytes() == (
            source / "model.safetensors"
        ).read_bytes()


class Answer(Exception):
    """An error that carries an answer of the Hub."""

    def __init__(self, status: int, headers: dict[str, str]) -> None:
        self.response = type("Response", (), {"status_code": status, "headers": headers})


def test_how_long_is_waited() -> None:
    for number in range(4):
        assert 0.7 * 2**number < _wait(Interrupted(), number) < 1.3 * 2**number
    assert _wait(Answer(429, {"Retry-After": "17"}), 0) == 17
    assert _wait(Answer(429, {"Retry-After": "9999"}), 0) == LONGEST_WAIT
    assert _wait(Answer(429, {"Retry-After": "Wed, 21 Oct"}), 0) < 2


def test_only_what_may_pass_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("soupkit.checkpoint.hub.errors._wait", lambda _error, _number: 0.0)
    for error, tries in (
        (Answer(404, {}), 1),
        (Answer(503, {}), 6),
        (ConnectionError(), 6),
        (ValueError(), 1),
    ):
        count = []

        def call(error: Exception = error, count: list[int] = count) -> None:
            count.append(1)
            raise error

        with pytest.raises(type(error)):
            retried(call)
        assert len(count) == tries


def test_unexpected_errors_stay_as_they_are(hub: Hub, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug must not be dressed up as a problem of the network."""

    def bug(*_arguments: Any, **_options: Any) -> str:
        raise ZeroDivisionError

    opened = open_checkpoint("org/toy")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", bug)
    with pytest.raises(ZeroDivisionError):
        opened["layer.bias"]
    with pytest.raises(ReferenceError, match="is not a reference to the Hub"):
        open_checkpoint("hf://nonsense")
