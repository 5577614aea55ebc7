"""Tensors of a TorchScript archive, read without loading or running its code."""

from __future__ import annotations

import zipfile
from pathlib import Path

from torch import Tensor

from tokenizers_vq.conversion import pickles


def is_archive(path: Path) -> bool:
    """Whether the file is a TorchScript archive: a zip with code, which `torch.save` does not write."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def read(path: Path) -> dict[str, Tensor]:
    """Every tensor of the archived module by its dotted attribute name, buffers that need not be saved among them.

    Raises `ValueError` for a broken archive, and for one whose modules hold themselves.
    """
    found: dict[str, Tensor] = {}
    waiting = [("", pickles.read(path), frozenset[int]())]
    while waiting:
        prefix, value, above = waiting.pop()
        if isinstance(value, Tensor):
            found[prefix] = value
        elif isinstance(value, pickles.Inert):
            if id(value) in above:
                raise ValueError(f"{path} holds a module inside itself, {prefix}: it is no checkpoint")
            parts = [(f"{prefix}.{name}".lstrip("."), child) for name, child in value.attributes().items()]
            waiting.extend((name, child, above | {id(value)}) for name, child in reversed(parts))
    return found
