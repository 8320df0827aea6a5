"""Mergekit files, mutated: as values (any node may become any other) and as text.

    python tests/fuzz/mergekit_mutations.py COUNT SEED

Ends with an error for anything that is neither a result nor a SoupkitError; prints how many of each there
were.
"""

from __future__ import annotations

import contextlib
import copy
import random
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import yaml

from soupkit.commands import COMMANDS
from soupkit.errors import SoupkitError
from soupkit.recipe.mergekit.recipes import translate
from soupkit.recipe.parse import parse_recipe
from soupkit.recipe.settings import parse_settings

CONDITIONS = [{"filter": "mlp", "value": [0, 0.5, 1]}, {"value": 0.3}]
SOURCES = [{"model": name, "layer_range": [0, 4], "parameters": {"weight": 0.5}} for name in ("a", "b")]
SEEDS: list[dict[str, Any]] = [
    {"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": CONDITIONS}},
    {"model": "b+c",
     "parameters": {"weight": 1}}], "parameters": {"normalize": True}, "dtype": "float32"},
    {"merge_method": "ties", "base_model": "base", "models": [{"model": {"model": {"path": "a",
    "revision": "v"},
     "lora": {"path": "l"}}, "parameters": {"weight": 0.5, "density": [0.2, 0.8]}}],
     "parameters": {"int8_mask": 1.0}},
    {"merge_method": "slerp", "base_model": "a", "slices": [{"sources": [{"model": "a", "layer_range": [0,
    4]},
     {"model": "b", "layer_range": [0, 4]}], "parameters": {"t": CONDITIONS}}], "tokenizer_source": "base"},
    {"merge_method": "passthrough", "slices": [{"sources": [{"model": "a", "layer_range": [0, 3],
    "parameters":
     {"scale": CONDITIONS}}]}, {"sources": [{"model": "b", "layer_range": [1, 4]}]}], "name": "x"},
    {"merge_method": "linear", "slices": [{"sources": SOURCES}, {"sources": SOURCES,
    "parameters": {"weight": 1}}]},
    {"merge_method": "della", "base_model": "base", "models": [{"model": "a", "parameters": {"weight": 0.5,
     "density": 0.5, "epsilon": 0.1}}], "parameters": {"lambda": 0.7, "rescale": False},
     "out_dtype": "bfloat16"},
    {"merge_method": "nuslerp", "models": [{"model": "a", "parameters": {"weight": 0.5}}, {"model": "b",
    "parameters":
     {"weight": 0.5}}], "parameters": {"nuslerp_flatten": False, "nuslerp_row_wise": False}},
    {"merge_method": "multislerp", "models": [{"model": "a"}, {"model": "b"}], "parameters": {"weight": 0.5,
     "normalize_weights": False, "eps": 1e-8}, "tokenizer": {"source": "base"}, "chat_template": None},
]  # fmt: skip
ATOMS: list[Any] = [
    None, True, False, 0, 1, -1, 0.0, 1.0, 2.5, "", " ", "a", "a+b", "a+b+c", "a@b", "@", "+", "1e-5", "half",
    "true",
    "0.0", float("inf"), float("nan"), 1e400, 10**30, 1 << 70, [], {}, [[]], [{}], {"filter": "mlp"},
    {"value": 1},
    {"filter": 3, "value": []}, "x" * 5000, "\x1b[31m", "\0", "a*", "2024-01-01", b"ab", ["a", 1],
    {"path": "a"},
    {1: 2}, {"model": {}}, "union", "base", [0, 1], [1, 0], [0.5], "bfloat16", "weight", "normalize",
]  # fmt: skip
TEXTS = [
    "", "&a ", "*a", "<<: *a\n", "? ", "!!int ''", "!!bool x", "!!timestamp x", "!!binary x", "!!set {a}",
    "\t",
    "\ufeff",
    "---\n", "...\n", "2024-99-99", "0x_", "1:99", "0b_", ".inf", "-.nan", "9" * 5000, "[" * 400, "{", "}",
    ": ", "- ",
    "|\n", "'", '"', "\x85", "%YAML 9.9\n", "!!python/object/apply:os.system ['x']", "=", "yes", "010", "1_0",
    "\n",
]  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every node below a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(inner):
        yield value, key
        yield from places(item)


DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
NAMES = [name for each in SEEDS for _, name in places(each)] + [
    None,
    True,
    2.5,
    "",
    "wieght",
    "modules",
    "\x1b",
]


def mutated(rng: random.Random) -> str:
    """A mergekit file with some nodes replaced, removed, renamed or doubled, and perhaps some of its text."""
    config = copy.deepcopy(rng.choice(SEEDS))
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        found = list(places(config))
        if not found:
            break
        container, key = rng.choice(found)
        change = rng.randrange(5)
        if change == 0:
            del container[key]
        elif change == 1 and isinstance(container, dict):
            container[rng.choice(NAMES)] = container.pop(key)
        elif change == 2 and isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        else:
            container[key] = copy.deepcopy(rng.choice(ATOMS))
    text = yaml.dump(config, Dumper=DUMPER, default_flow_style=rng.choice((None, True, False)))
    for _ in range(rng.choice((0, 0, 1, 2))):
        start = rng.randrange(len(text) + 1)
        text = text[:start] + rng.choice(TEXTS) + text[start + rng.choice((0, 0, 1, 5, 20)) :]
    return text


def run(text: str) -> str:
    """What becomes of a file: the command, or the kind of error."""
    try:
        found = translate(text, where="f.yaml")
        kind = COMMANDS[found.command].recipe_type()
        parse_recipe(kind, found.options | {"out": "out"}, where="f.yaml")
    except SoupkitError as error:
        str(error).encode()
        return type(error).__name__
    known = ["coefficient", "lambda", *kind.__dataclass_fields__]
    parse_settings(found.options.get("set", []), known=known, references=found.options["refs"])
    return found.command


def main(count: int, seed: int) -> None:
    """Run some mutations; the text that breaks is printed."""
    rng, outcomes = random.Random(seed), Counter[str]()
    for _ in range(count):
        text = mutated(rng)
        try:
            outcomes[run(text)] += 1
        except BaseException:
            with contextlib.suppress(UnicodeError):
                print(repr(text)[:3000])
            raise
    print(dict(outcomes.most_common()))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
