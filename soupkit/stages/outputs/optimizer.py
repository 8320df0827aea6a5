"""Optimizer states beside checkpoints, averaged as the weights are, so that training can go on from their
average.

Read without running anything of a pickle. What is no tensor of numbers (groups, schedules, counters, random
states) is the last checkpoint's.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from soupkit.checkpoint.source import Source, folder_of
from soupkit.errors import CheckpointError, CompatibilityError
from soupkit.jsons import Json, JsonView
from soupkit.merge.mixture import Mixture
from soupkit.merge.trajectory import Vector

State = Mapping[object, JsonView]
"""{parameter: {name: value}}."""
STATES = ("optimizer.pt", "optimizer.bin")
"""As the Trainer of transformers and accelerate call them."""
BESIDE = (
    *("trainer_state.json", "training_args.bin", "scheduler.pt", "scheduler.bin", "scaler.pt", "sampler.bin"),
    *("rng_state*.pth", "random_states_*.pkl", "custom_checkpoint_*.pkl"),
)
"""Patterns of what else a resumed training reads."""
SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")
"""What optimizers take roots of."""


def check_states(checkpoints: Sequence[Source]) -> None:
    """Raise CheckpointError for a checkpoint without an optimizer state; CompatibilityError for two kinds."""
    names = {_state_of(checkpoint).name for checkpoint in checkpoints}
    if len(names) > 1:
        raise CompatibilityError(f"optimizer states are called {' and '.join(sorted(names))}")


def _state_of(checkpoint: Source) -> Path:
    folder = folder_of(checkpoint)
    for name in STATES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(
        f"{checkpoint.reference}: has no optimizer state ({' or '.join(STATES)})",
        hint="leave --optimizer out; the weights need none",
    )


def write_state(directory: Path, checkpoints: Sequence[Source], mixture: Mixture) -> list[str]:
    """Write the averaged optimizer state, and copies of the last used checkpoint's other state; their names.

    Sums in float64, an entry at a time. Memory: one state, and the open files' pages. Raises
    CompatibilityError for states of other shapes, CheckpointError for squares that come out negative.
    """
    import torch

    rows = mixture.used()
    paths = [_state_of(checkpoints[row]) for row in rows]
    read = [_read(path) for path in paths]
    averaged = _averaged([state for _, state in read], mixture.matrix[rows, 0], paths)
    torch.save({**read[-1][0], "state": averaged}, directory / paths[-1].name)
    written, folder = [paths[-1].name], paths[-1].parent
    for pattern in BESIDE:
        for path in sorted(folder.glob(pattern)):
            shutil.copyfile(path, directory / path.name)
            written.append(path.name)
    return written


def _read(path: Path) -> tuple[Json, State]:
    """What lies in a file, and the states of the parameters in it. Raises CheckpointError."""
    from soupkit.checkpoint.formats.pickles import load_pickle

    whole = load_pickle(path)
    state = whole.get("state") if isinstance(whole, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(each, Mapping) for each in state.values()):
        raise CheckpointError(
            f"{path}: is no state of a torch optimizer", hint="leave --optimizer out; the weights need none"
        )
    return dict(whole), state


def _averaged(states: Sequence[State], values: Vector, paths: Sequence[Path]) -> State:
    """{parameter: {name: value}}: floating tensors averaged, all else of the last."""
    last = states[-1]
    for state, path in zip(states, paths, strict=True):
        if list(state) != list(last):
            raise CompatibilityError(f"{path}: is the state of another optimizer than {paths[-1]}")
    result: dict[object, Json] = {}
    for parameter, entries in last.items():
        result[parameter] = {}
        for name in entries:
            found = [state[parameter].get(name) for state in states]
            result[parameter][name] = _mean(found, values, f"{paths[-1]}: state of {parameter}: {name}")
    return result


def _mean(found: Sequence[object], values: Vector, where: str) -> object:
    import torch

    last = found[-1]
    if not isinstance(last, torch.Tensor) or not last.is_floating_point() or where.endswith(": step"):
        return last
    tensors = [each for each in found if isinstance(each, torch.Tensor) and each.shape == last.shape]
    if len(tensors) < len(found):
        raise CompatibilityError(f"{where} has another shape elsewhere")
    total = torch.zeros(last.shape, dtype=torch.float64)
    for each, c in zip(tensors, values.tolist(), strict=True):
        total.add_(each.double(), alpha=c)
    if where.rpartition(" ")[2] in SQUARES and bool((total < 0).any()):
        raise CheckpointError(
            f"{where} comes out negative, and optimizers take its root",
            hint="choose a shape whose coefficients are not negative, or leave --optimizer out",
        )
    return total.to(last.dtype)
