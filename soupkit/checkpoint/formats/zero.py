"""DeepSpeed ZeRO 1 to 3 (Rajbhandari et al. 2020, arXiv 1910.02054): float32 weights out of the partitions of
all ranks.

As DeepSpeed's own zero_to_fp32 does: every rank's `…_optim_states.pt` holds flat float32 vectors, and
`…_model_states.pt` says which parameters, in which order and shape, they are. Stages 1 and 2: the vectors of
a group, rank after rank, are its parameters one after the other. Stage 3: every parameter is cut into as many
equal parts as there are ranks, the last one padded, and a rank's vectors are its parts one after the other.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from soupkit.checkpoint.dtypes import FLOATING
from soupkit.checkpoint.formats.inert import Inert, as_sizes
from soupkit.checkpoint.formats.stored import Stored, in_float32, read_archive
from soupkit.checkpoint.spread import Extent, Piece, Place, Sizes, Spread
from soupkit.errors import CheckpointError, brief
from soupkit.jsons import Json

OPTIMIZER, MODEL = "_optim_states.pt", "_model_states.pt"
_PART = re.compile(r"zero_pp_rank_(\d+)_mp_rank_(\d+)")
_MODEL_PART = re.compile(r"(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)_model_states\.pt")
_GROUPS = {1: "single_partition_of_fp32_groups", 2: "single_partition_of_fp32_groups", 3: "fp32_flat_groups"}


def is_zero(folder: Path) -> bool:
    """Whether a folder holds what the ranks of a training with ZeRO saved."""
    return any(_PART.search(each.name) for each in folder.glob(f"*{OPTIMIZER}"))


def read_zero(folder: Path) -> Json:
    """The weights of a folder by name: float32, buffers of other floating dtypes too; frozen ones as they
    are.

    Raises CheckpointError for folders that lack ranks, for parallelism other than over data, and where
    vectors and shapes do not fit. Cost: the pickles are read, not their tensors.
    """
    models, optimizers = _by_rank(folder, MODEL), _by_rank(folder, OPTIMIZER)
    parts = [_partition(file) for file in optimizers]
    stage, world = parts[0].stage, len(parts)
    if any((part.stage, part.world) != (stage, world) for part in parts):
        raise CheckpointError(
            f"{folder}: holds {world} of {parts[0].world} optimizer states",
            hint="copy the files of all ranks",
        )
    states = [_model_state(file) for file in (models if stage == 3 else models[:1])]
    if stage == 3 and len(states) != world:
        raise CheckpointError(
            f"{folder}: holds the model states of {len(states)} of {world} ranks",
            hint="copy the files of all ranks",
        )
    tensors = _buffers(states[0])
    tensors |= _frozen(states, stage, folder)
    vectors = [part.vectors for part in parts]
    tensors |= _stage3(states[0], vectors, folder) if stage == 3 else _stage2(states[0], parts, folder)
    for name, same in _mapping(states[0], "shared_params").items():
        if same in tensors:
            tensors[name] = tensors[same]
    return dict(tensors)


def _by_rank(folder: Path, ending: str) -> list[Path]:
    """The files of all ranks in order. Raises CheckpointError when one is missing, or belongs to another kind
    of parallelism."""
    ranks: dict[int, Path] = {}
    for file in folder.glob(f"*{ending}"):
        found = _PART.search(file.name) if ending == OPTIMIZER else _MODEL_PART.fullmatch(file.name)
        if found is None or int(found[2]):
            raise CheckpointError(
                f"{file}: is of a training with tensor, pipeline or expert parallelism",
                hint="make one checkpoint of it with DeepSpeed's ds_to_universal.py, and convert that",
            )
        ranks[int(found[1] or 0)] = file
    missing = next((rank for rank in range(len(ranks)) if rank not in ranks), None)
    if not ranks or missing is not None:
        raise CheckpointError(
            f"{folder}: lacks the *{ending} of rank {missing or 0}", hint="copy the files of all ranks"
        )
    return [ranks[rank] for rank in range(len(ranks))]


class _Partition(NamedTuple):
    """What a rank's optimizer state says: stage, number of ranks, its flat vectors, paddings after
    parameters."""

    stage: int
    world: int
    vectors: list[Stored]
    paddings: Any


def _partition(file: Path) -> _Partition:
    value = read_archive(file)
    state = value.get("optimizer_state_dict") if isinstance(value, dict) else None
    if not isinstance(state, dict):
        raise _unknown(file, "optimizer_state_dict")
    stage, count = state.get("zero_stage"), state.get("partition_count")
    if isinstance(stage, Inert):  # an enumeration, which is called with its value
        stage = stage.arguments[0] if stage.arguments else None
    sizes = count if isinstance(count, list) else [count]
    stage = stage if type(stage) is int and stage in _GROUPS else 0
    vectors = state.get(_GROUPS.get(stage, ""))
    if (
        not stage
        or not isinstance(vectors, list)
        or not sizes
        or not all(type(size) is int for size in sizes)
    ):
        raise _unknown(file, "zero_stage, partition_count and float32 groups of stage 1, 2 or 3")
    if not all(isinstance(each, Stored) and len(each.shape) == 1 for each in vectors):
        raise _unknown(file, "float32 groups that are flat tensors")
    return _Partition(stage, max(sizes), vectors, state.get("param_alignment_paddings"))


def _model_state(file: Path) -> Json:
    value = read_archive(file)
    if not isinstance(value, dict) or "param_shapes" not in value or "buffer_names" not in value:
        raise _unknown(file, "param_shapes and buffer_names")
    if value.get("autoep_layers") or value.get("ds_autoep_layers"):
        raise CheckpointError(
            f"{file}: its experts are partitioned over groups of their own",
            hint="make one checkpoint of it with DeepSpeed's ds_to_universal.py, and convert that",
        )
    return value


def _mapping(state: Json, key: str) -> Mapping[str, Any]:
    value = state.get(key)
    return value if isinstance(value, dict) else {}


def _buffers(state: Json) -> dict[str, Stored]:
    module, names = _mapping(state, "module"), state["buffer_names"]
    wanted = {name for name in names if isinstance(name, str)} if isinstance(names, list | tuple) else set()
    return {
        name: in_float32(tensor) if tensor.dtype in FLOATING else tensor
        for name, tensor in module.items()
        if name in wanted and isinstance(tensor, Stored)
    }


def _frozen(states: Sequence[Json], stage: int, folder: Path) -> dict[str, Stored]:
    """Parameters that are not trained: whole in rank 0, or in stage 3 a part in every rank."""
    fragments = [_mapping(state, "frozen_param_fragments") for state in states]
    frozen = {}
    for name, shape in _shapes(_mapping(states[0], "frozen_param_shapes"), folder).items():
        found = [each.get(name) for each in fragments]
        if not all(isinstance(each, Stored) for each in found):
            raise CheckpointError(f"{folder}: lacks parts of the frozen {brief(name)}", hint=_AGAIN)
        parts = [each for each in found if isinstance(each, Stored)]
        frozen[name] = parts[0] if stage < 3 else _cut(name, shape, _runs(parts, 0, math.prod(shape)), folder)
    return frozen


def _groups(state: Json, folder: Path) -> list[dict[str, Sizes]]:
    shapes = state["param_shapes"]
    groups = shapes if isinstance(shapes, list | tuple) else [shapes]
    if not all(isinstance(group, dict) for group in groups):
        raise CheckpointError(f"{folder}: its param_shapes are no shapes by name", hint=_AGAIN)
    return [_shapes(group, folder) for group in groups]


def _shapes(group: Mapping[Any, Any], folder: Path) -> dict[str, Sizes]:
    shapes = {}
    for name, value in group.items():
        shape = as_sizes(value)
        if not isinstance(name, str) or shape is None:
            raise CheckpointError(f"{folder}: gives {brief(name)} the shape {brief(value)}", hint=_AGAIN)
        shapes[name] = shape
    return shapes


def _stage2(state: Json, parts: Sequence[_Partition], folder: Path) -> dict[str, Stored]:
    groups = _groups(state, folder)
    if any(len(part.vectors) != len(groups) for part in parts):
        raise CheckpointError(
            f"{folder}: has {len(groups)} groups of parameters, and not as many vectors", hint=_AGAIN
        )
    tensors: dict[str, Stored] = {}
    for number, shapes in enumerate(groups):
        vectors = [part.vectors[number] for part in parts]
        paddings = _paddings(parts[0].paddings, number, len(shapes), folder)
        at = 0
        for (name, shape), padding in zip(shapes.items(), paddings, strict=True):
            tensors[name] = _cut(name, shape, _runs(vectors, at, math.prod(shape)), folder)
            at += math.prod(shape) + padding
        _check_used(at, sum(vector.num_elements for vector in vectors), 2 * len(parts), folder)
    return tensors


def _paddings(value: Any, group: int, count: int, folder: Path) -> Sizes:
    if value is None:
        return (0,) * count
    found = as_sizes(value[group]) if isinstance(value, list) and group < len(value) else None
    if found is None or len(found) != count:
        raise CheckpointError(f"{folder}: its alignment paddings are not one for each parameter", hint=_AGAIN)
    return found


def _stage3(state: Json, vectors: Sequence[Sequence[Stored]], folder: Path) -> dict[str, Stored]:
    tensors, at = dict[str, Stored](), 0
    for name, shape in (item for group in _groups(state, folder) for item in group.items()):
        numel = math.prod(shape)
        part = -(-numel // len(vectors))
        runs = [run for mine in vectors for run in _runs(mine, at, part)]
        tensors[name] = _cut(name, shape, runs, folder)
        at += part
    _check_used(at, sum(vector.num_elements for vector in vectors[0]), 1, folder)
    return tensors


def _check_used(used: int, there: int, align: int, folder: Path) -> None:
    """All numbers must be parameters, but for what is padded at the end."""
    if -(-used // align) != -(-there // align):
        raise CheckpointError(
            f"{folder}: its parameters take {used:,} numbers of each vector of {there:,}",
            hint=f"{_AGAIN}; DeepSpeed's zero_to_fp32.py refuses it too",
        )


class _Run(NamedTuple):
    """Numbers of a vector that follow each other."""

    vector: Stored
    start: int
    size: int


def _runs(vectors: Sequence[Stored], start: int, count: int) -> Iterator[_Run]:
    """`count` numbers from number `start` on of vectors that are thought one after the other."""
    ends = list(accumulate(vector.num_elements for vector in vectors))
    number = bisect_right(ends, start)
    while count and number < len(vectors):
        within = start - (ends[number - 1] if number else 0)
        taken = min(count, vectors[number].num_elements - within)
        if taken:
            yield _Run(vectors[number], within, taken)
        start, count, number = start + taken, count - taken, number + 1


def _cut(name: str, shape: Sizes, runs: Iterable[_Run], folder: Path) -> Stored:
    """A parameter out of runs one after the other; what is more than it needs is padding."""
    numel, at, pieces, kinds = math.prod(shape), 0, list[Piece](), dict[str, None]()
    for run in runs:
        count = min(run.size, numel - at)
        if count:
            file = run.vector.spread.pieces[0].file
            pieces.append(Piece((at,), (count,), file, partial(_locate, run.vector, run.start)))
            kinds[run.vector.dtype] = None
            at += count
    if at < numel or len(kinds) > 1:
        raise CheckpointError(
            f"{folder}: has {at:,} of the {numel:,} numbers of {brief(name)}, in dtypes {', '.join(kinds)}",
            hint=_AGAIN,
        )
    return Stored(next(iter(kinds), "F32"), shape, Spread((numel,), tuple(pieces)), (folder, name))


def _locate(vector: Stored, start: int) -> Place:
    place = vector.spread.pieces[0].place
    if isinstance(place, Extent):
        return Extent(place.file, place.start + start * vector.itemsize)
    return place[start:]


def _unknown(file: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{file}: does not hold {what}, as DeepSpeed ZeRO saves it",
        hint="python zero_to_fp32.py FOLDER OUT with the script beside it, then soupkit convert OUT",
    )


_AGAIN = "copy the folder again; its files are not of one checkpoint"
