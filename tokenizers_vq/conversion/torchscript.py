"""Tensors of a TorchScript archive, read without loading or running its code."""

from __future__ import annotations

import zipfile
from pathlib import Path

from torch import Tensor

from tokenizers_vq.conversion import modules, pickles, zips


def is_archive(path: Path) -> bool:
    """Whether the file is a TorchScript archive: a zip with code, which `torch.save` does not write."""
    try:
        with zips.opened(path) as records:
            return any("/code/" in name for name in records)
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return False  # no zip, or a damaged one, as reading it says


def read(path: Path) -> dict[str, Tensor]:
    """Every tensor of the archived module by its dotted attribute name, buffers that need not be saved among them.

    Raises `ValueError` for a broken archive, and for modules inside one another without end.
    """
    content = pickles.read(path)
    if not isinstance(content, pickles.Inert):
        raise ValueError(f"{path} holds no module, expected that of a TorchScript archive")
    found: dict[str, object] = {}
    for prefix, attributes in modules.walk(content, modules.entries, path):
        found.update({f"{prefix}{name}": value for name, value in modules.entries(attributes)})
    return modules.by_name(found, path)
