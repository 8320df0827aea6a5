"""How a recipe declares its options: `option(...)` and `argument(...)` are dataclass fields with help."""

from __future__ import annotations

import dataclasses
from typing import Any

REQUIRED: Any = dataclasses.MISSING


def option(default: Any = REQUIRED, *, help: str) -> Any:
    """A keyword option: `--the-name VALUE` on the command line, `the_name:` in YAML."""
    return dataclasses.field(default=default, metadata={"help": help, "positional": False})


def argument(default: Any = REQUIRED, *, help: str) -> Any:
    """A positional argument on the command line, an ordinary key in YAML."""
    return dataclasses.field(default=default, metadata={"help": help, "positional": True})
