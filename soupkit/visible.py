"""Text from files and names, made safe to show: nothing in it steers a terminal or is there without being
seen."""

from __future__ import annotations

import re

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and newline, DEL, C1
    "\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # direction, no width, line ends
    "\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """`text` with every character that steers a terminal, turns its direction or is not seen written out.

    As JSON writes them, so that JSON stays JSON. Newlines and tabs stay.
    """
    return _UNSEEN.sub(_written_out, text)


def in_one_line(text: str) -> str:
    """As `visible`, with newlines and tabs written out too: for a name, a cell or a label."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def _written_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x10000:
        return f"\\u{code:04x}"
    return f"\\u{0xD800 + (code - 0x10000 >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
