"""Files of `torch.save`, its zip format and the two before, read without running what they hold (see `unpickling`)."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from tokenizers_vq.conversion.unpickling import DTYPES, Inert, Name, Storage, Unpickler, as_tensor

_MAGIC = 0x1950A86A20F9469CFC6C
_ERRORS = (
    pickle.UnpicklingError, zipfile.BadZipFile, tarfile.TarError, EOFError, KeyError, IndexError, TypeError, ValueError,
    AttributeError, AssertionError, NotImplementedError, OverflowError, MemoryError, RuntimeError, struct.error,
)  # fmt: skip
_MOST_NAMES = 1_000_000


def read(path: Path) -> Any:
    """What a file of `torch.save`, or a plain pickle, holds; objects of classes that are not known are `Inert`.

    Tensors lie on the CPU, in the dtype of the file; those of a zip are mapped from it. Raises `ValueError` for a file
    that is truncated, malformed or no pickle.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the checkpoint in it")
    with path.open("rb") as file:
        head = file.read(64)
        if head.startswith(b"version https://git-lfs"):
            raise ValueError(f"{path} is a pointer of Git LFS, not the file itself: download that")
        if head.lstrip()[:1] == b"<":
            raise ValueError(f"{path} is a web page, not a checkpoint: download the file itself")
        file.seek(0)
        try:
            if head.startswith(b"PK"):
                return _read_zip(path)
            if tarfile.is_tarfile(file):
                file.seek(0)
                return _read_tar(file)
            file.seek(0)
            return _read_stream(file)
        except _ERRORS as error:
            what = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{path} is truncated or no file of torch.save ({what}): download it again") from None


def module_tensors(module: Inert | Path, path: Path | None = None) -> dict[str, Tensor]:
    """Parameters and saved buffers by dotted name of a module pickled whole, as its `state_dict` would give them.

    `module` is what `read` gives for it, whose file `path` then names, or the file. Raises `ValueError` for something
    else.
    """
    content = read(module) if isinstance(module, Path) else module
    if not isinstance(content, Inert) or "_modules" not in content.attributes():
        file = module if isinstance(module, Path) else path or "the file"
        raise ValueError(
            f"{file} holds an object of {_class_of(content)}, not tensors by name; nothing of it was run: give a "
            "checkpoint of weights"
        )
    found: dict[str, Tensor] = {}
    waiting = [("", content, frozenset[int]())]
    while waiting:
        prefix, part, above = waiting.pop()
        attributes = part.attributes()
        unsaved = attributes.get("_non_persistent_buffers_set") or ()
        for kind in ("_parameters", "_buffers"):
            for name, value in _entries(attributes.get(kind)):
                if isinstance(value, Tensor) and name not in unsaved:
                    found[f"{prefix}{name}"] = value
        children = [
            (f"{prefix}{name}.", child, above | {id(part)})
            for name, child in _entries(attributes.get("_modules"))
            if isinstance(child, Inert) and id(child) not in above and child is not part
        ]
        waiting.extend(reversed(children))
        if len(found) + len(waiting) > _MOST_NAMES:
            raise ValueError("a module pickled whole that holds itself over and over: it is no checkpoint")
    return found


def _class_of(content: Any) -> str:
    if not isinstance(content, Inert):
        return type(content).__name__
    name = ".".join(content.name) if isinstance(content.name, Name) else "an unknown class"
    return " ".join(name.split())


def _entries(value: Any) -> list[tuple[str, Any]]:
    return [(str(key), entry) for key, entry in value.items()] if isinstance(value, Mapping) else []


def _storage_of(pid: Any, load: Callable[[str, torch.dtype, int], torch.UntypedStorage]) -> tuple[Any, Any]:
    """The storage of a persistent id and, where it is part of another, that part's place; or what is no storage."""
    kind, *rest = pid
    if kind in ("module", b"module"):
        return rest[0], None
    storage_type, key, _location, numel, *view = rest
    dtype = DTYPES.get(storage_type.name) if isinstance(storage_type, Name) else None
    if kind not in ("storage", b"storage") or dtype is None:
        return Inert(storage_type, tuple(rest)), None
    if type(numel) is not int or numel < 0:
        raise pickle.UnpicklingError(f"a storage of {numel} elements")
    return Storage(load(str(key), dtype, numel), dtype), view[0] if view else None


def _read_zip(path: Path) -> Any:
    loaded: dict[str, torch.UntypedStorage] = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        entries = {entry.filename: entry for entry in archive.infolist()}
        pickles = sorted((name for name in entries if name.split("/")[-1] == "data.pkl"), key=len)
        if not pickles:
            raise pickle.UnpicklingError("a zip without data.pkl")
        folder = pickles[0][: -len("data.pkl")]
        order = f"{folder}byteorder"
        if order in entries and archive.read(order) != b"little":
            raise pickle.UnpicklingError("big-endian tensors")
        mapped: Any = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)

        def load(key: str, dtype: torch.dtype, numel: int) -> torch.UntypedStorage:
            if key not in loaded:
                loaded[key] = _record(archive, entries[f"{folder}data/{key}"], file, mapped)
            if loaded[key].nbytes() < numel * dtype.itemsize:
                raise pickle.UnpicklingError(f"record {key} has {loaded[key].nbytes()} bytes for {numel} of {dtype}")
            return loaded[key]

        content = io.BytesIO(archive.read(pickles[0]))
        return Unpickler(content, lambda pid: _storage_of(pid, load)[0]).load()


