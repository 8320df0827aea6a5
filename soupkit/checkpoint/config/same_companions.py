"""Whether what travels beside weights agrees: tokenizers (is row i the same token), processors, further
modules."""

from __future__ import annotations

import filecmp
from collections.abc import Mapping, Sequence
from pathlib import Path

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.config.meaning import Mismatch
from soupkit.checkpoint.config.modules import WEIGHTS, module_files
from soupkit.checkpoint.config.vocabulary import token_rows
from soupkit.checkpoint.dtypes import Array
from soupkit.checkpoint.views.view import checkpoint_of
from soupkit.errors import CheckpointError, CompatibilityError

VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt")
COMPARED = (
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "merges.txt", "chat_template.jinja",
    "chat_template.json", "preprocessor_config.json", "processor_config.json",
    "video_preprocessor_config.json",
    "image_processor.json", "sentence_bert_config.json", "config_sentence_transformers.json", "modules.json",
)  # fmt: skip
"""Files that change what a model is given; a difference is told, and the first one's file is written."""


def check_companions(
    checkpoints: Sequence[Mapping[str, Array]], *, mismatch: Mismatch = "error"
) -> tuple[str, ...]:
    """What to tell of companions that differ from the first's. Checkpoints that are not on this disk are left
    out.

    Raises CompatibilityError, unless mismatch is "warn", when the same token is another row.
    """
    found = [checkpoint_of(each) for each in checkpoints]
    local = [each for each in found if each is not None and each.remote is None and each.config_name]
    remarks: list[str] = []
    for other in local[1:]:
        remarks += _compare(local[0], other, mismatch)
    return tuple(remarks)


def _compare(first: Checkpoint, other: Checkpoint, mismatch: Mismatch) -> list[str]:
    remarks = []
    for name in VOCABULARIES:
        if _differ(first, other, name) and (moved := _moved(first.directory / name, other.directory / name)):
            token, row, new = moved
            message = (
                f"token {token!r} is row {row} in {first.reference}, but row {new} in "
                f"{other.reference} ({name})"
            )
            if mismatch == "error":
                raise CompatibilityError(
                    message,
                    hint="rows of embeddings are merged by number, so the tokenizers must agree: give both "
                    "models one tokenizer first; --mismatch warn goes on all the same",
                )
            remarks.append(message)
    for name in sorted(_modules(first) & _modules(other)):
        if name.endswith(WEIGHTS) and _differ(first, other, name):
            message = f"{name} holds other weights in {other.reference} than in {first.reference}"
            if mismatch == "error":
                folder = name.rpartition("/")[0]
                raise CompatibilityError(
                    message,
                    hint="weights of further modules are copied, not merged: merge them apart (the same "
                    f"command on REF/{folder}) and put the result in; --mismatch warn takes the first's",
                )
            remarks.append(message + ", whose are written")
    code = sorted(path.name for path in first.companions if path.suffix == ".py")
    modules = sorted(name for name in _modules(first) if not name.endswith(WEIGHTS))
    differing = [name for name in (*VOCABULARIES, *COMPARED, *code, *modules) if _differ(first, other, name)]
    if differing:
        files = ", ".join(differing)
        remarks.append(f"{other.reference} has another {files} than {first.reference}, whose is written")
    return remarks


def _modules(checkpoint: Checkpoint) -> set[str]:
    return {path.relative_to(checkpoint.directory).as_posix() for path in module_files(checkpoint.directory)}


def _differ(first: Checkpoint, other: Checkpoint, name: str) -> bool:
    a, b = first.directory / name, other.directory / name
    return a.is_file() and b.is_file() and not filecmp.cmp(a, b, shallow=False)


def _moved(first: Path, other: Path) -> tuple[str, int, int] | None:
    """A token that both have, in another row each; None where a file says none, or cannot be read."""
    try:
        a, b = token_rows(first), token_rows(other)
    except CheckpointError:
        return None
    return next(((token, a[token], row) for token, row in b.items() if a.get(token, row) != row), None)
