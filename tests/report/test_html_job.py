"""`soupkit report` on what lies on disk: outputs, folders, plain checkpoints, JSON files, and what it
refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report.html_samples import RECORDS, Element, fge, greedy, learned, path_scores, read, sweep

from soupkit.cli.app import run_command_line
from soupkit.errors import CheckpointError, OutputError, ReferenceError, SoupkitError
from soupkit.events import silent
from soupkit.jobs.files.report import report
from soupkit.jobs.merge.uniform import merge_uniform
from soupkit.recipe.merge import MergeUniform
from soupkit.recipe.report import Report
from soupkit.world import World

PIXEL = bytes.fromhex("89504e470d0a1a0a")
WEIGHTS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}


def write(directory: Path, record: dict[str, Any]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "soupkit.json").write_text(json.dumps(record), encoding="utf-8")
    return directory


def page_of(path: Path, out: Path | None = None, *, overwrite: bool = False) -> Element:
    result = report(Report(path=path, out=out, overwrite=overwrite), World(), silent)
    data = Path(result["out"]).read_bytes()
    assert len(data) == result["bytes"]
    return read(data.decode())


def test_a_real_soup(save: Any, tmp_path: Path) -> None:
    refs = tuple(str(save(name, WEIGHTS)) for name in ("a", "b"))
    manifest = merge_uniform(MergeUniform(refs=refs, out=tmp_path / "soup"), World(), silent)
    root = page_of(tmp_path / "soup", tmp_path / "page.html")
    rows = root.table("Checkpoints that went in")
    assert [row[2:] for row in rows[1:]] == [["24 bytes", entry["content"]] for entry in manifest["inputs"]]
    assert root.table("2 of 2 checkpoints count")[1][:2] == ["a", "0.5"]
    assert ["parameters", "6"] in root.table("What the headers")
    assert manifest["outputs"]["content"] in root.text


def test_the_page_lies_beside_the_output_and_changes_nothing_in_it(tmp_path: Path) -> None:
    directory = write(tmp_path / "greedy", greedy())
    before = {path: path.read_bytes() for path in directory.iterdir()}
    page_of(directory)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["greedy", "greedy.html"]
    assert {path: path.read_bytes() for path in directory.iterdir()} == before


def test_plots_and_scores_of_a_path_are_found(tmp_path: Path) -> None:
    directory = write(tmp_path / "e", greedy())
    (directory / "plot.png").write_bytes(PIXEL)
    (directory / "draw.svg").write_bytes(b"<svg onload='alert(1)'/>")
    (directory / "notes.txt").write_bytes(b"no plot")
    (directory / "curve.json").write_text(json.dumps(path_scores()))
    root = page_of(directory)
    assert [each.attributes["alt"] for each in root.all("img")] == ["plot draw.svg", "plot plot.png"]
    assert "Error, % along the path" in [each.text for each in root.all("figcaption")]


def test_a_plain_checkpoint(save: Any) -> None:
    directory = save("plain", WEIGHTS)
    root = page_of(directory)
    assert "without a soupkit.json" in root.text
    assert ["tensors", "1"] in root.table("What the headers")
    assert ["tensors", "1"] in page_of(directory / "model.safetensors").table("What the headers")


def test_a_folder_of_outputs_in_the_order_in_which_they_were_made(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write(run / "z-first", sweep() | {"created": "2026-01-01T00:00:00+00:00"})
    write(run / "z-first" / "run-000", greedy())  # a member: its sweep tells of it
    write(run / "deeper" / "second", greedy() | {"created": "2026-01-02T00:00:00+00:00"})
    write(run / "a-third", fge() | {"created": "2026-01-03T00:00:00+00:00"})
    (run / ".hidden").mkdir()
    rows = page_of(run).table("Outputs")
    assert [row[0] for row in rows[1:]] == ["z-first", "deeper/second", "a-third"]


def test_an_output_with_outputs_in_it(tmp_path: Path) -> None:
    directory = write(tmp_path / "run", fge())
    write(directory / "snapshot-000", greedy())
    write(directory / "swa", greedy())
    root = page_of(directory)
    assert [row[0] for row in root.table("Outputs")[1:]] == ["swa"]
    assert "Training loss" in root.text


def test_what_json_printed(tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    file.write_text(json.dumps(greedy()))
    assert "2 of 4 checkpoints stayed" in page_of(file).text
    file.write_text(json.dumps({"steps": {name: record() for name, record in RECORDS.items()}}))
    assert [row[0] for row in page_of(file, overwrite=True).table("Outputs")[1:]] == list(RECORDS)
    file.write_text(json.dumps({"metrics": greedy()["metrics"], "baseline": "x/base", "data": None}))
    assert page_of(file, overwrite=True).table("Scores")[1][1] == "0.9857 ± 0.0040"


@pytest.mark.parametrize("text", ["", "[1]", "{}", "{", '{"a":' * 100_000, "\xff"])
def test_files_that_hold_no_record_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ReferenceError, match=r"x\.json"):
        page_of(file)


def test_a_record_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    directory = write(tmp_path / "deep", greedy() | {"recipe": {"refs": deep}})
    with pytest.raises(SoupkitError, match="deep"):
        page_of(directory)
    assert not (tmp_path / "deep.html").exists()


def test_nothing_to_tell_of_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReferenceError, match="no such file"):
        page_of(tmp_path / "gone")
    with pytest.raises(ReferenceError, match="holds no output"):
        page_of(tmp_path)


def test_damaged_weights_are_named(save: Any) -> None:
    directory = save("damaged", WEIGHTS)
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        page_of(directory)


def test_it_needs_no_torch(tmp_path: Path) -> None:
    directory = write(tmp_path / "learned", learned())
    code = "import sys; from soupkit.cli.app import run_command_line as run; code = run(sys.argv[1:])"
    check = f"{code}; print(code, sorted({{'torch', 'timm', 'matplotlib', 'scipy'}} & set(sys.modules)))"
    command = [sys.executable, "-c", check, "report", str(directory), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "0 []"


def test_only_pages_are_replaced_and_only_when_told(tmp_path: Path) -> None:
    directory = write(tmp_path / "greedy", greedy())
    page_of(directory)
    with pytest.raises(OutputError, match="exists already"):
        page_of(directory)
    page_of(directory, overwrite=True)
    mine = tmp_path / "mine.html"
    mine.write_text("<p>mine")
    with pytest.raises(OutputError, match="was not written by soupkit report"):
        page_of(directory, mine, overwrite=True)
    assert mine.read_text() == "<p>mine"
    with pytest.raises(OutputError, match="is not a file"):
        page_of(directory, tmp_path, overwrite=True)


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    directory = write(tmp_path / "greedy", greedy())
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        page_of(directory, tmp_path / "file" / "page.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "greedy"]


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = write(tmp_path / "greedy", greedy())
    assert run_command_line(["report", str(directory), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["out"] == str(tmp_path / "greedy.html")
