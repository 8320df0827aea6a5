"""Where a command runs to be killed, and what it leaves there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from faults.kill_commands import KillCommand
from faults.kill_processes import die_at, in_child, orphans, wait

from soupkit.cli.app import run_command_line

Disturb = Callable[[], Callable[[], int]]
"""Has something happen to this process; returns how many calls it counted since."""
UNDISTURBED: Disturb = partial(die_at, 0, after=False)
NOT_COMPARED = ("created", "notes", "recipe", "versions", "trace")
"""Of a manifest: what may differ from run to run, or tells how often a run was interrupted."""


@dataclass
class Reference:
    """What a command leaves that nobody disturbs: files that two runs make alike, all names, calls, and
    seconds."""

    same: dict[str, str]
    names: set[str]
    num_calls: int
    seconds: float
    old: dict[str, str]

    def unlike(self, found: dict[str, str], volatile: Sequence[str] = ()) -> list[str]:
        """The files found that are not the reference's; of a name in `volatile`, any will do."""
        same = {name: value for name, value in self.same.items() if name not in volatile}
        return [name for name, value in same.items() if found.get(name, value) != value]

    def __str__(self) -> str:
        unlike = (
            f", not compared: {sorted(self.names - self.same.keys())}"
            if self.names - self.same.keys()
            else ""
        )
        return f"{self.seconds:.2f} s, {self.num_calls} changes of the disk{unlike}"


def digest(path: Path) -> str:
    """Of a manifest, what does not change from run to run; of any other file, every byte."""
    data = path.read_bytes()
    if path.name == "soupkit.json":
        values = json.loads(data)
        kept = {key: value for key, value in values.items() if key not in NOT_COMPARED}
        data = json.dumps(kept, sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()


def files(out: Path) -> dict[str, str]:
    """The digests of an output's files, by name; hidden ones are none of it."""
    if out.is_file():
        return {"": digest(out)}
    names = (path.relative_to(out) for path in sorted(out.rglob("*")) if path.is_file())
    return {
        str(name): digest(out / name)
        for name in names
        if not any(part.startswith(".") for part in name.parts)
    }


def hidden(folder: Path) -> set[str]:
    """What lies in a folder at any depth that is hidden, or was put aside."""
    names = (path.relative_to(folder) for path in folder.rglob("*"))
    return {str(name) for name in names if name.name.startswith(".") or ".replaced-" in name.name}


class Place:
    """Where one command runs: its output, its cache and its temporary folder, as they are before each
    trial."""

    def __init__(self, command: KillCommand, inputs: Path, folder: Path) -> None:
        self.command, self.folder, self.log = command, folder, folder.with_suffix(".log")
        self.saved = folder.with_suffix(".before")
        self.out = folder / command.out
        self.arguments = command.line(inputs, folder)
        self.saved.mkdir(parents=True)
        self.reset()
        if command.before:
            assert self.run(command.before_line(inputs, folder)) == 0, self.log.read_text()
            shutil.rmtree(folder / "cache", ignore_errors=True)
            shutil.copytree(folder, self.saved, dirs_exist_ok=True)

    def reset(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.saved, self.folder)
        (self.folder / "tmp").mkdir(exist_ok=True)
        self.log.write_text("")

    def start(self, arguments: Sequence[str], disturb: Disturb = UNDISTURBED) -> int:
        """The process that runs a command line; `disturb` is called in it first, and returns its counter of
        calls."""

        def work() -> int:
            os.environ |= {"SOUPKIT_CACHE": str(self.folder / "cache"), "TMPDIR": str(self.folder / "tmp")}
            tempfile.tempdir = None
            os.chdir(self.folder)
            counted = disturb()
            code = run_command_line(arguments)
            os.write(1, f"\ncalls {counted()}\n".encode())
            return code

        return in_child(work, self.log)

    def last_words(self) -> str:
        """The end of what was printed since the last reset."""
        return self.log.read_text(errors="replace")[-1500:]

    def run(self, arguments: Sequence[str]) -> int | None:
        return wait(self.start(arguments))

    def reference(self) -> Reference:
        """Two undisturbed runs."""
        found, seconds = [], []
        old = files(self.out) if self.out.exists() else {}
        for _ in range(2):
            self.reset()
            begin = time.monotonic()
            code = self.run(self.arguments)
            seconds.append(time.monotonic() - begin)
            if code != 0 or orphans():
                raise SystemExit(f"{' '.join(self.arguments)}: exit code {code}\n{self.log.read_text()}")
            num_calls = int(self.log.read_text().split()[-1])
            found.append(files(self.out))
        assert self.is_verified(), self.log.read_text()
        same = {name: found[0][name] for name in found[0] if found[0][name] == found[1].get(name)}
        assert found[0].keys() == found[1].keys(), "the names of the files differ from run to run"
        weights = [name for name in found[0] if name.endswith(".safetensors") and name not in same]
        assert not weights, f"{weights}: the weights differ from run to run"
        return Reference(same, set(found[0]), num_calls, min(seconds), old)

    def is_verified(self) -> bool:
        """Whether every manifest of weights in the output holds."""
        manifests = [self.out / name for name in files(self.out) if Path(name).name == "soupkit.json"]
        recorded = [
            path.parent for path in manifests if json.loads(path.read_text())["outputs"].get("content")
        ]

        def verify() -> int:
            return max(
                run_command_line(["verify", str(path), "--quiet", "--threads", "1"]) for path in recorded
            )

        return not recorded or wait(in_child(verify, self.log)) == 0
