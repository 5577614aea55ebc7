"""Mutated checkpoints, pickles, zips, safetensors, TorchScript: `python -m tests.fuzz.checkpoints --count 100000`."""

from __future__ import annotations

import collections
import io
import os
import pickle
import random
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import nn

from tests.fuzz import harness
from tokenizers_vq.conversion import guess, torchscript
from tokenizers_vq.conversion.checkpoint import read_tensors

DOCUMENTED = (ValueError, FileNotFoundError)
_NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 65535, 2**24 - 1, 2**31 - 1, 2**31, 2**32 - 1)
PIECES = (
    b"(", b"]", b"}", b")", b"\x85", b"\x86", b"\x87", b"t", b"\x94", b"0", b"2", b"R", b"\x81", b"\x92", b"b", b"a",
    b"e", b"s", b"u", b"\x90", b"\x91", b"\x8f", b"Q", b"N", b"\x88", b"K\x05", b"h\x00", b"h\x01", b"P7\n",
    b"\x8a\x08" + b"\xff" * 8, b"\x8b\xff\xff\xff\x7f", b"\x96" + b"\xff" * 5 + b"\0\0\0", b"\x8e" + b"\xff" * 8,
    b"ccollections\nOrderedDict\n", b"cbuiltins\nset\n", b"ctorch\nFloatStorage\n", b"j\x03\x00\x00\x00",
    b"c_codecs\nencode\n", b"cos\nsystem\n", b"I12\n", b"L9" + b"9" * 30 + b"L\n", b"X\x04\x00\x00\x00name",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"\x97", b"\x98", b"\x95" + b"\xff" * 8, b"p9999999999999\n", b".",
)  # fmt: skip


class Seed(NamedTuple):
    """A sound file; `tensors` are what it holds, where checksums guard every byte that decides them."""

    suffix: str
    content: bytes
    tensors: dict[str, torch.Tensor] | None = None


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.register_buffer("scratch", torch.ones(1), persistent=False)


@cache
def seeds() -> tuple[Seed, ...]:
    """A small sound file of every kind that is read."""
    torch.set_num_threads(1)
    weights = {f"encoder.{name}": torch.arange(float(i + 2)) for i, name in enumerate(("a", "b", "c"))}
    views = {"row": torch.arange(12.0).view(3, 4)[1], "half": torch.ones(3).half(), "one": torch.tensor(3)}
    tensors = {**weights, **views}
    training = {
        "state_dict": collections.OrderedDict(tensors),
        "epoch": 3,
        "callbacks": {"a": [1, (2.5, None)], "b": {1, 2}, "c": frozenset(["x"])},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}, "betas": (0.9, 0.99)}],
        "rng": np.arange(3),
        "best": np.float64(0.5),
        "counter": collections.Counter("aab"),
    }
    module = nn.Sequential(_Block(), nn.BatchNorm2d(2))
    zipped = {"state_dict": tensors}
    made = [
        Seed(".pt", _saved(zipped), tensors),
        Seed(".ckpt", _saved(training), tensors),
        Seed(".pt", _packed(_saved(zipped)), tensors),
        Seed(".ckpt", _saved(training, _use_new_zipfile_serialization=False)),
        Seed(".pkl", _saved(module)),
        Seed(".pkl", _saved(module, _use_new_zipfile_serialization=False)),
        Seed(".safetensors", safetensors.torch.save(tensors)),
        *(
            Seed(".pkl", pickle.dumps({"weight": [1, 2.5, "x", b"y"], 3: (None, {4})}, protocol))
            for protocol in (0, 2, 5)
        ),
    ]
    script = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))), script)
    return (*made, Seed(".jit", script.getvalue()))


def _saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def _packed(content: bytes, change: Any = None) -> bytes:
    """A zip packed again, compressed, its `data.pkl` changed; or all of it as it is where it is none any more."""
    packed = io.BytesIO()
    how = zipfile.ZIP_DEFLATED if change is None else zipfile.ZIP_STORED
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(packed, "w", how) as new:
        for name in old.namelist():
            record = old.read(name)
            new.writestr(name, change(record) if change is not None and name.endswith("data.pkl") else record)
    return packed.getvalue()


def make(number: int) -> tuple[int, bytes, bool]:
    """The seed's number, its bytes with a few changed, and whether only checksums stand between them and its tensors.

    Half of the zips are changed inside their pickle and packed again, so that what checksums guard is reached.
    """
    draw = random.Random(number)
    which = number % len(seeds())
    seed = seeds()[which]
    if seed.content.startswith(b"PK") and draw.random() < 0.6:
        return which, _packed(seed.content, lambda record: mutated(record, draw)), False
    return which, mutated(seed.content, draw), True


def mutated(original: bytes, draw: random.Random, pieces: Sequence[bytes] = PIECES) -> bytes:
    """Bytes with a few changed, taken out, doubled, or `pieces` put between them."""
    content = bytearray(original)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        ends = (len(content), min(64, len(content)), len(content))
        at = draw.randrange(draw.choice(ends)) if draw.random() < 0.8 else max(0, len(content) - draw.randrange(1, 400))
        kind = draw.randrange(8)
        if kind < 2:
            content[at] = draw.randrange(256)
        elif kind == 2:
            content[at] ^= 1 << draw.randrange(8)
        elif kind == 3:
            form = draw.choice(("<H", "<I", "<Q"))
            value = struct.pack(form, draw.choice((*_NUMBERS, 2**40, 2**63 - 1)) % 256 ** struct.calcsize(form))
            content[at : at + len(value)] = value
        elif kind == 4:
            del content[at : at + draw.choice((1, 2, 4, 20, len(content)))]
        elif kind == 5:
            content[at:at] = content[at : at + draw.randrange(1, 64)] * draw.choice((1, 1, 2, 50))
        elif kind == 6:
            content[at:at] = draw.choice(pieces) * draw.choice((1, 1, 1, 3, 2000))
        else:
            other = draw.randrange(len(content))
            content[at : at + 4] = content[other : other + 4]
        content = content or bytearray(1)
    return bytes(content)


def call(value: tuple[int, bytes, bool]) -> None:
    """Read it as `convert` does. What is read of a zip whose bytes changed is what was in it, or the rest of that."""
    which, content, guarded = value
    seed = seeds()[which]
    path = Path(tempfile.gettempdir()) / f"checkpoint-{os.getpid()}{seed.suffix}"
    path.write_bytes(content)
    try:
        guess.hint("taming", path)
        found = torchscript.read(path) if torchscript.is_archive(path) else read_tensors(path, "state_dict")
        for name, tensor in found.items():
            tensor.sum()
            if guarded and seed.tensors is not None and not torch.equal(tensor, seed.tensors[name]):
                raise AssertionError(f"{name} is read with other values than were written")
    finally:
        path.unlink()


if __name__ == "__main__":
    harness.main(make, call, DOCUMENTED, "checkpoints")
