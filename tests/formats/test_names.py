"""Names of tensors, of safetensors too: stripped, renamed, left out, and averages inside a state dict
chosen."""

from pathlib import Path

import numpy as np
import pytest
from conftest import Save

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.formats.selection import Selection
from soupkit.cli.app import run_command_line
from soupkit.errors import CheckpointError, RecipeError
from soupkit.recipe.hub import Convert

ONE, TWO = np.ones(2, np.float32), np.full(2, 2, np.float32)


@pytest.mark.parametrize(
    ("names", "options", "wanted"),
    [
        (["model.a.w", "model.b.w"], ["--strip", "model."], ["a.w", "b.w"]),
        (["enc.0.w", "enc.1.w"], ["--rename", r"s/^enc\.(\d)\./b.\1.c./"], ["b.0.c.w", "b.1.c.w"]),
        (["a.a.a", "b.a.a"], ["--rename", "s|a|x|g"], ["x.x.x", "b.x.x"]),
        (["a.a.a", "b.a.a"], ["--rename", "s|a|x|"], ["x.a.a", "b.x.a"]),
        (["a.w", "head.w"], ["--drop", "head."], ["a.w"]),
        (["a._orig_mod.w", "b.w", "c.w"], ["--drop", "c."], ["a.w", "b.w"]),
    ],
)  # fmt: skip
def test_names_change(
    save: Save, tmp_path: Path, names: list[str], options: list[str], wanted: list[str]
) -> None:
    source = save("in", {name: np.full(2, number, np.float32) for number, name in enumerate(names)})
    out = tmp_path / "out"
    assert run_command_line(["convert", str(source), *options, "--out", str(out), "--quiet"]) == 0
    written = Checkpoint(out)
    assert {name: int(values[0]) for name, values in written.items()} == {
        name: number for number, name in enumerate(wanted)
    }
    assert run_command_line(["verify", str(out), "--inputs", "--quiet"]) == 0


@pytest.mark.parametrize(("prefer", "value"), [("ema", 2), ("raw", 1)])
def test_an_average_inside_is_chosen(save: Save, prefer: str, value: int) -> None:
    source = save("in", {"net.w": ONE, "model_ema.netw": TWO, "model_ema.decay": np.float32(0.9)})
    chosen = Checkpoint(source, selection=Selection(prefer=prefer))  # type: ignore[arg-type]
    assert list(chosen) == ["net.w"]
    assert chosen["net.w"][0] == value


@pytest.mark.parametrize("text", ["x/a/b/", "s/a/b", "s/(/b/", "s/a/b/q", r"s/a/\3/", "s"])
def test_what_sed_would_not_take_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="rename"):
        Convert(refs=("x",), out=Path("o"), rename=(text,))


def test_what_fits_nothing_is_told(save: Save) -> None:
    source = save("in", {"a.w": ONE, "b.w": TWO})
    for selection in (Selection(strip=("x.",)), Selection(rename=("s/x/y/",)), Selection(drop=("x",))):
        with pytest.raises(CheckpointError, match="no tensor's name"):
            Checkpoint(source, selection=selection)
    with pytest.raises(CheckpointError, match="as another is"):
        Checkpoint(source, selection=Selection(rename=("s/a|b/c/",)))
