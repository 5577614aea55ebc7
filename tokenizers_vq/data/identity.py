"""What a run remembers of its data, so that it goes on with the same images: names, sizes, a hash of a sample."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers_vq.data.files import readable

_BLOCKS = 1000
_SIZED = 100  # files of a block whose sizes are looked at
_HASHED = 2**15  # bytes at the start and at the end of a block's first file


def record(files: Sequence[tuple[str, str]], label_names: Sequence[str] | None) -> dict[str, Any]:
    """A plain record of `files`, pairs of name and path in reading order: up to 1000 blocks, each with a digest.

    Up to 1000 files have a block each. A digest covers all names of the block, the sizes of up to 100 files and the
    first and last 32 KiB of the first one: a moved folder has the same record, a changed file another one.
    """
    blocks = []
    for block in _in_blocks(len(files)):
        digest = hashlib.sha256()
        for name, _ in files[block.start : block.stop]:
            digest.update(os.fsencode(name) + b"\0")
        for _, path in files[block.start : block.stop : -(-len(block) // _SIZED)]:
            digest.update(f"{_size(path)} ".encode())
        digest.update(_sample(files[block.start][1]))
        blocks.append(digest.hexdigest()[:16])
    classes = hashlib.sha256("\0".join(label_names).encode()).hexdigest()[:16] if label_names is not None else None
    return {"files": len(files), "classes": classes, "blocks": blocks}


def changed(before: Mapping[str, Any], now: Mapping[str, Any], files: Sequence[tuple[str, str]]) -> str | None:
    """In words, the first way in which the record `now` of `files` differs from `before`; None where it does not."""
    differing = [i for i, (a, b) in enumerate(zip(before["blocks"], now["blocks"], strict=False)) if a != b]
    if before["files"] != now["files"]:
        first = f", first at {_named(files, differing[0])}" if differing and before["files"] <= _BLOCKS else ""
        return f"{now['files']} files instead of {before['files']}{first}"
    if differing:
        more = f" and {len(differing) - 1} more differ" if len(differing) > 1 else " differs"
        return f"{_named(files, differing[0])}{more}"
    return "the classes are others" if before["classes"] != now["classes"] else None


def _in_blocks(count: int) -> list[range]:
    number = min(count, _BLOCKS)
    return [range(i * count // number, (i + 1) * count // number) for i in range(number)]


def _named(files: Sequence[tuple[str, str]], block: int) -> str:
    its = _in_blocks(len(files))[block]
    first = readable(files[its.start][0])
    return first if len(its) == 1 else f"one of the {len(its)} files from {first} on"


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size if path else -1  # noqa: PTH116 (speed)
    except OSError:  # a dangling link, which is read as a broken image; a URL
        return -1


def _sample(path: str) -> bytes:
    if not path or not os.path.isfile(path):  # noqa: PTH113 (speed)
        return b""
    with open(path, "rb") as file:  # noqa: PTH123
        head = file.read(_HASHED)
        file.seek(max(file.tell(), os.fstat(file.fileno()).st_size - _HASHED))
        return head + file.read(_HASHED)
