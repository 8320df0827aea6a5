"""Ranges, sizes, recipes and manifests that are hostile: a message, before anything large is made."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from soupkit.checkpoint.hub.hub import expand_braces
from soupkit.checkpoint.output import OutputDirectory, check_output, remove_litter
from soupkit.checkpoint.reference import open_references, spelled_out
from soupkit.checkpoint.tensors import parse_bytes
from soupkit.cli.app import run_command_line
from soupkit.errors import OutputError, RecipeError, ReferenceError, SoupkitError
from soupkit.recipe.steps import load_yaml, parse_steps
from soupkit.whole import whole_file

DEAD = 2**22 + 1  # above the largest number of a process


@pytest.mark.parametrize(
    "ref",
    ["a{1..99999999}", "epoch-{0001..010{0001..0100}}", "a{1..9000}{1..9000}",
    "a{0..9}{0..9}{0..9}{0..9}{0..9}",
     "o/n@{-1..9998}{-1..9998}", "o/n@{0..9999}{a,b}", "o/n@{1..999999999999999999}"],
)  # fmt: skip
def test_ranges_are_bounded_together(ref: str) -> None:
    with pytest.raises(ReferenceError):
        spelled_out(ref) if ref[0] != "o" else expand_braces(ref)
    with pytest.raises(ReferenceError):
        open_references([ref])


def test_ranges_within_the_bound() -> None:
    assert spelled_out("a{08..10}b{1..2}") == [f"a{n}b{m}" for n in ("08", "09", "10") for m in (1, 2)]
    assert len(expand_braces("o/n@{1..100}{1..100}")) == 10_000


@pytest.mark.parametrize("text", ["9" * 400 + "GB", "9" * 5000, "1e999", "1." + "0" * 400 + "GB", "٣GB"])
def test_sizes(text: str) -> None:
    with pytest.raises(RecipeError, match="is not a size"):
        parse_bytes(text)


BOMB = ["a0: xxxxxxxxxx", *(f'a{n + 1}: "{f"${{a{n}}}" * 10}"' for n in range(12))]
LISTS = ["a0: [x, x]", *("a%d: [%s]" % (n + 1, ", ".join(["'${a%d}'" % n] * 10)) for n in range(12))]  # noqa: UP031


@pytest.mark.parametrize("lines", [BOMB, LISTS], ids=["texts", "lists"])
def test_variables_that_grow_are_refused(lines: list[str]) -> None:
    text = "variables:\n" + "".join(f"  {line}\n" for line in lines) + "command: inspect\nrefs: [a]\n"
    with pytest.raises(RecipeError, match="too large once its variables are replaced"):
        parse_steps(text, where="bomb.yaml")


def test_integers_of_thousands_of_digits() -> None:
    with pytest.raises(RecipeError, match="is not valid YAML"):
        load_yaml("a: " + "9" * 5000, where="x")
    with pytest.raises(SoupkitError):
        parse_steps("command: inspect\nrefs: [a]\n", ["refs=" + "9" * 5000], where="x")


@pytest.fixture
def soup(save: Callable[..., Path], tmp_path: Path) -> Path:
    made = [str(save(name, {"w": np.full(3, k, np.float32)})) for k, name in enumerate("ab")]
    assert run_command_line(["merge", "uniform", *made, "--out", str(tmp_path / "soup"), "--quiet"]) == 0
    return tmp_path / "soup"


EDITS: dict[str, tuple[str, Any]] = {
    "null metrics": ("metrics", {"held_out": None}),
    "a metric without a value": ("metrics", {"x": {"top1": {"value": None}}}),
    "a value of text": ("metrics", {"x": {"top1": {"value": "half"}}}),
    "a step that is none": ("trace", [None]),
    "blocks that are a number": ("mixture.blocks", -1),
    "a column that is not there": ("mixture.blocks", {"w": 3}),
    "a ragged matrix": ("mixture.coefficients", [[1], [1, 2]]),
    "another number of rows": ("mixture.coefficients", [[1]]),
    "a divisor of zero": ("mixture.divisor", 0),
    "a permutation of numbers": ("inputs.0.permutation", {"a": 1}),
    "another command": ("command", "demo"),
    "pull": ("command", "pull"),
    "no command of ours": ("command", "rm"),
    "inputs without content": ("inputs.0.content", 3),
}


@pytest.mark.parametrize("name", EDITS)
def test_edited_manifests(name: str, soup: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, value = EDITS[name]
    record = json.loads((soup / "soupkit.json").read_text())
    node, *keys = record, *place.split(".")
    for key in keys[:-1]:
        node = node[int(key) if key.isdigit() else key]
    node[keys[-1]] = value
    (soup / "soupkit.json").write_text(json.dumps(record))
    for words in (
        ["reproduce", str(soup), "--out", str(tmp_path / "again")],
        ["verify", str(soup), "--inputs"],
    ):
        assert run_command_line(words) in (0, 1, 2)
    assert run_command_line(["reproduce", str(soup), "--out", str(tmp_path / "third")]) != 0
    assert not (tmp_path / "again").exists()
    capsys.readouterr()


def test_verify_tells_of_files_that_nobody_recorded(soup: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["verify", str(soup), "--strict"]) == 0
    (soup / "evil.py").write_text("")
    assert run_command_line(["verify", str(soup)]) == 0
    assert "evil.py" in capsys.readouterr().err
    assert run_command_line(["verify", str(soup), "--strict"]) == 1
    (soup / "evil.py").rename(soup.parent / "evil.py")
    shutil.copytree(soup, soup / "inside")  # an output of its own, as an average beside trained weights
    assert run_command_line(["verify", str(soup), "--strict"]) == 0
    (soup / "code").mkdir()
    (soup.parent / "evil.py").rename(soup / "code/evil.py")
    assert run_command_line(["verify", str(soup), "--strict"]) == 1


@pytest.mark.parametrize("name", ["a**b", "a*", "x[1]", "what?", "{a}"])
def test_names_with_marks_of_patterns(name: str, tmp_path: Path) -> None:
    litter = tmp_path / f".{name}.soupkit-1-dead"
    litter.mkdir()
    with OutputDirectory(tmp_path / name) as directory:
        (directory / "a").touch()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["x" * 300, "x" * 250, "/".join(["y" * 200] * 40), "a\0b", "\ud800"])
def test_names_that_cannot_be(name: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        check_output(tmp_path / name)


def test_links(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OutputError, match="cannot be"):
        check_output(tmp_path / "loop")
    for link, target in (("empty", "big"), ("dangling", "big/none/yet")):
        (tmp_path / link).symlink_to(tmp_path / target)
        for content in ("old", "new"):
            with OutputDirectory(tmp_path / link, overwrite=True) as directory:
                (directory / "soupkit.json").write_text(content)
            assert (tmp_path / target / "soupkit.json").read_text() == content
            assert (tmp_path / link).is_symlink()
        if link == "empty":
            (tmp_path / "big/soupkit.json").unlink()


def test_what_kills_leave_is_removed_by_the_next_run(tmp_path: Path) -> None:
    left = [".page.soupkit-part-{}.html", "..o.soupkit-part-{}.soupkit-journal"]
    for name in left:
        (tmp_path / name.format(DEAD)).touch()
    other = tmp_path / f".other.soupkit-part-{DEAD}.html"
    other.touch()
    remove_litter(tmp_path / "o")
    with whole_file(tmp_path / "page.html") as temporary:
        temporary.write_text("")
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "page.html"]
