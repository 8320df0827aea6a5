"""Which tokens a checkpoint's rows of embeddings stand for, as its tokenizer's files say."""

from __future__ import annotations

import json
from pathlib import Path

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.hashing import file_xxh3
from soupkit.errors import CheckpointError
from soupkit.jsons import JsonView

FILES = ("tokenizer.json", "vocab.json", "tokenizer.model", "spiece.model", "vocab.txt")
"""The files that hold a vocabulary, the most telling first."""

Vocabulary = JsonView


def read_vocabulary(checkpoint: Checkpoint) -> Vocabulary | None:
    """{token: row}, or {file name: its content} for one that is not JSON; None where there is no tokenizer.

    Raises CheckpointError for a file that cannot be read.
    """
    files = {path.name: path for path in checkpoint.companions}
    path = next((files[name] for name in FILES if name in files), None)
    if path is None:
        return None
    if path.suffix == ".model":
        return {path.name: file_xxh3(path)}
    added = files.get("added_tokens.json") if path.name == "vocab.json" else None
    return token_rows(path) | (token_rows(added) if added else {})


def token_rows(path: Path) -> dict[str, int]:
    """{token: row} of a vocab.txt, a vocab.json or a tokenizer.json. Raises CheckpointError for what is
    none."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".txt":
            return {token: row for row, token in enumerate(text.splitlines())}
        content = json.loads(text)
        rows = content["model"]["vocab"] if path.name == "tokenizer.json" else content
        if isinstance(rows, list):  # Unigram: pieces with their scores, in order
            rows = {piece[0]: row for row, piece in enumerate(rows)}
        more = content.get("added_tokens") or [] if path.name == "tokenizer.json" else []
        return {str(token): int(row) for token, row in rows.items()} | {
            str(each["content"]): int(each["id"]) for each in more
        }
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise CheckpointError(f"{path}: the vocabulary cannot be read: {error!r}") from error


def difference(first: Vocabulary, other: Vocabulary) -> str | None:
    """How two vocabularies differ, in words; None where every token has the same row."""
    if first == other:
        return None
    missing, extra = first.keys() - other.keys(), other.keys() - first.keys()
    if missing or extra:
        example = min(map(str, missing or extra))
        return f"{len(missing)} tokens are missing and {len(extra)} others there, for example {example!r}"
    moved = sorted(token for token in first if first[token] != other[token])
    return (
        f"{len(moved)} tokens have other rows, for example {moved[0]!r}: {first[moved[0]]} and "
        f"{other[moved[0]]}"
    )
