"""The zip archives of torch.save, checked before torch may map them: their directory, and every byte by its
CRC32.

torch.load(mmap=True) takes from the whole file as many bytes as a storage needs, from where its record
begins. It looks neither at the record's size nor at its checksum, nor whether it is compressed; so all of
that is looked at here.
"""

from __future__ import annotations

import os
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from soupkit.checkpoint.formats.inert import MAX_PICKLE_BYTES, Unreadable, read_inert
from soupkit.checkpoint.formats.storages import Storages, damaged
from soupkit.errors import CheckpointError

CHUNK = 1 << 20
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_END_BYTES = 22
_ENCRYPTED, _DESCRIPTOR, _UTF8, _FOLDER = 0x1, 0x8, 0x800, 0x10


@dataclass(frozen=True)
class Archive:
    """What the directory of a checked archive says.

    records: by name within the archive's folder (`data.pkl`, `data/0`, …). is_mappable: whether the bytes of
    a storage are those of the file. has_checksums: False where the writer was told to leave them out.
    num_bytes: of all records.
    """

    path: Path
    records: Mapping[str, zipfile.ZipInfo]
    is_mappable: bool
    has_checksums: bool

    @property
    def num_bytes(self) -> int:
        return sum(record.file_size for record in self.records.values())


def is_zip(path: Path) -> bool:
    """Whether a file begins as a zip archive does."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def check_archive(path: Path, *, advance: Callable[[int], None] = lambda _num_bytes: None) -> Archive:
    """Walk the directory of an archive and read all its records once, in order; advance counts their bytes.

    Raises CheckpointError for a record that is encrypted, overlapping, not where the directory says, of
    another size than the storage that it holds, twice there, or of another CRC32, and for a data.pkl that is
    too large to unpickle. Memory: data.pkl and one chunk. Cost: one sequential read, which leaves the file in
    the page cache.
    """
    with _damage_of(path), path.open("rb") as file, zipfile.ZipFile(file) as opened:
        archive = _read_directory(path, opened)
        starts = _check_places(archive, opened, file)
        _check_pickle_size(archive)
        contents = _Contents(file, opened, starts)
        for record in sorted(archive.records.values(), key=lambda record: record.header_offset):
            _check_contents(archive, record, contents, advance)
        known = _check_storages(archive, contents)
        mappable = archive.is_mappable and known and _is_native(archive, contents)
        return replace(archive, is_mappable=mappable)


@dataclass(frozen=True)
class Records:
    """The records of an archive whose bytes are used where they lie: {name: (start, bytes)}, and its
    data.pkl."""

    places: Mapping[str, tuple[int, int]]
    pickled: bytes


def read_records(path: Path, file: BinaryIO) -> Records:
    """The directory of an archive in an open file, checked as by `check_archive` but for what records hold.

    Raises CheckpointError, also for an archive that is compressed or of the other byte order. Memory:
    data.pkl.
    """
    with _damage_of(path), zipfile.ZipFile(file) as opened:
        archive = _read_directory(path, opened)
        starts = _check_places(archive, opened, file)
        _check_pickle_size(archive)
        contents = _Contents(file, opened, starts)
        if not archive.is_mappable or not _is_native(archive, contents):
            raise CheckpointError(
                f"{path}: is compressed, or of the other byte order: its tensors cannot be read in place",
                hint="save it again with torch.save on a machine of this kind",
            )
        places = {
            name: (starts[record.orig_filename], record.file_size) for name, record in archive.records.items()
        }
        return Records(places, b"".join(contents(archive.records["data.pkl"])))


@contextmanager
def _damage_of(path: Path) -> Iterator[None]:
    """Say of what goes wrong in an archive that it is damaged."""
    try:
        yield
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        damaged(path, str(error) or type(error).__name__)
    except (ValueError, OverflowError, UnicodeError) as error:
        damaged(path, f"its directory cannot be read: {error}")


@dataclass(frozen=True)
class _Contents:
    """The bytes of records, chunk by chunk: as they lie in the file, or inflated."""

    file: BinaryIO
    opened: zipfile.ZipFile
    starts: Mapping[str, int]

    def __call__(self, record: zipfile.ZipInfo) -> Iterator[bytes]:
        if record.compress_type != zipfile.ZIP_STORED:
            with self.opened.open(record) as inflated:
                yield from iter(lambda: inflated.read(CHUNK), b"")
            return
        start = self.starts[record.orig_filename]
        for done in range(0, record.file_size, CHUNK):
            self.file.seek(start + done)
            yield self.file.read(min(CHUNK, record.file_size - done))


def _read_directory(path: Path, opened: zipfile.ZipFile) -> Archive:
    """The records by name, without the folder that they all are in."""
    infos = opened.infolist()
    folder = infos[0].orig_filename.partition("/")[0] + "/" if infos else ""
    records: dict[str, zipfile.ZipInfo] = {}
    seen: set[str] = set()
    for info in infos:
        name = info.orig_filename
        if name.lower() in seen:
            damaged(path, f"the record {name!r} stands in it twice")
        seen.add(name.lower())
        if not name.startswith(folder) or "\0" in name:
            damaged(path, f"the record {name!r} is not in the folder of the others, {folder!r}")
        if info.file_size and info.external_attr & _FOLDER:
            damaged(path, f"the record {name!r} is marked as a folder, of which torch reads nothing")
        if info.flag_bits & _ENCRYPTED:
            damaged(path, f"the record {name!r} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            damaged(path, f"the record {name!r} is compressed in a way that torch does not know")
        records[name.removeprefix(folder)] = info
    if "data.pkl" not in records:
        raise CheckpointError(
            f"{path}: is a zip archive, but not one of torch.save: it holds no data.pkl",
            hint="if it is an archive of checkpoints, unpack it and convert what is inside",
        )
    stored = all(info.compress_type == zipfile.ZIP_STORED for info in infos)
    checksums = any(info.CRC for info in infos)
    return Archive(path, records, is_mappable=stored, has_checksums=checksums)


def _check_places(archive: Archive, opened: zipfile.ZipFile, file: BinaryIO) -> dict[str, int]:
    """Every record must lie where the directory says, after its own header, apart from all others: {name:
    start}."""
    end, starts = 0, dict[str, int]()
    _check_end(archive.path, file)
    for record in sorted(archive.records.values(), key=lambda record: record.header_offset):
        name = record.orig_filename
        if record.header_offset < end:
            damaged(archive.path, f"the record {name!r} overlaps the one before it")
        if not starts and record.header_offset:
            damaged(archive.path, f"{record.header_offset} bytes before its first record belong to no record")
        starts[name] = data_start(archive.path, record, file)
        end = starts[name] + record.compress_size
        if end > opened.start_dir:
            damaged(archive.path, f"the record {name!r} runs past the end of the data")
        if record.compress_type == zipfile.ZIP_STORED and record.compress_size != record.file_size:
            damaged(archive.path, f"the record {name!r} is not compressed, yet has two sizes")
    return starts


def _check_end(path: Path, file: BinaryIO) -> None:
    """Behind the directory nothing may follow: readers that search for it from the end could find another."""
    file.seek(-_END_BYTES, os.SEEK_END)
    end = file.read(_END_BYTES)
    if not end.startswith(b"PK\x05\x06") or end[-2:] != b"\0\0":
        damaged(path, "something follows the end of its directory")


def data_start(path: Path, record: zipfile.ZipInfo, file: BinaryIO) -> int:
    """Where a record's bytes begin; its own header must tell the same of it as the directory."""
    name = record.orig_filename
    file.seek(record.header_offset)
    head = _LOCAL.unpack(file.read(_LOCAL.size))
    signature, _, flags, method, _, _, crc, packed, size, name_length, extra_length = head
    own_name = file.read(name_length)
    told = (record.CRC, record.compress_size, record.file_size)
    wide = 0xFFFFFFFF
    same = all(own in (said, wide) for own, said in zip((crc, packed, size), told, strict=True))
    if flags & _DESCRIPTOR:
        same = same or (crc, packed, size) == (0, 0, 0)
    encoded = name.encode("utf-8" if flags & _UTF8 else "cp437")
    if signature != b"PK\x03\x04" or own_name != encoded or method != record.compress_type or not same:
        damaged(path, f"the record {name!r} and the archive's directory do not tell the same")
    start: int = record.header_offset + _LOCAL.size + name_length + extra_length
    return start


