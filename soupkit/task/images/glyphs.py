"""Printed digits: rendered from the fonts that matplotlib carries, distorted, and cut out like handwritten
ones."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = 8  # as scikit-learn's digits
CANVAS = 48
NUM_DRAWS = 12
_STREAM = 0x676C79706873  # every set of glyphs is a stream of its own of this seed


def render_glyphs(num: int, *, stream: int) -> np.ndarray:
    """Draw `num` glyphs, uint8[N, 8, 8], white on black. About 0.1 ms each.

    The first n of more are the first n. Streams are independent of each other.
    """
    draws = _draws(num, stream)
    images = np.zeros((num, SIZE, SIZE), np.uint8)
    for i in range(num):
        images[i] = _render(str(int(draws[i, 0] * 10)), draws[i, 1:].tolist())
    return images


def glyph_classes(num: int, *, stream: int) -> np.ndarray:
    """Which digits those glyphs are, int64[N]; draws nothing."""
    return (_draws(num, stream)[:, 0] * 10).astype(np.int64)


def _draws(num: int, stream: int) -> np.ndarray:
    return np.random.default_rng((_STREAM, stream)).random((num, NUM_DRAWS))


def _render(digit: str, draws: list[float]) -> np.ndarray:
    """One glyph: font and size, an affine distortion about the centre, cut out, shrunk by area,
    brightened."""
    which, size, a, b, c, d, *cuts, gain = draws
    image = Image.new("L", (CANVAS, CANVAS))
    font = _font(which, 30 + int(15 * size))
    ImageDraw.Draw(image).text((CANVAS / 2, CANVAS / 2), digit, fill=255, font=font, anchor="mm")
    image = image.transform(
        (CANVAS, CANVAS), Image.Transform.AFFINE, _affine(a, b, c, d), Image.Resampling.BILINEAR
    )
    left, top, right, bottom = image.getbbox() or (0, 0, CANVAS, CANVAS)
    # The digits' writers filled the height of their box and less of its width.
    margins = [2 + 5 * cuts[0], cuts[1], 2 + 5 * cuts[2], cuts[3]]
    box = (left - margins[0], top - margins[1], right + margins[2], bottom + margins[3])
    left, top, right, bottom = (round(side) for side in box)
    small = image.crop((left, top, right, bottom)).resize((SIZE, SIZE), Image.Resampling.BOX)
    return np.minimum(np.asarray(small, np.float64) * (1 + 0.8 * gain), 255).astype(np.uint8)


def _affine(a: float, b: float, c: float, d: float) -> tuple[float, ...]:
    """Scales within 15 %, shears within 0.25 and 0.15, about the centre; draws are uniform on 0..1."""
    xx, xy, yx, yy = 0.85 + 0.3 * a, 0.5 * b - 0.25, 0.3 * c - 0.15, 0.85 + 0.3 * d
    half = CANVAS / 2
    return (xx, xy, half * (1 - xx - xy), yx, yy, half * (1 - yx - yy))


@cache
def _font_files() -> tuple[Path, ...]:
    """The text fonts among matplotlib's; its Display fonts have no digits."""
    import matplotlib

    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    found = (*folder.glob("DejaVu*.ttf"), *folder.glob("STIXGeneral*.ttf"))
    return tuple(sorted(path for path in found if "Display" not in path.name))


def _font(which: float, size: int) -> ImageFont.FreeTypeFont:
    files = _font_files()
    return _open_font(files[int(which * len(files))], size)


@cache
def _open_font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
