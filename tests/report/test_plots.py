"""Plots are drawn from the numbers given, as images of a sensible size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from soupkit.report.plots import dot_plot

ROWS = {
    "best single": {"held-out": (90.0, 1.0), "test": (91.0, 1.1)},
    "greedy soup": {"held-out": (93.0, 0.9), "test": (92.0, 1.0)},
}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), np.int16)


def test_a_dot_moves_with_its_value(tmp_path: Path) -> None:
    dot_plot(tmp_path / "a.png", ROWS, title="soups", xlabel="accuracy", faint={"best single": [88.0, 97.0]})
    other = {**ROWS, "greedy soup": {"held-out": (93.0, 0.9), "test": (94.0, 1.0)}}
    dot_plot(tmp_path / "b.png", other, title="soups", xlabel="accuracy", faint={"best single": [88.0, 97.0]})
    a, b = pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png")
    assert a.shape == b.shape
    assert a.shape[1] > 1000
    changed = np.argwhere(np.abs(a - b).sum(2) > 100)
    assert len(changed) > 20  # the dot and its bar, nothing above the lower half
    assert changed[:, 0].min() > a.shape[0] / 2


def test_it_needs_no_standard_error(tmp_path: Path) -> None:
    dot_plot(tmp_path / "a.png", {"one": {"test": (1.0, None)}}, title="", xlabel="x", faint={})
    assert (pixels(tmp_path / "a.png") < 200).any()
