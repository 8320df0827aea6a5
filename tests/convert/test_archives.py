"""The zip archive around a state dict: damage that torch.load does not see gives an error, never other
values."""

import io
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from convert.pickled import save

from soupkit.checkpoint.formats import archive as archives
from soupkit.checkpoint.formats.archive import check_archive
from soupkit.cli.app import run_command_line
from soupkit.errors import CheckpointError
from soupkit.events import Advanced, Event
from soupkit.jobs.files.convert import convert
from soupkit.recipe.hub import Convert
from soupkit.world import World

VALUES = {"a": torch.arange(1000.0), "b": torch.full((500,), 2.0), "c": torch.tensor(3)}


def taken(path: Path, out: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    events: list[Event] = []
    convert(Convert(refs=(str(path),), out=out), World(threads=1), events.append)
    return load_file(out / "model.safetensors")


def assert_refused(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        convert(Convert(refs=(str(path),), out=path.parent / "out"), World(threads=1), lambda _event: None)
    assert not (path.parent / "out").exists()


def contents_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def pack(path: Path, records: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return path


def repacked(
    tmp_path: Path, change: Callable[[dict[str, bytes]], None], method: int = zipfile.ZIP_STORED
) -> Path:
    """The archive of VALUES with other contents, all in order as zip archives go."""
    records = contents_of(save(VALUES, tmp_path / "m.pt"))
    change(records)
    return pack(tmp_path / "m.pt", records, method)


def data_at(path: Path, name: str) -> int:
    """Where the bytes of a record begin."""
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo(name).header_offset
    raw = path.read_bytes()
    lengths = struct.unpack_from("<HH", raw, start + 26)
    return start + 30 + sum(lengths)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize("repack", [False, True])
def test_whole_archives_give_the_values_of_torch_load(tmp_path: Path, method: int, repack: bool) -> None:
    path = save(VALUES, tmp_path / "m.pt")
    if repack:
        path = repacked(tmp_path, lambda records: None, method)
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
    found, expected = taken(path, tmp_path / "out"), torch.load(path, weights_only=True)
    assert found.keys() == expected.keys() == VALUES.keys()
    for name, tensor in VALUES.items():
        assert torch.equal(found[name], tensor)
        assert torch.equal(expected[name], tensor)


@pytest.mark.parametrize("record", ["m/data/0", "m/data/2", "m/data.pkl", "m/version"])
@pytest.mark.parametrize("damage", ["one bit", "zeros"])
def test_damaged_bytes_are_refused_by_their_checksum(tmp_path: Path, record: str, damage: str) -> None:
    path = save(VALUES, tmp_path / "m.pt")
    raw, at = bytearray(path.read_bytes()), data_at(path, record)
    if damage == "one bit":
        raw[at] ^= 1
    else:
        raw[at : at + 2] = b"\0\0" if raw[at : at + 2] != b"\0\0" else b"\1\1"
    path.write_bytes(raw)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() == record
    assert_refused(path, f"{record}.*CRC32 is another")


def test_a_record_that_is_too_short_or_too_long_is_refused(tmp_path: Path) -> None:
    """torch maps as many bytes as the storage needs: the rest would be those of the next record."""

    def halve(records: dict[str, bytes]) -> None:
        records["m/data/0"] = records["m/data/0"][:2000]

    def lengthen(records: dict[str, bytes]) -> None:
        records["m/data/0"] += b"\0" * 4

    assert_refused(repacked(tmp_path, halve), r"'data/0' has 2000 bytes, its tensor needs 4000")
    assert_refused(repacked(tmp_path, lengthen), r"'data/0' has 4004 bytes, its tensor needs 4000")
    assert_refused(
        repacked(tmp_path, halve, zipfile.ZIP_DEFLATED), r"'data/0' has 2000 bytes, its tensor needs 4000"
    )
    assert_refused(
        repacked(tmp_path, lambda records: records.pop("m/data/1") and None), r"'data/1' of a tensor is miss"
    )


def test_the_archive_may_hold_nothing_twice_and_nothing_foreign(tmp_path: Path) -> None:
    path = save(VALUES, tmp_path / "m.pt")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("m/data/1", struct.pack("<500f", *[7.0] * 500))
    assert_refused(path, r"'m/data/1' stands in it twice")
    with zipfile.ZipFile(save(VALUES, path), "a") as archive:
        archive.writestr("M/DATA/1", b"x")
    assert_refused(path, r"'M/DATA/1' stands in it twice")
    with zipfile.ZipFile(save(VALUES, path), "a") as archive:
        archive.writestr("other/data/1", b"x")
    assert_refused(path, r"'other/data/1' is not in the folder of the others, 'm/'")
    assert_refused(pack(path, {"m/other": b"x"}), "is a zip archive, but not one of torch.save")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path: Path, method: int) -> None:
    assert_refused(
        repacked(tmp_path, lambda records: None, method), "compressed in a way that torch does not know"
    )


def _overwrite(path: Path, at: int, content: bytes) -> None:
    raw = bytearray(path.read_bytes())
    raw[at : at + len(content)] = content
    path.write_bytes(raw)


def test_local_headers_and_the_directory_must_agree(tmp_path: Path) -> None:
    def fresh() -> tuple[Path, int, int]:
        """A packed archive, and where data/0 stands in it: its own header and its entry in the directory."""
        path = repacked(tmp_path, lambda records: None)
        raw = path.read_bytes()
        return path, raw.find(b"m/data/0") - 30, raw.rfind(b"m/data/0") - 46

    path, local, _ = fresh()
    _overwrite(path, local + 14, struct.pack("<I", 1))
    assert_refused(path, r"'m/data/0' and the archive's directory do not tell the same")
    path, local, _ = fresh()
    _overwrite(path, local + 30, b"m/data/1")
    assert_refused(path, "do not tell the same")
    path, _, central = fresh()
    _overwrite(path, central + 42, struct.pack("<I", 5))
    assert_refused(path, r"m.pt: is damaged")
    path, _, central = fresh()
    _overwrite(path, central + 8, struct.pack("<H", 1))
    assert_refused(path, r"'m/data/0' is encrypted")
    path, _, central = fresh()
    _overwrite(path, central + 20, struct.pack("<II", 8000, 8000))
    assert_refused(path, "do not tell the same|overlaps")


def test_a_record_that_is_marked_as_a_folder_is_refused(tmp_path: Path) -> None:
    """torch.load reads zeros in its place; found by the fuzzer."""
    path = tmp_path / "m.pt"
    records = contents_of(save(VALUES, path))
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = 0x10 if name.endswith("data/2") else 0
            archive.writestr(info, content)
    assert_refused(path, "data/2' is marked as a folder")


def test_an_entry_that_points_to_another_record_is_refused(tmp_path: Path) -> None:
    """Two storages of one size, both entries for the first one's bytes: every CRC would be right."""
    values = {"a": torch.zeros(4), "b": torch.ones(4)}
    path = pack(tmp_path / "m.pt", contents_of(save(values, tmp_path / "m.pt")))
    raw = bytearray(path.read_bytes())
    first, second = raw.rfind(b"m/data/0") - 46, raw.rfind(b"m/data/1") - 46
    raw[second + 16 : second + 20] = raw[first + 16 : first + 20]
    raw[second + 42 : second + 46] = raw[first + 42 : first + 46]
    path.write_bytes(raw)
    assert_refused(path, "overlaps the one before it")


@pytest.mark.parametrize(("where", "message"), [("before", "m.pt: "), ("after", "something follows the end")])
def test_nothing_may_stand_before_or_after_the_archive(tmp_path: Path, where: str, message: str) -> None:
    """Two archives in a row: one reader takes the last directory, another the first one's places."""
    other = save({name: tensor + 1 for name, tensor in VALUES.items()}, tmp_path / "o.pt").read_bytes()
    path = save(VALUES, tmp_path / "m.pt")
    path.write_bytes(other + path.read_bytes() if where == "before" else path.read_bytes() + b"\0" * 30)
    assert_refused(path, message)


@pytest.mark.parametrize("cut", [1, 30, 300, 3000])
def test_a_cut_archive_is_refused(tmp_path: Path, cut: int) -> None:
    path = save(VALUES, tmp_path / "m.pt")
    path.write_bytes(path.read_bytes()[:-cut])
    assert_refused(path, r"m.pt: is damaged")


def test_zip64_and_data_descriptors_are_read(tmp_path: Path) -> None:
    records = contents_of(save(VALUES, tmp_path / "m.pt"))
    with zipfile.ZipFile(tmp_path / "wide.pt", "w") as archive:
        for name, content in records.items():
            with archive.open(name, "w", force_zip64=True) as file:
                file.write(content)

    class Unseekable(io.RawIOBase):
        def __init__(self, file: io.BufferedWriter) -> None:
            self.file = file

        def write(self, content: bytes) -> int:  # type: ignore[override]
            return self.file.write(content)

        def writable(self) -> bool:
            return True

    with (tmp_path / "piped.pt").open("wb") as file, zipfile.ZipFile(Unseekable(file), "w") as archive:  # type: ignore[type-var]
        for name, content in records.items():
            archive.writestr(name, content)
    with zipfile.ZipFile(tmp_path / "piped.pt") as archive:
        assert archive.infolist()[0].flag_bits & 8
    for name in ("wide", "piped"):
        found = taken(tmp_path / f"{name}.pt", tmp_path / f"out-{name}")
        assert all(torch.equal(found[key], VALUES[key]) for key in VALUES)


def test_the_other_byte_order_is_turned_around_even_in_shared_storages(tmp_path: Path) -> None:
    """Pages that were turned around in place must not be given back: the file holds them as they were."""
    whole = torch.arange(100_000, dtype=torch.float32)
    values = {"whole": whole, "half": whole[50_000:], "double": torch.arange(5.0).double()}
    records = contents_of(save(values, tmp_path / "m.pt"))
    other = "big" if sys.byteorder == "little" else "little"
    records["m/byteorder"] = other.encode()
    for name, size in (("m/data/0", 4), ("m/data/1", 8)):
        raw = records[name]
        records[name] = b"".join(raw[at : at + size][::-1] for at in range(0, len(raw), size))
    found = taken(pack(tmp_path / "m.pt", records), tmp_path / "out")
    assert found.keys() == values.keys()
    for name, tensor in values.items():
        assert torch.equal(found[name], tensor), name


def test_archives_that_were_written_without_checksums_are_taken(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = save(VALUES, tmp_path / "m.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert not check_archive(path).has_checksums
    found = taken(path, tmp_path / "out")
    assert all(torch.equal(found[key], VALUES[key]) for key in VALUES)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_huge_pickle_is_refused_before_it_is_read(
    tmp_path: Path, method: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MAX_PICKLE_BYTES", 10_000)

    def grow(records: dict[str, bytes]) -> None:
        records["m/data.pkl"] = b"\x80\x02" + b"N0" * 10_000 + b"N."

    path = repacked(tmp_path, grow, method)
    monkeypatch.setattr(zlib, "crc32", lambda *_: pytest.fail("it was read"))
    assert_refused(path, r"data.pkl, which names the tensors, has 20,004 bytes; 10,000 are the most")


def test_a_compressed_archive_that_memory_cannot_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "_memory_bytes", lambda: 5_000)
    path = repacked(tmp_path, lambda records: None, zipfile.ZIP_DEFLATED)
    assert_refused(
        path, r"is compressed, and takes 6,\d\d\d bytes when it is not; this machine has less memory"
    )


def test_the_check_is_seen_to_go_on(tmp_path: Path) -> None:
    path, events = save(VALUES, tmp_path / "m.pt"), list[Event]()
    convert(Convert(refs=(str(path),), out=tmp_path / "out"), World(threads=1), events.append)
    checked = sum(event.by for event in events if isinstance(event, Advanced) and event.task == "checking")
    assert checked == sum(map(len, contents_of(path).values()))


def test_a_file_that_changes_while_it_is_converted_is_refused(tmp_path: Path) -> None:
    path = save(VALUES, tmp_path / "m.pt")
    other = save({name: tensor + 1 for name, tensor in VALUES.items()}, tmp_path / "o.pt").read_bytes()

    def rewrite(event: Event) -> None:
        if isinstance(event, Advanced) and event.task == "converting" and path.read_bytes() != other:
            with path.open("r+b") as file:
                file.write(other)

    with pytest.raises(CheckpointError, match="was replaced, changed or removed while it was read"):
        convert(Convert(refs=(str(path),), out=tmp_path / "out"), World(threads=1), rewrite)
    assert not (tmp_path / "out").exists()


def test_on_the_command_line_it_is_an_error_with_a_hint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(VALUES, tmp_path / "m.pt")
    _overwrite(path, data_at(path, "m/data/0"), b"\1\2\3\4")
    assert run_command_line(["convert", str(path), "--out", str(tmp_path / "out")]) == 1
    text = capsys.readouterr().err
    assert "is not what was written" in text
    assert "hint: download it again" in text
