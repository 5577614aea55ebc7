"""Records of a zip that `torch.save` or TorchScript wrote, read within bounds and held to their checksums.

The directory at the end says where each record lies, and may be damaged or lie: a record counts only where its own
header has the name that the directory gives it, where no other record lies, and where its bytes have the checksum.
"""

from __future__ import annotations

import io
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import torch

_MOST_AT_ONCE = 16 << 20
"""bytes of a directory, some 200,000 records"""
_MOST_RATIO, _ROOM = 8, 64 << 20
_HEADER, _SIZES = 30, struct.Struct("<HH")
_MOST_SMALL = 128 << 20
_STEP = 1 << 20


def room(path: Path) -> int:
    """Bytes that may be made of a file: eight times its own, and 64 MiB."""
    return _MOST_RATIO * path.stat().st_size + _ROOM


class _File(io.FileIO):
    """A file of which no more is read at once than a sound directory has."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MOST_AT_ONCE:
            raise zipfile.BadZipFile(f"a directory of {size:,} bytes")
        return super().read(-1 if size is None else size)

    def seek(self, position: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_SET and not 0 <= position <= sys.maxsize:
            raise zipfile.BadZipFile("a record that begins outside the file")
        return super().seek(position, whence)


class Records:
    """The records of a zip by name. `BadZipFile` for names that stand twice, overlaps, and more than `room`."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._zip = zipfile.ZipFile(file)
        entries = self._zip.infolist()
        self._entries = {entry.filename: entry for entry in entries}
        if len(self._entries) < len(entries):
            raise zipfile.BadZipFile("a record's name stands twice")
        ordered = sorted(entries, key=lambda entry: entry.header_offset)
        for entry, after in pairwise(ordered):
            end = entry.header_offset + _HEADER + len(entry.orig_filename) + entry.compress_size
            if end > after.header_offset:
                raise zipfile.BadZipFile(f"{entry.filename} overlaps {after.filename}")
        if sum(entry.file_size for entry in entries) > room(path):
            raise zipfile.BadZipFile("records that are far larger than the file")
        for entry in entries:
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise zipfile.BadZipFile(f"{entry.filename} is compressed as torch.save never does")
            if entry.CRC == 0:  # as `torch.serialization.set_crc32_options(False)` leaves it
                entry.CRC = None  # type: ignore[assignment]
        self._mapped: Any = None

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def read(self, name: str) -> bytes:
        """The bytes of a small record, at most 128 MiB."""
        if self._entries[name].file_size > _MOST_SMALL:
            raise zipfile.BadZipFile(f"{name} has more than {_MOST_SMALL:,} bytes")
        return bytes(self._copied(self._entries[name]))

    def storage(self, name: str) -> torch.UntypedStorage:
        """The bytes of a record: a part of the mapped file, or a copy where it is compressed or out of alignment."""
        entry = self._entries[name]
        if entry.compress_type == zipfile.ZIP_STORED and entry.file_size > 0:
            start = self._start(entry)
            if start % 16 == 0:
                return self._part(entry, start)
        content = self._copied(entry)
        return torch.frombuffer(content, dtype=torch.uint8).untyped_storage() if content else torch.UntypedStorage(0)

    def _start(self, entry: zipfile.ZipInfo) -> int:
        self._zip.open(entry).close()  # compares the names
        self._file.seek(entry.header_offset)
        return entry.header_offset + _HEADER + sum(_SIZES.unpack(self._file.read(_HEADER)[26:]))

    def _part(self, entry: zipfile.ZipInfo, start: int) -> torch.UntypedStorage:
        if entry.compress_size != entry.file_size:
            raise zipfile.BadZipFile(f"{entry.filename} is not compressed, but has two sizes")
        if self._mapped is None:
            self._mapped = torch.UntypedStorage.from_file(str(self._path), False, self._path.stat().st_size)
        if start + entry.file_size > self._mapped.nbytes():
            raise zipfile.BadZipFile(f"{entry.filename} ends beyond the file")
        part: torch.UntypedStorage = self._mapped[start : start + entry.file_size]
        content: Any = torch.empty(0, dtype=torch.uint8).set_(part).numpy()
        if entry.CRC is not None and zlib.crc32(content) != entry.CRC:
            raise zipfile.BadZipFile(f"{entry.filename} has another checksum than the file says")
        return part

    def _copied(self, entry: zipfile.ZipInfo) -> bytearray:
        content = bytearray()
        try:
            with self._zip.open(entry) as stream:  # in steps, since what is compressed may go on for ever
                while chunk := stream.read(_STEP):
                    content += chunk
        except zlib.error as error:
            raise zipfile.BadZipFile(f"{entry.filename}: {error}") from None
        if len(content) != entry.file_size:
            raise zipfile.BadZipFile(f"{entry.filename} has {len(content):,} bytes, not {entry.file_size:,}")
        return content


@contextmanager
def opened(path: Path) -> Iterator[Records]:
    """The records of the zip at `path`."""
    with _File(path) as file:
        yield Records(path, file)
