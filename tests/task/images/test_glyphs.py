"""Rendered digits are deterministic, independent between streams, and look like digits."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from soupkit.task.images.glyphs import glyph_classes, render_glyphs


def flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32)


def test_the_first_of_many_are_the_first() -> None:
    np.testing.assert_array_equal(render_glyphs(40, stream=3), render_glyphs(60, stream=3)[:40])
    np.testing.assert_array_equal(glyph_classes(40, stream=3), glyph_classes(60, stream=3)[:40])


def test_streams_share_nothing() -> None:
    one, two = flat(render_glyphs(500, stream=0)), flat(render_glyphs(500, stream=2))
    together = np.unique(np.concatenate([one, two]), axis=0)
    assert len(together) == 1000
    assert (glyph_classes(500, stream=0) != glyph_classes(500, stream=2)).mean() == pytest.approx(
        0.9, abs=0.06
    )


def test_they_are_as_large_and_as_bright_as_digits() -> None:
    glyphs, digits = render_glyphs(400, stream=0), load_digits().images * (255 / 16)
    assert glyphs.shape[1:] == digits.shape[1:]
    assert glyphs.dtype == np.uint8
    assert glyphs.mean() == pytest.approx(digits.mean(), rel=0.25)
    assert (glyphs.reshape(400, -1).max(1) > 100).all()


def test_classes_are_what_is_drawn() -> None:
    """A nearest neighbour that has seen only glyphs tells other glyphs apart, and real digits better than
    chance."""
    judge = KNeighborsClassifier(3).fit(flat(render_glyphs(2000, stream=0)), glyph_classes(2000, stream=0))
    assert judge.score(flat(render_glyphs(300, stream=1)), glyph_classes(300, stream=1)) > 0.75
    digits = load_digits()
    assert judge.score(flat(digits.images[:500]) * (255 / 16), digits.target[:500]) > 0.45
