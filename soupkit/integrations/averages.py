"""`Averages`: named running averages of one model, for any training loop: stepped, shown, saved and resumed.

averages = Averages(model, {"ema": Ema.of_half_life(2000), "swa": Swa(start=8000, every=500)})
...                                      # after every optimizer step that was taken:
averages.update()
with averages.swapped("ema"):            # the model holds that average, batch-norm statistics included
    evaluate(model)
averages.save(folder)                    # all that an exact resume needs, in one file
averages.write(folder / "ema", "ema")    # the averaged weights, as a checkpoint directory
averages.restore(folder)                 # go on: the same bits as without the interruption
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypedDict, Unpack

import torch
from torch import nn

from soupkit.checkpoint.tensors import write_tensors
from soupkit.errors import TaskError
from soupkit.jsons import Json, JsonView
from soupkit.merge.running import Ema, Rule
from soupkit.task.weights import arrays_of_state
from soupkit.train.averaging import Averaging
from soupkit.train.live import Buffers
from soupkit.whole import whole_file

STATE = "soupkit-averages.pt"
"""The file that a resume goes on from."""
DEFAULT: Mapping[str, Rule] = {"ema": Ema(0.999)}


class Options(TypedDict, total=False):
    """Those of soupkit.train.averaging.Averaging that serve every loop."""

    buffers: Buffers
    ignore: Sequence[str]
    device: torch.device | str | None


class Averages:
    """Running averages of a model by rules of soupkit.merge.running: Ema, Swa, Bema, PowerEma, Planned (a
    decay over a window of steps). The options are those of soupkit.train.averaging.Averaging.

    Memory: a copy of the weights for each average that has begun. Raises TaskError for no rule, and for names
    that cannot be folders.
    """

    def __init__(
        self,
        model: nn.Module,
        rules: Mapping[str, Rule] = DEFAULT,
        **options: Unpack[Options],
    ) -> None:
        if not rules or any(not name or {"/", "\\", "."} & set(name) for name in rules):
            raise TaskError(f"averages are called {', '.join(rules) or 'nothing'}: expected names of folders")
        self._each = {name: Averaging(model, rule, **options) for name, rule in rules.items()}

    def __getitem__(self, name: str) -> Averaging:
        """One of them. Raises TaskError for a name that there is not."""
        if name not in self._each:
            raise TaskError(f"there is no average {name!r}", hint=f"there are: {', '.join(self._each)}")
        return self._each[name]

    @property
    def ready(self) -> list[str]:
        """Those that have begun."""
        return [name for name, each in self._each.items() if each.is_ready]

    def update(self) -> None:
        """Take note of one optimizer step."""
        for each in self._each.values():
            each.update()

    def swapped(self, name: str) -> AbstractContextManager[None]:
        """Inside, the model holds the average of this name (its own weights until that begins), and cannot be
        saved; afterwards its own again, bit for bit."""
        return self[name].swapped()

    def averaged(self, name: str) -> Json:
        """A copy of what the averaged model's state_dict() is."""
        return self[name].averaged_state()

    def state_dict(self) -> Json:
        """Averages and counters, which `torch.load(weights_only=True)` reads; references, not copies."""
        return {name: each.state() for name, each in self._each.items()}

    def load_state_dict(self, state: JsonView) -> None:
        """Go on from a state. Raises TaskError for other averages than these."""
        if list(state) != list(self._each):
            raise TaskError(
                f"the saved averages are {', '.join(state)}, expected {', '.join(self._each)}",
                hint="resume with the rules that they were made by",
            )
        for name, each in self._each.items():
            each.load(state[name])

    def save(self, directory: Path) -> None:
        """Write the state into a folder of a checkpoint: whole or not at all."""
        with whole_file(directory / STATE, sync=True) as temporary:
            torch.save(self.state_dict(), temporary)

    def restore(self, directory: Path) -> None:
        """Go on from what `save` wrote. Raises TaskError where it is not there."""
        path = directory / STATE
        if not path.is_file():
            raise TaskError(
                f"{path}: is not there, so the averages cannot go on",
                hint="name the folder of the checkpoint that training resumes from, or begin anew",
            )
        self.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    def write(self, directory: Path, name: str) -> None:
        """Write an averaged model as a checkpoint directory that soupkit reads; tied tensors stand there
        once."""
        directory.mkdir(parents=True, exist_ok=True)
        tensors, ties = arrays_of_state(self.averaged(name))
        write_tensors(directory, tensors, metadata={"soupkit.weights": name, **ties})
