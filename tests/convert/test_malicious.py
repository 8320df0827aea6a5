"""A pickle is a program. None of what these would do must ever happen."""

import builtins
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from convert.pickled import Evil, foreign_class, plain_pickle, save, weights

from soupkit.cli.app import run_command_line
from soupkit.errors import CheckpointError
from soupkit.events import silent
from soupkit.jobs.files.convert import convert
from soupkit.recipe.hub import Convert
from soupkit.world import World

Attack = Callable[[Path], Evil]
ATTACKS: dict[str, Attack] = {
    "os.system": lambda mark: Evil(os.system, f"touch {mark}"),
    "posix.open": lambda mark: Evil(os.open, str(mark), os.O_CREAT),
    "eval": lambda mark: Evil(builtins.eval, f"open({str(mark)!r}, 'w')"),
    "exec": lambda mark: Evil(builtins.exec, f"open({str(mark)!r}, 'w')"),
    "open": lambda mark: Evil(builtins.open, str(mark), "w"),
    "popen": lambda mark: Evil(subprocess.Popen, ["touch", str(mark)]),
    "getattr": lambda mark: Evil(builtins.getattr, Path(mark), "touch"),
    "copy": lambda mark: Evil(shutil.copyfile, "/etc/hostname", str(mark)),
    "path": lambda mark: Evil(Path.touch, mark),
    "torch.save": lambda mark: Evil(torch.save, {}, str(mark)),
    "torch.hub": lambda mark: Evil(torch.hub.load, str(mark), "x"),
}
PLACES: dict[str, Callable[[Any], Any]] = {
    "whole": lambda evil: evil,
    "beside": lambda evil: {"state_dict": weights(legacy=True), "args": evil},
    "inside": lambda evil: {**weights(legacy=True), "more": evil},
    "as key": lambda evil: {"state_dict": weights(legacy=True), "args": {(evil, 1): 2}},
}


def run(path: Path, **options: Any) -> None:
    convert(Convert(refs=(str(path),), out=path.parent / "out", **options), World(threads=1), silent)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("attack", ATTACKS)
def test_never_runs(tmp_path: Path, attack: str, place: str, legacy: bool) -> None:
    mark = tmp_path / "it-ran"
    path = save(PLACES[place](ATTACKS[attack](mark)), tmp_path / "m.pt", legacy=legacy)
    with pytest.raises(CheckpointError, match=r"m.pt: (asks to run or build|is not a pickle of tensors)"):
        run(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.pt"]


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_pickle_would_have_run(tmp_path: Path, attack: str) -> None:
    """The attacks are real: the pickle module runs (at least) the first five."""
    mark = tmp_path / "it-ran"
    path = plain_pickle(ATTACKS[attack](mark), tmp_path / "m.pt")
    with pytest.raises(CheckpointError):
        run(path)
    assert not mark.exists()
    if attack in ("os.system", "posix.open", "eval", "exec", "open"):
        import gc
        import pickle
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = pickle.loads(path.read_bytes())
            if isinstance(made, int) and attack == "posix.open":
                os.close(made)
            del made
            gc.collect()
        assert mark.exists()


@pytest.mark.parametrize("attack", ["os.system", "posix.open"])
def test_ignore_cannot_let_the_system_in(tmp_path: Path, attack: str) -> None:
    mark = tmp_path / "it-ran"
    path = save({"state_dict": weights(), "args": ATTACKS[attack](mark)}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError):
        run(path, ignore=("posix.system", "os.system", "posix.open"))
    assert not mark.exists()


@pytest.mark.parametrize("ignore", [(), ("posix.system",)])
def test_no_hint_is_given_twice(tmp_path: Path, ignore: tuple[str, ...]) -> None:
    path = save(
        {"state_dict": weights(), "args": ATTACKS["os.system"](tmp_path / "it-ran")}, tmp_path / "m.pt"
    )
    with pytest.raises(CheckpointError) as caught:
        run(path, ignore=ignore)
    assert "leave it out with" not in str(caught.value.hint)
    assert "do not trust the file" in str(caught.value.hint)


def test_all_settings_are_named_at_once(tmp_path: Path) -> None:
    with foreign_class("theirs.Config") as config, foreign_class("theirs.Logger") as logger:
        path = save({"state_dict": weights(), "a": config(), "b": logger()}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError) as caught:
        run(path)
    assert "--ignore theirs.Config --ignore theirs.Logger" in str(caught.value.hint)
    run(path, ignore=("theirs.Config", "theirs.Logger"))


@pytest.mark.parametrize(
    ("attack", "name"), [("exec", "builtins.exec"), ("popen", "commands.Popen"), ("open", "io.open")]
)
def test_ignore_puts_nothing_in_its_place(tmp_path: Path, attack: str, name: str) -> None:
    """Even for a name that does harm, --ignore calls only the stand-in."""
    mark = tmp_path / "it-ran"
    path = save({"state_dict": weights(), "args": ATTACKS[attack](mark)}, tmp_path / "m.pt")
    run(path, ignore=(name, "_io.open"))
    assert not mark.exists()
    assert (tmp_path / "out/model.safetensors").exists()


def test_settings_of_an_unknown_class_can_be_ignored_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with foreign_class("their_project.config.TrainConfig") as kind:
        config = kind()
        config.lr = 0.1
        save({"state_dict": weights(), "config": config}, tmp_path / "m.pt")
    arguments = ["convert", str(tmp_path / "m.pt"), "--out", str(tmp_path / "out"), "--quiet"]
    assert run_command_line(arguments) == 1
    text = capsys.readouterr().err
    assert (
        "asks to run or build their_project.config.TrainConfig, which is not a tensor; nothing of it was run"
        in text
    )
    assert "--ignore their_project.config.TrainConfig" in text
    assert run_command_line([*arguments, "--ignore", "their_project.config.TrainConfig"]) == 0


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    path = save(torch.nn.Linear(2, 2), tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"torch.nn.modules.linear.Linear") as caught:
        run(path)
    assert "torch.save(model.state_dict()" in str(caught.value.hint)


@pytest.mark.parametrize("protocol", range(6))
def test_every_pickle_protocol(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "it-ran"
    path = plain_pickle({"a": Evil(os.system, f"touch {mark}")}, tmp_path / "m.pkl.pt", protocol=protocol)
    with pytest.raises(CheckpointError):
        run(path)
    assert not mark.exists()


def test_an_attack_inside_a_zip_that_torch_did_not_write(tmp_path: Path) -> None:
    mark = tmp_path / "it-ran"
    body = plain_pickle(Evil(os.system, f"touch {mark}"), tmp_path / "body").read_bytes()
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", body)
        archive.writestr("m/version", "3\n")
    with pytest.raises(CheckpointError):
        run(tmp_path / "m.pt")
    assert not mark.exists()


def test_the_environment_cannot_switch_it_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "it-ran"
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = save(Evil(os.system, f"touch {mark}"), tmp_path / "m.pt")
    with pytest.raises(CheckpointError):
        run(path)
    assert not mark.exists()
