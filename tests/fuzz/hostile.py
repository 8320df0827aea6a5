"""How the fuzzer mutates: bytes and texts by spans, JSON by values, with what readers like least."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

from fuzz.mergekit_mutations import ATOMS, TEXTS, places

LITERALS = {
    "<infinite>": "1e999", "<digits>": "9" * 5000, "<nan>": "NaN", "<minus zero>": "-0", "<deep>": "[" * 3000,
    "<nest>": '{"a":' * 60 + "1" + "}" * 60, "<twice>": '{"a": 1, "a": 2}', "<half>": '"\\ud800"',
    "<nul>": '"\\u0000"',
}  # fmt: skip
"""What no value of Python is written as: the mark in a value, and what takes its place in the text."""
HOSTILE: list[Any] = [
    *(atom for atom in ATOMS if not isinstance(atom, bytes)), *LITERALS, 2**31, 2**53 + 1, 2**63 - 1, 2**63,
    2**64,
    -(2**63), 10**400, -1.5, 1e308, 5e-324, "\u00b2", "\u0664", "\u202e", "../x", "/etc", "~", "\ud800",
    "9" * 5000,
    "a" * 300, [0] * 40, [[[[[[1]]]]]], {"": ""}, {"a": {"a": {"a": None}}}, "nan", "-1", "1e999", "*", "[",
    "(",
]  # fmt: skip
SPLINTERS = [
    *TEXTS, "null", "true", "-1", str(2**63), "1" + "0" * 400, "1e999", "-1e999", ".nan", "nan", "inf", '""',
    "x" * 5000,
    "\0", "\x1b[31m", "\u202e", "\ud800", "\u00b2", "\u0664", "(" * 200, "{1..9}", "{a,b}", "..", ",", "/",
    "@", "~",
    "%s",
    "${a}", " if ", " else ", " and ", "()", "1" * 30, "0" * 30 + "1", " ", "*", "?", "[a-", "\\", "GB", "e",
    ".",
]  # fmt: skip


def spans(value: Any, rng: Random, splinters: list[Any]) -> Any:
    """A text or bytes with spans cut out, doubled, moved or replaced."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        start = rng.randrange(len(value) + 1)
        stop = min(len(value), start + rng.choice((0, 1, 1, 2, 5, 20)))
        kind = rng.randrange(5)
        if kind == 0:
            value = value[:start] + value[stop:]
        elif kind == 1:
            value = value[:stop] + value[start:stop] * rng.choice((1, 2, 50)) + value[stop:]
        elif kind == 2:
            place = rng.randrange(len(value) + 1)
            value = value[:place] + value[start:stop] + value[place:]
        else:
            value = value[:start] + rng.choice(splinters) + value[stop:]
    return value


def mutated_text(text: str, rng: Random) -> str:
    """A text with some spans changed."""
    return str(spans(text, rng, SPLINTERS))


def mutated_bytes(content: bytes, rng: Random) -> bytes:
    """Bytes with single bits flipped or spans changed."""
    if rng.random() < 0.3 and content:
        data = bytearray(content)
        for _ in range(rng.choice((1, 2, 4))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(data)
    splinters = [b"\0", b"\xff" * 8, b"\0" * 8, b"\xef\xbb\xbf", b"\xed\xa0\x80", rng.randbytes(4)]
    if rng.random() < 0.5:
        splinters = [each.encode(errors="surrogatepass") for each in SPLINTERS]
    return bytes(spans(content, rng, splinters))


def mutated_value(value: Any, rng: Random) -> Any:
    """A JSON-able value with some nodes replaced, removed, renamed, doubled or swapped."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = list(places(value))
        if not found:
            return rng.choice(HOSTILE)
        container, key = rng.choice(found)
        kind = rng.randrange(8)
        if kind == 0:
            del container[key]
        elif kind == 1 and isinstance(container, dict):
            container[str(rng.choice(["", "\ud800", "a.b", "x" * 300, "\x1b", *container]))] = container.pop(
                key
            )
        elif kind == 2 and isinstance(container, list):
            container.extend([copy.deepcopy(container[key])] * rng.choice((1, 2, 40)))
        elif kind == 3:
            other, place = rng.choice(found)
            container[key] = copy.deepcopy(other[place])
        else:
            container[key] = copy.deepcopy(rng.choice(HOSTILE))
    return rng.choice(HOSTILE) if rng.random() < 0.01 else value


def json_text(value: Any, rng: Random) -> str:
    """The JSON of a value, with the literals that marks in it stand for, at times with a key twice."""
    text = json.dumps(
        value, ensure_ascii=rng.random() < 0.7, separators=rng.choice(((",", ":"), (", ", ": ")))
    )
    for mark, literal in LITERALS.items():
        text = text.replace(f'"{mark}"', literal)
    if rng.random() < 0.02 and text.startswith("{") and len(text) > 2:
        text = f"{text[:-1]},{text[1:]}"
    return text


def mutated_json(value: Any, rng: Random) -> bytes:
    """The JSON of a mutated value, or mutated bytes of its JSON."""
    if rng.random() < 0.25:
        return mutated_bytes(json_text(value, rng).encode(errors="surrogatepass"), rng)
    text = json_text(mutated_value(value, rng), rng)
    return text.encode(errors="surrogatepass")
