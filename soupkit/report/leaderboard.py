"""A ranking as files: leaderboard.csv for spreadsheets, leaderboard.json for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from soupkit.jsons import JsonView
from soupkit.whole import whole_file

NAMES = ("leaderboard.csv", "leaderboard.json")


def write_leaderboard(directory: Path, rows: Sequence[JsonView], *, caption: str = "") -> None:
    """Write the rows, in their order, at full precision; each file appears whole.

    CSV: one column per key of any row, empty where there is nothing. JSON: {"caption", "rows"}.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _put(directory / NAMES[0], text.getvalue())
    _put(
        directory / NAMES[1],
        json.dumps({"caption": caption, "rows": list(rows)}, indent=1, ensure_ascii=False) + "\n",
    )


def _put(path: Path, text: str) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
