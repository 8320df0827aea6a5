"""What stands in a model card is text, whatever names, splits and metrics hold."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from soupkit.checkpoint.reference import open_checkpoint
from soupkit.manifest import Manifest
from soupkit.report.card import code, model_card, plain

BAD = [
    "n | 9 | `z` |\n\n# Heading <img src=x onerror=alert(1)> [l](javascript:alert(1))",
    "[click](https://evil)",
    "![x](http://evil/x.png)",
    "<https://evil>",
    "a\x1b[31mred\x1b[0m\x9b\u202e",
    "**bold** ~~gone~~ $x$ &lt;script&gt; \\| https://evil www.evil.com",
    "x" * 100_000,
]


@pytest.mark.parametrize("text", BAD)
def test_names_are_text(text: str) -> None:
    shown = plain(text)
    assert not re.search(r"(?<!\\)[`*\[\]<>|]|://|www\.|\n|[\x00-\x1f\x7f-\x9f\u202e]", shown)
    assert len(shown) < 2000
    inner = code(text)[1:-1]
    assert not re.search(r"`|(?<!\\)\||\n|[\x00-\x1f\x7f-\x9f\u202e]", inner)
    assert plain("run-001_b.step5") == "run-001_b.step5"


@pytest.mark.parametrize("text", BAD[:6])
def test_a_card_keeps_its_shape(text: str, save: Any) -> None:
    first = open_checkpoint(str(save("a", {"w": np.ones(3, np.float32)})))
    manifest = Manifest(
        command=f"merge uniform {text}",
        recipe={},
        inputs=[{"reference": f"models/{text.replace('/', ' ')}", "content": text}],
        mixture={"ingredients": ["a"], "coefficients": [[1.0]], "divisor": 1.0, "blocks": None},
        metrics={text: {text: {"value": 0.5, "standard_error": None, "num_examples": 3}, "other": 1.0}},
    )
    card = model_card(manifest, Path(f"out{text.replace('/', ' ')}"), first)
    good = Manifest(
        **{
            **dataclasses.asdict(manifest),
            "command": "merge uniform",
            "inputs": [{"reference": "a", "content": "c"}],
        }
    )
    plain_card = model_card(
        dataclasses.replace(good, metrics={"a": {"b": manifest.metrics[text][text]}}), Path("out"), first
    )
    assert [line[:2] for line in card.splitlines()] == [line[:2] for line in plain_card.splitlines()]
    assert "\x1b" not in card
    assert "<img" not in re.sub("`[^`]*`", "", card)
