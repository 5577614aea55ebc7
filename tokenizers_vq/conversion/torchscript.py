"""Tensors of a TorchScript archive, read without loading or running its code."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def is_archive(path: Path) -> bool:
    """Whether the file is a TorchScript archive: a zip with code, which `torch.save` does not write."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def read(path: Path) -> dict[str, Tensor]:
    """Every tensor of the archived module by its dotted attribute name, buffers that need not be saved among them.

    Its classes become empty objects and its functions nothing at all. Raises `ValueError` for a broken archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1)
            with archive.open(name) as file:
                module = _Unpickler(file, archive, name.removesuffix("data.pkl")).load()
            return _tensors(module, "")
    except (zipfile.BadZipFile, StopIteration, KeyError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path} is a truncated or no TorchScript archive ({error}): download it again") from None


class _Object:
    """What stands for every class of the archive: its attributes."""

    def __init__(self, *arguments: Any) -> None:
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


def _tensors(value: Any, prefix: str) -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {prefix: value}
    found: dict[str, Tensor] = {}
    for name, child in getattr(value, "attributes", {}).items():
        found |= _tensors(child, f"{prefix}.{name}" if prefix else str(name))
    return found


def _nothing(*arguments: Any) -> Any:
    return arguments[0] if arguments else None


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> Tensor:
    return torch.as_strided(storage, size, stride, offset).clone()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self.archive, self.folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch._utils":
            return {"_rebuild_tensor_v2": _tensor, "_rebuild_parameter": _nothing}.get(name, _nothing)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        return type(name, (_Object,), {}) if module.startswith("__torch__") else _nothing

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, _ = pid
        content = bytearray(self.archive.read(f"{self.folder}data/{key}"))
        return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
