"""TensorBoard event files, written without TensorBoard: scalars only, each on disk as soon as it is known.

A file is a sequence of records: length, masked CRC-32C of it, data, masked CRC-32C of the data. The data is
an `Event` message of tensorboard/compat/proto/event.proto in protocol-buffer encoding.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path
from types import TracebackType

from soupkit.events import Event, Measured, Report, Scored

_NUMBERS = count()
_POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), reflected
_MASK = 0xA282EAD8


class EventFile:
    """Context manager: a new event file in `directory`, to which scalars are appended.

    Whoever watches the directory sees each at once; a reader skips a record that a kill cut off.
    """

    def __init__(self, directory: Path, *, clock: Callable[[], float] = time.time) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(clock())}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS)}"
        self.path = directory / name
        self._clock = clock
        self._file = self.path.open("xb", buffering=0)
        self._append(_text(3, "brain.Event:2"))

    def __enter__(self) -> EventFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._file.close()

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Append one point of the curve `tag`."""
        value_message = _text(1, tag) + _key(2, 5) + struct.pack("<f", value)
        self._append(_key(2, 0) + _varint(step) + _bytes(5, _bytes(1, value_message)))

    def _append(self, content: bytes) -> None:
        data = _key(1, 1) + struct.pack("<d", self._clock()) + content
        length = struct.pack("<Q", len(data))
        self._file.write(length + _checksum(length) + data + _checksum(data))


def watched(report: Report, file: EventFile) -> Report:
    """The same report, with numbers also written as curves: what is measured, and the scores at the last
    step."""
    last = 0

    def hear(event: Event) -> None:
        nonlocal last
        if isinstance(event, Measured):
            last = event.step
            file.scalar(event.name, event.value, event.step)
        elif isinstance(event, Scored):
            beside = event.note.partition("/")[2]  # run-003/ema: the score of an average
            file.scalar("/".join(filter(None, (event.name, event.metric, beside))), event.value, last)
        report(event)

    return hear


def _key(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _bytes(field: int, content: bytes) -> bytes:
    return _key(field, 2) + _varint(len(content)) + content


def _text(field: int, text: str) -> bytes:
    return _bytes(field, text.encode())


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def _checksum(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF)


def crc32c(data: bytes) -> int:
    """The CRC-32C of some bytes (RFC 3720, appendix B.4)."""
    table, crc = _table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


@cache
def _table() -> list[int]:
    table = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ _POLYNOMIAL * (number & 1)
        table.append(number)
    return table
