"""Tensors of the reference that are one tensor here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tokenizers_vq.conversion.keys import Renamed, original


def stack(tensors: Mapping[str, Tensor], parts: Sequence[str], name: str) -> Renamed:
    """Every group of tensors whose keys differ by one of `parts` alone becomes one, their rows after one another.

    `stack(tensors, ["query", "key", "value"], "qkv")` makes `a.qkv.weight` of `a.query.weight` and its siblings.
    Raises `ValueError` for a group that is not whole, or whose shapes do not fit.
    """
    pattern = re.compile(rf"(?:(?<=\.)|^)(?:{'|'.join(map(re.escape, parts))})(?=\.)")
    found: dict[str, Tensor] = {}
    originals: dict[str, str] = {}
    for key in tensors:
        if (match := pattern.search(key)) is None:
            found[key], originals[key] = tensors[key], original(tensors, key)
            continue
        before, after = key[: match.start()], key[match.end() :]
        ours = f"{before}{name}{after}"
        if ours in found:
            continue
        group, theirs = [f"{before}{part}{after}" for part in parts], original(tensors, key)
        if missing := [part for part, one in zip(parts, group, strict=True) if one not in tensors]:
            wanted = re.sub(rf"(?<![^.]){re.escape(match[0])}(?![^.])", missing[0], theirs)
            raise ValueError(f"missing {wanted}, which {theirs} needs beside it")
        shapes = [tuple(tensors[one].shape) for one in group]
        if len({shape[1:] for shape in shapes}) > 1 or not shapes[0]:
            raise ValueError(f"{theirs} and its siblings are {shapes}, which do not fit together")
        found[ours], originals[ours] = torch.cat([tensors[one] for one in group]), theirs
    return Renamed(found, originals)


def depth(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """One more than the largest number that follows the regular expression `prefix` at the beginning of a key."""
    pattern = re.compile(rf"{prefix}(\d{{1,6}})\.")
    return 1 + max((int(match[1]) for key in tensors if (match := pattern.match(key))), default=-1)
