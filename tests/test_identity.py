"""Identities name content: whatever changes what a text means changes them, and nothing else does."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from soupkit import identity
from soupkit.command_identity import command_identity
from soupkit.given import given_by
from soupkit.identity import data_identity, file_identity, tree_identity

Change = Callable[[Path], object]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def in_place(path: Path, text: str) -> None:
    """Other content of the same length, with the times of the old."""
    status = path.stat()
    assert len(text) == status.st_size
    path.write_text(text)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("read", [True, False], ids=["by bytes", "by times"])
def test_other_content_in_place_is_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: bool
) -> None:
    monkeypatch.setattr(identity, "MOST_OF_A_FILE", 100 if read else 0)
    write(tmp_path / "a/0.png", "pixels")
    before = tree_identity(tmp_path)
    assert tree_identity(tmp_path) == before
    while not read and tree_identity(tmp_path) == before:  # a file system's clock may tick slowly
        in_place(tmp_path / "a/0.png", "PIXELS")
    in_place(tmp_path / "a/0.png", "PIXELS")
    assert tree_identity(tmp_path) != before


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "a/0.png").rename(root / "b/1.png"),
        lambda root: (root / "a/0.png").unlink(),
        lambda root: write(root / "a/1.png", "more"),
        lambda root: write(root.parent / "elsewhere/x.png", "changed"),
    ],
    ids=["another class", "removed", "added", "behind a link"],
)
def test_a_folder_is_its_files(tmp_path: Path, change: Change) -> None:
    root = tmp_path / "data"
    for name in ("a/0.png", "b/0.png"):
        write(root / name, name)
    write(tmp_path / "elsewhere/x.png", "x")
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    write(root / "out/soupkit.json", "{}")
    before = data_identity(str(root))
    write(root / "out/README.md", "an output of soupkit is no data")
    assert data_identity(str(root)) == before
    change(root)
    assert data_identity(str(root)) != before


def test_a_set_of_a_factory_is_its_files(tmp_path: Path) -> None:
    write(tmp_path / "MNIST/raw/train", "one")
    before = data_identity("torch/mnist", tmp_path)
    write(tmp_path / "other/file", "not of MNIST")
    assert data_identity("torch/mnist", tmp_path) == before
    write(tmp_path / "MNIST/raw/train", "two")
    assert data_identity("torch/mnist", tmp_path) != before
    assert data_identity("wds/x", tmp_path) != data_identity("wds/x", tmp_path / "MNIST")


def test_a_set_of_the_hub_is_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    write(tmp_path / "datasets--org--set/refs/main", "commit 1")
    before = data_identity("hfds/org/set")
    write(tmp_path / "datasets--org--set/refs/main", "commit 2")
    assert data_identity("hfds/org/set") != before


def test_what_cannot_be_read_says_so(tmp_path: Path) -> None:
    assert file_identity(tmp_path / "nothing")[0] == "unreadable"


def test_what_a_recipe_names(tmp_path: Path) -> None:
    config = write(tmp_path / "merge.yaml", "a: 1")
    recipe = {
        "config": str(config),
        "out": str(config),
        "refs": [str(tmp_path)],
        "data": None,
        "text": "a\nb",
        "n": 3,
    }
    before = given_by(recipe)
    assert set(before) == {"config"}
    write(config, "a: 2")
    assert given_by(recipe) != before


PYTHON = sys.executable
SCRIPT = "import sys, helper\nfrom lib.deep import f\nopen('cfg/task.yaml')\nopen('calls.log', 'a')\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("TASK", "UNSPOKEN", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    write(tmp_path / "score.py", SCRIPT)
    write(tmp_path / "helper.py", "import os\nos.environ['TASK']")
    write(tmp_path / "lib/deep.py", "def f(): pass")
    write(tmp_path / "cfg/task.yaml", "task: 1")
    write(tmp_path / "run.sh", f"#!/bin/sh\n{PYTHON} score.py $1 > calls.log\n").chmod(0o755)
    write(tmp_path / "bin/judge", "#!/bin/sh\nexec run.sh\n").chmod(0o755)
    write(tmp_path / "data/x.csv", "1")
    write(tmp_path / "more/extra.py", "")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "changed"),
    [
        (f"{PYTHON} score.py {{checkpoint}}", "score.py"),
        (f"{PYTHON} ./score.py {{checkpoint}}", "helper.py"),
        (f"env A=1 nice {PYTHON} score.py {{checkpoint}}", "lib/deep.py"),
        (f"{PYTHON} score.py {{checkpoint}}", "cfg/task.yaml"),
        (f"{PYTHON} -c 'import helper' {{checkpoint}}", "helper.py"),
        (f"{PYTHON} -m lib.deep {{checkpoint}}", "lib/deep.py"),
        (f"{PYTHON} -m score {{checkpoint}}", "helper.py"),
        ("./run.sh {checkpoint}", "score.py"),
        ("sh run.sh {checkpoint}", "helper.py"),
        ("sh -c 'cd . && ./run.sh {checkpoint}'", "run.sh"),
        ("judge {checkpoint}", "bin/judge"),
        (f"{PYTHON} score.py --config cfg/task.yaml {{checkpoint}}", "cfg/task.yaml"),
        ("judge --data=data/x.csv {checkpoint}", "data/x.csv"),
        ("judge --data data {checkpoint}", "data/x.csv"),
        ("judge --code=. {checkpoint}", "helper.py"),
    ],
)
def test_a_scorer_is_all_that_it_names(project: Path, command: str, changed: str) -> None:
    before = command_identity(command)
    write(project / "calls.log", "what the scorer writes is not what it is")
    assert command_identity(command) == before
    text = (project / changed).read_text()
    in_place(project / changed, text[:-1] + "#")
    assert command_identity(command) != before
    in_place(project / changed, text)
    assert command_identity(command) == before


def test_a_scorer_is_where_and_with_what_it_runs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = f"{PYTHON} {project / 'score.py'} {{checkpoint}}"
    seen = {command_identity(command)}
    monkeypatch.setenv("UNSPOKEN", "1")
    assert command_identity(command) in seen
    for name, value in (("TASK", "a"), ("TASK", "b"), ("CUDA_VISIBLE_DEVICES", "7"), ("PYTHONPATH", "more")):
        monkeypatch.setenv(name, value)
        seen.add(command_identity(command))
    write(project / "more/extra.py", "x = 1")
    seen.add(command_identity(command))
    monkeypatch.chdir(project / "more")
    seen.add(command_identity(command))
    assert len(seen) == 7


def test_words_that_name_nothing_are_no_error(project: Path) -> None:
    assert command_identity("judge 'open") != command_identity(
        f"judge {'x' * 5000} ~nobody/x a\0b {{checkpoint}}"
    )


@pytest.mark.parametrize(
    ("command", "link", "first", "second"),
    [
        ("python now.py {checkpoint}", "now.py", "score.py", "other.py"),
        ("./now {checkpoint}", "now", "score.py", "other.py"),
        ("python user.py {checkpoint}", "metric.py", "metric_v1.py", "metric_v2.py"),
        ("python both.py {checkpoint}", "lib_now", "lib_v1", "lib_v2"),
        ("sh run.sh {checkpoint}", "task.yaml", "task_v1.yaml", "task_v2.yaml"),
        ("python score.py {checkpoint} data", "data", "data_v1", "data_v2"),
    ],
)
def test_where_a_link_leads_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, link: str, first: str, second: str
) -> None:
    """Both targets may have been taken all along, as code that could be imported."""
    monkeypatch.chdir(tmp_path)
    for name in ("score.py", "other.py", "metric_v1.py", "metric_v2.py", "lib_v1/m.py", "lib_v2/m.py"):
        write(tmp_path / name, f"# {name}")
    write(tmp_path / "user.py", "import metric")
    write(tmp_path / "both.py", "import lib_now, lib_v1, lib_v2")
    write(tmp_path / "run.sh", "cat task.yaml task_v1.yaml task_v2.yaml")
    for name in ("task_v1.yaml", "task_v2.yaml", "data_v1/x", "data_v2/x"):
        write(tmp_path / name, name)
    (tmp_path / link).symlink_to(first)
    before = command_identity(command)
    assert command_identity(command) == before
    (tmp_path / link).unlink()
    (tmp_path / link).symlink_to(second)
    assert command_identity(command) != before
