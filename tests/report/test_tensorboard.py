"""Event files: read back byte by byte here, and by TensorBoard itself where it is installed."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from soupkit.events import Event, Measured, Scored, Told
from soupkit.report.tensorboard import EventFile, crc32c, watched

CURVE = [("train/loss", 2.5, 10), ("train/loss", 1.25, 300), ("held_out/top1", 0.5, 1 << 40)]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    with EventFile(tmp_path / "run", clock=lambda: 1234.5) as file:
        for point in CURVE:
            file.scalar(*point)
    return file.path


def unmasked(masked: int) -> int:
    rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


def records(data: bytes) -> Iterator[bytes]:
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert unmasked(struct.unpack("<I", data[8:12])[0]) == crc32c(data[:8])
        content, data = data[12 : 12 + length], data[12 + length :]
        assert unmasked(struct.unpack("<I", data[:4])[0]) == crc32c(content)
        data = data[4:]
        yield content


def fields(data: bytes) -> dict[int, Any]:
    """One protocol-buffer message, every field once."""
    found: dict[int, Any] = {}

    def varint() -> int:
        nonlocal data
        number = shift = 0
        while True:
            byte, data = data[0], data[1:]
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number

    while data:
        number, wire = divmod(varint(), 8)
        if wire == 0:
            found[number] = varint()
            continue
        size = {1: 8, 2: 0, 5: 4}[wire] or varint()
        found[number], data = data[:size], data[size:]
    return found


def test_crc32c_of_the_standard() -> None:
    """RFC 3720, appendix B.4."""
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"123456789") == 0xE3069283


def test_the_records_are_events(written: Path) -> None:
    first, *rest = map(fields, records(written.read_bytes()))
    assert first[3] == b"brain.Event:2"
    found = []
    for event in rest:
        value = fields(fields(event[5])[1])
        found.append((value[1].decode(), struct.unpack("<f", value[2])[0], event[2]))
        assert struct.unpack("<d", event[1])[0] == 1234.5
    assert found == CURVE
    assert written.name.startswith("events.out.tfevents.1234.")


def test_tensorboard_reads_them(written: Path) -> None:
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = module.EventAccumulator(str(written.parent))
    accumulator.Reload()
    points = [(tag, point.value, point.step) for tag in ("train/loss", "held_out/top1")
              for point in accumulator.Scalars(tag)]  # fmt: skip
    assert points == CURVE


def test_each_point_is_on_disk_at_once(tmp_path: Path) -> None:
    with EventFile(tmp_path) as file:
        before = file.path.stat().st_size
        file.scalar("a", 1.0, 1)
        assert file.path.stat().st_size > before


def test_what_is_reported_becomes_curves(tmp_path: Path) -> None:
    heard: list[Event] = []
    events = [
        Told("hello"),
        Measured("train/loss", 0.75, 12),
        Scored("held_out", "top1", 0.5, 0.1, 25, "run-003"),
        Scored("test", "top1", 0.25, 0.1, 25, "run-003/ema"),
    ]
    with EventFile(tmp_path) as file:
        report = watched(heard.append, file)
        for event in events:
            report(event)
    assert heard == events
    _, *rest = map(fields, records(file.path.read_bytes()))
    values = [(fields(fields(event[5])[1]), event[2]) for event in rest]
    assert [(value[1].decode(), struct.unpack("<f", value[2])[0], step) for value, step in values] == [
        ("train/loss", 0.75, 12), ("held_out/top1", 0.5, 12), ("test/top1/ema", 0.25, 12),
    ]  # fmt: skip
