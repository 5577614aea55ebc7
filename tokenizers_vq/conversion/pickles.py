"""Files of `torch.save`, its zip format and the two before, read without running what they hold (see `unpickling`)."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from tokenizers_vq.conversion import zips
from tokenizers_vq.conversion.unpickling import (
    DTYPES,
    LARGEST,
    MOST_DIMENSIONS,
    MOST_PARTS,
    Inert,
    Name,
    Storage,
    Unpickler,
    as_tensor,
)
from tokenizers_vq.text import printable

_MAGIC = 0x1950A86A20F9469CFC6C
_ERRORS = (
    pickle.UnpicklingError, zipfile.BadZipFile, tarfile.TarError, EOFError, KeyError, IndexError, TypeError, ValueError,
    AttributeError, AssertionError, NotImplementedError, OverflowError, MemoryError, RuntimeError, struct.error,
    zlib.error,
)  # fmt: skip
_MOST_COUNTED, _MOST_SAID = 100_000, 300


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
            return _read_tar(file) if _is_tar(file) else _read_stream(file)
        except _ERRORS as error:
            what = printable(" ".join(str(error).split())[:_MOST_SAID]) or type(error).__name__
            raise ValueError(f"{path} is truncated or not a file of torch.save ({what}): download it again") from None


def _is_tar(file: BinaryIO) -> bool:
    try:
        tarfile.open(fileobj=file, mode="r:").close()  # `is_tarfile` would try what is compressed as well
    except tarfile.TarError:
        return False
    finally:
        file.seek(0)
    return True


def _storage_of(pid: Any, load: Callable[[str, torch.dtype, int], torch.UntypedStorage]) -> tuple[Any, Any]:
    """The storage of a persistent id and, where it is part of another, that part's place; or what is no storage."""
    if not isinstance(pid, tuple) or len(pid) > MOST_PARTS:
        raise pickle.UnpicklingError(f"a persistent id that is a {type(pid).__name__}")
    kind, *rest = pid
    if kind in ("module", b"module"):
        return rest[0], None
    storage_type, key, _location, numel, *view = rest
    dtype = DTYPES.get(storage_type.name) if isinstance(storage_type, Name) else None
    if kind not in ("storage", b"storage") or dtype is None:
        return Inert(storage_type, tuple(rest)), None
    if type(numel) is not int or not 0 <= numel < LARGEST:
        raise pickle.UnpicklingError("a storage of negative or immense size")
    return Storage(load(_key(key), dtype, numel), dtype), view[0] if view else None


def _read_zip(path: Path) -> Any:
    loaded: dict[str, torch.UntypedStorage] = {}
    with zips.opened(path) as records:
        pickles = sorted((name for name in records if name.split("/")[-1] == "data.pkl"), key=len)
        if not pickles:
            raise pickle.UnpicklingError("a zip without data.pkl")
        folder = pickles[0][: -len("data.pkl")]
        order = f"{folder}byteorder"
        if order in records and records.read(order) != b"little":
            raise pickle.UnpicklingError("big-endian tensors")

        def load(key: str, dtype: torch.dtype, numel: int) -> torch.UntypedStorage:
            if key not in loaded:
                loaded[key] = records.storage(f"{folder}data/{key}")
            if loaded[key].nbytes() < numel * dtype.itemsize:
                raise pickle.UnpicklingError(f"record {key} has {loaded[key].nbytes()} bytes for {numel} of {dtype}")
            return loaded[key]

        content = io.BytesIO(records.read(pickles[0]))
        return Unpickler(content, lambda pid: _storage_of(pid, load)[0]).load()


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
        return views.setdefault(_key(key), _part(storage, offset, numel))

    content = Unpickler(file, resolve).load()
    keys = Unpickler(file).load()
    if not isinstance(keys, list) or sorted(map(_key, keys)) != sorted(storages):
        raise pickle.UnpicklingError("other storages than its tensors have")
    for key in map(_key, keys):
        _fill(file, storages[key])
    return content


def _key(key: Any) -> str:
    if not isinstance(key, (str, int)):
        raise pickle.UnpicklingError(f"a storage named by a {type(key).__name__}")
    return str(key)


def _part(storage: Storage, offset: Any, numel: Any) -> Storage:
    width = storage.dtype.itemsize
    if not all(type(n) is int and 0 <= n < LARGEST for n in (offset, numel)) or (offset + numel) * width > (
        storage.content.nbytes()
    ):
        raise pickle.UnpicklingError("a view that ends outside its storage")
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
    objects: dict[str, Any] = {}
    room = _left(file)
    with tarfile.open(fileobj=file, mode="r:") as tar:

        def member(name: str) -> BinaryIO:
            entry = tar.getmember(name)
            found = tar.extractfile(entry) if entry.isreg() and not entry.issparse() and entry.size <= room else None
            if found is None:
                raise tarfile.TarError(f"{name} is not a plain file")
            return io.BytesIO(found.read())

        part = member("storages")
        for _ in range(_count(part)):
            key, _location, kind = Unpickler(part).load()
            (numel,) = struct.unpack("<q", part.read(8))
            dtype = DTYPES[kind.name]
            objects[_key(key)] = Storage(_copied(part.read(max(numel, 0) * dtype.itemsize)), dtype)
        for target, root, offset, numel in Unpickler(part).load():
            objects[_key(target)] = _part(objects[_key(root)], offset, numel)
        part = member("tensors")
        for _ in range(_count(part)):
            key, storage, _kind = Unpickler(part).load()
            (dims,) = struct.unpack("<ixxxx", part.read(8))
            if not 0 <= dims <= MOST_DIMENSIONS:
                raise pickle.UnpicklingError(f"a tensor of {dims} dimensions")
            size, stride = (struct.unpack(f"<{dims}q", part.read(8 * dims)) for _ in range(2))
            (offset,) = struct.unpack("<q", part.read(8))
            objects[_key(key)] = as_tensor(objects[_key(storage)], offset, size, stride)
        return Unpickler(member("pickle"), lambda pid: pid[0] if isinstance(pid, tuple) else objects[_key(pid)]).load()


def _count(part: BinaryIO) -> int:
    count = Unpickler(part).load()
    if type(count) is not int or not 0 <= count <= _MOST_COUNTED:
        raise pickle.UnpicklingError("a negative or immense number of entries")
    return count