def _check_pickle_size(archive: Archive) -> None:
    size = archive.records["data.pkl"].file_size
    if size > MAX_PICKLE_BYTES:
        raise CheckpointError(
            f"{archive.path}: its data.pkl, which names the tensors, has {size:,} bytes; "
            f"{MAX_PICKLE_BYTES:,} are the most that soupkit unpickles",
            hint="save the state dict alone, torch.save(model.state_dict(), PATH), in the program that "
            "wrote this file",
        )
    inflated = sum(record.file_size for record in archive.records.values())
    if not archive.is_mappable and inflated > _memory_bytes():
        raise CheckpointError(
            f"{archive.path}: is compressed, and takes {inflated:,} bytes when it is not; this machine "
            f"has less memory",
            hint="unpack the archive and pack it again without compression: zip -r0 NEW.pt FOLDER",
        )


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize


def _check_contents(
    archive: Archive, record: zipfile.ZipInfo, contents: _Contents, advance: Callable[[int], None]
) -> None:
    """Read a record to its end: its size and its CRC32 must be those of the directory."""
    size, crc = 0, 0
    for chunk in contents(record):
        size += len(chunk)
        crc = zlib.crc32(chunk, crc)
        advance(len(chunk))
    if size != record.file_size:
        damaged(archive.path, f"the record {record.orig_filename!r} holds {size} of {record.file_size} bytes")
    if archive.has_checksums and crc != record.CRC:
        damaged(
            archive.path, f"the record {record.orig_filename!r} is not what was written: its CRC32 is another"
        )


def _is_native(archive: Archive, contents: _Contents) -> bool:
    """Whether the bytes are in the order of this machine; else torch turns them around, in memory of its
    own."""
    record = archive.records.get("byteorder")
    return record is None or b"".join(contents(record)) == sys.byteorder.encode()


def _check_storages(archive: Archive, contents: _Contents) -> bool:
    """Every storage must have a record of its size. False where the pickle cannot be followed: torch then
    checks."""
    content = b"".join(contents(archive.records["data.pkl"]))
    storages = Storages(archive.path)
    try:
        read_inert(content, archive.path, storage=storages)
    except Unreadable:  # torch's own reader says what is wrong with a pickle
        return False
    for key, size in storages.found.items():
        name = f"data/{key}"
        record = archive.records.get(name)
        if record is None:
            damaged(archive.path, f"the record {name!r} of a tensor is missing")
        if record.file_size != size:
            damaged(
                archive.path, f"the record {name!r} has {record.file_size} bytes, its tensor needs {size}"
            )
    return True