def _record(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, file: BinaryIO, mapped: Any) -> torch.UntypedStorage:
    """The bytes of an entry: a part of the mapped file, or a copy where it is compressed or out of alignment."""
    if entry.compress_type == zipfile.ZIP_STORED and entry.file_size > 0:
        file.seek(entry.header_offset)
        header = file.read(30)
        if header[:4] != b"PK\x03\x04":
            raise zipfile.BadZipFile(f"no entry where {entry.filename} should begin")
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
        if start + entry.file_size > mapped.nbytes():
            raise zipfile.BadZipFile(f"{entry.filename} ends beyond the file")
        if start % 16 == 0:
            return mapped[start : start + entry.file_size]
    return _copied(archive.read(entry))


def _copied(content: bytes) -> torch.UntypedStorage:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).untyped_storage() if content else _empty(0)


def _empty(nbytes: int) -> torch.UntypedStorage:
    return torch.UntypedStorage(nbytes)


def _left(file: BinaryIO) -> int:
    here = file.tell()
    end = file.seek(0, io.SEEK_END)
    file.seek(here)
    return end - here


def _read_stream(file: BinaryIO) -> Any:
    """The format of torch < 1.6: magic number, version, system, object, keys of the storages, then their bytes."""
    first = Unpickler(file).load()
    if first != _MAGIC:
        return first  # a plain pickle
    Unpickler(file).load()
    system = Unpickler(file).load()
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise pickle.UnpicklingError("big-endian tensors")
    storages: dict[str, Storage] = {}
    views: dict[str, Storage] = {}
    room = _left(file)

    def load(key: str, dtype: torch.dtype, numel: int) -> torch.UntypedStorage:
        nonlocal room
        if key not in storages:
            room -= numel * dtype.itemsize  # allocated before its bytes are reached: never more than can come
            if room < 0:
                raise EOFError("its tensors need more bytes than it has")
            storages[key] = Storage(_empty(numel * dtype.itemsize), dtype)
        return storages[key].content

    def resolve(pid: Any) -> Any:
        storage, view = _storage_of(pid, load)
        if not isinstance(storage, Storage) or view is None:
            return storage
        key, offset, numel = view
        return views.setdefault(str(key), _part(storage, offset, numel))

    content = Unpickler(file, resolve).load()
    for key in map(str, Unpickler(file).load()):
        _fill(file, storages[key])
    return content


def _part(storage: Storage, offset: Any, numel: Any) -> Storage:
    width = storage.dtype.itemsize
    if not all(type(n) is int and n >= 0 for n in (offset, numel)) or (offset + numel) * width > (
        storage.content.nbytes()
    ):
        raise pickle.UnpicklingError(f"a view of {numel} elements from {offset} on, outside its storage")
    return storage._replace(content=storage.content[offset * width : (offset + numel) * width])


def _fill(file: BinaryIO, storage: Storage) -> None:
    """Reads the number of elements, then as many, into the storage."""
    (numel,) = struct.unpack("<q", file.read(8))
    nbytes = storage.content.nbytes()
    if numel * storage.dtype.itemsize != nbytes:
        raise pickle.UnpicklingError(f"{numel} elements where {nbytes} bytes are due")
    buffer: Any = torch.empty(0, dtype=torch.uint8).set_(storage.content).reshape(-1).numpy()
    if file.readinto(buffer) != nbytes:  # type: ignore[attr-defined]
        raise EOFError("it ends inside a tensor")


def _read_tar(file: BinaryIO) -> Any:
    """The first format of torch, a tar of `storages`, `tensors` and `pickle`."""
    objects: dict[Any, Any] = {}
    with tarfile.open(fileobj=file, mode="r:") as tar:

        def member(name: str) -> BinaryIO:
            found = tar.extractfile(name)
            if found is None:
                raise tarfile.TarError(f"{name} is no file")
            return io.BytesIO(found.read())

        part = member("storages")
        for _ in range(Unpickler(part).load()):
            key, _location, kind = Unpickler(part).load()
            (numel,) = struct.unpack("<q", part.read(8))
            dtype = DTYPES[kind.name]
            objects[key] = Storage(_copied(part.read(max(numel, 0) * dtype.itemsize)), dtype)
        for target, root, offset, numel in Unpickler(part).load():
            objects[target] = _part(objects[root], offset, numel)
        part = member("tensors")
        for _ in range(Unpickler(part).load()):
            key, storage, _kind = Unpickler(part).load()
            (dims,) = struct.unpack("<ixxxx", part.read(8))
            size, stride = (struct.unpack(f"<{dims}q", part.read(8 * dims)) for _ in range(2))
            (offset,) = struct.unpack("<q", part.read(8))
            objects[key] = as_tensor(objects[storage], offset, size, stride)
        return Unpickler(member("pickle"), lambda pid: pid[0] if isinstance(pid, tuple) else objects[int(pid)]).load()
