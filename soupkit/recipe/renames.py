"""How names of tensors are changed, as sed says it."""

from __future__ import annotations

import re
from collections.abc import Callable

from soupkit.errors import RecipeError, brief


def parse_rename(text: str) -> Callable[[str], str]:
    """`s/PATTERN/REPLACEMENT/` as a function of names: the first match, every one with a `g` behind; any
    other sign may stand for the slash. Raises RecipeError."""
    parts = text[2:].split(text[1]) if len(text) > 3 and text[0] == "s" else []
    try:
        if len(parts) != 3 or parts[2] not in ("", "g"):
            raise ValueError("is not of the form s/PATTERN/REPLACEMENT/")
        pattern, count = re.compile(parts[0]), int(parts[2] != "g")
        pattern.sub(parts[1], "")
    except (ValueError, re.error, IndexError) as error:
        raise RecipeError(
            f"rename {brief(text)}: {error}", hint=r"for example 's/^encoder\.(\d+)\./layers.\1./'"
        ) from None
    return lambda name: pattern.sub(parts[1], name, count=count)
