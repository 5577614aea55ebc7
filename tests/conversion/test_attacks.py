"""Small files that would cost gigabytes, hours or the process: refused in one line, in 10 seconds and a gigabyte."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

pytest.importorskip("resource")
from tests.conversion.test_dalle_vqvae2 import vqvae2_tensors
from tests.conversion.test_taming import tensors_without_middle_attention
from tests.fuzz import harness
from tokenizers_vq.conversion import convert, modules, pickles, torchscript, unpickling
from tokenizers_vq.conversion.checkpoint import read_tensors
from tokenizers_vq.conversion.unpickling import Inert, Name

HEAD = b"\x80\x04"


def refused(call: Callable[[], object], said: str) -> None:
    """`call` raises one line that has `said`, within the memory that the search allows, and without hanging."""

    def checked(_: Any) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            call()

    found = list(harness.attempts([0], lambda number: number, checked, (), seconds=60))  # of a machine that is busy
    assert [attempt.fault for attempt in found] == [None]


def deep(opcode: bytes, times: int) -> bytes:
    return b"N" + opcode * times


def doubling(levels: int, pair: bytes) -> bytes:
    """A value that holds the one before it twice, `levels` times."""
    steps = [b"K\x01\x94"]
    for level in range(levels):
        steps.append(b"0h%ch%c%b\x94" % (level, level, pair))
    return b"".join(steps)


PROGRAMS = {
    "nested tuples as a key": (b"}" + deep(b"\x85", 100_000) + b"Ns.", "nested"),
    "nested tuples in a set": (b"\x8f(" + deep(b"\x85", 100_000) + b"\x90.", "nested"),
    "nested tuples in a frozenset": (b"(" + deep(b"\x85", 100_000) + b"\x91.", "nested"),
    "a set of nested tuples by call": (b"cbuiltins\nset\n]" + deep(b"\x85", 100_000) + b"a\x85R.", "nested"),
    "shared tuples as a key": (b"}" + doubling(60, b"\x86") + b"Ns.", "nested"),
    "bytes that are not there": (b"\x96" + struct.pack("<Q", 5 << 30) + b".", "ends early"),
    "a text that is not there": (b"\x8d" + struct.pack("<Q", 5 << 30) + b".", "ends early"),
    "a frame that is not there": (b"\x95" + struct.pack("<Q", 5 << 30) + b"N.", "ends early"),
    "a large number as a key": (b"}\x8b" + struct.pack("<I", 1 << 20) + b"\x01" * (1 << 20) + b"Ns.", "too large"),
    "a list copied over and over": (
        b"cbuiltins\nlist\n\x94](" + b"N" * 100_000 + b"e\x85\x940" + b"h\x00h\x01R0" * 100_000 + b"N.",
        "copy the same",
    ),
    "a text encoded over and over": (
        b"c_codecs\nencode\n\x94X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20) + b"\x85\x940"
        + b"h\x00h\x01R" * 100_000 + b".",
        "copy the same",
    ),
    "keys that collide": (
        b"}(" + b"".join(b"K%cK%c\x86N" % (a, b) for a in range(20) for b in range(20)) + b"u.", "tuples of numbers"
    ),
    "a place of a thousand digits": (b"Np" + b"9" * 1000 + b"\n.", "immense place"),
    "a buffer elsewhere": (b"\x97.", "buffer"),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_pickle_that_costs_more_than_its_bytes(name: str, tmp_path: Path) -> None:
    program, said = PROGRAMS[name]
    path = tmp_path / "a.pkl"
    path.write_bytes(HEAD + program)
    refused(lambda: pickles.read(path), rf"a\.pkl is truncated or not a file of torch\.save .*{said}")


def test_a_pickle_of_more_steps_than_a_checkpoint_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickling._Bounded, "left", 1000)
    for count, ends in ((480, True), (520, False)):
        (tmp_path / "a.pkl").write_bytes(HEAD + b"]0" * count + b"N.")
        if ends:
            assert pickles.read(tmp_path / "a.pkl") is None
        else:
            refused(lambda: pickles.read(tmp_path / "a.pkl"), "steps")


def inert(**attributes: Any) -> Inert:
    made = Inert(Name("a", "B"), ())
    made.state = attributes
    return made


def test_modules_that_double(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.touch()
    module = inert(_modules={}, weight=torch.ones(1))
    for _ in range(60):
        module = inert(_modules={"a": module, "b": module}, a=module, b=module)
    refused(lambda: modules.module_tensors(module, path), "over and over")
    refused(lambda: list(modules.walk(module, modules.entries, path)), "over and over")


def test_torchscript_that_doubles(tmp_path: Path) -> None:
    steps = [b"\x80\x02c__torch__\nM\n)\x81q\x00"]
    for level in range(60):
        part = b"X\x01\x00\x00\x00%bh%c"
        steps.append(b"c__torch__\nM\n)\x81}(" + part % (b"a", level) + part % (b"b", level) + b"ubq%c" % (level + 1))
    path = tmp_path / "a.jit"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"".join(steps) + b".")
        archive.writestr("a/code/x.py", b"")
    assert torchscript.is_archive(path)
    refused(lambda: torchscript.read(path), "over and over")


def test_a_shared_module_keeps_both_its_names(tmp_path: Path) -> None:
    part = nn.Linear(1, 1)
    torch.save(nn.ModuleDict({"a": part, "b": nn.Sequential(part)}), tmp_path / "a.pkl")
    found = read_tensors(tmp_path / "a.pkl")
    assert set(found) == {"a.weight", "a.bias", "b.0.weight", "b.0.bias"}


def test_a_set_of_unsaved_buffers_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(b"x" * 1000)
    parts = {"_modules": {}, "_buffers": {"a": torch.ones(1)}}
    for odd in (3, "a", [["a"]], {"a": 1}, None):
        module = inert(**parts, _non_persistent_buffers_set=odd)
        assert set(modules.module_tensors(module, tmp_path / "a.pkl")) == {"a"}
    assert modules.module_tensors(inert(**parts, _non_persistent_buffers_set={"a"}), tmp_path / "a.pkl") == {}


def repacked(content: bytes, how: int, **changed: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(packed, "w", how) as new:
        for name in old.namelist():
            new.writestr(name, changed.get(name.split("/")[-1], old.read(name)))
    return packed.getvalue()


def saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def test_zips_that_unpack_to_gigabytes(tmp_path: Path) -> None:
    path, content = tmp_path / "a.pt", saved({"a": torch.arange(4.0)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with zipfile.ZipFile(io.BytesIO(content)) as old:
            archive.writestr("a/data.pkl", old.read(next(n for n in old.namelist() if n.endswith("data.pkl"))))
        with archive.open("a/data/0", "w") as record:
            for _ in range(400):
                record.write(bytes(1 << 20))
    refused(lambda: pickles.read(path), "far larger than the file")
    path.write_bytes(repacked(content, zipfile.ZIP_LZMA))
    refused(lambda: pickles.read(path), "compressed as torch.save never does")


def records(content: bytes) -> dict[str, zipfile.ZipInfo]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {entry.filename.split("/", 1)[1]: entry for entry in archive.infolist()}


def directory_place(content: bytes, name: str) -> int:
    """Where the central directory's entry of a record begins."""
    return content.rindex(b"PK\x01\x02", 0, content.rindex(name.encode()))


def test_a_directory_that_lies_converts_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    content = saved({"a": torch.arange(4.0), "b": torch.arange(4.0) + 9})
    found = records(content)
    swapped = bytearray(content)
    for name, other in (("data/0", "data/1"), ("data/1", "data/0")):
        place = directory_place(content, name) + 42
        swapped[place : place + 4] = struct.pack("<I", found[other].header_offset)
    same = bytearray(content)
    place = directory_place(content, "data/1") + 42
    same[place : place + 4] = struct.pack("<I", found["data/0"].header_offset)
    renamed = content[: content.rindex(b"data/1")] + b"data/0" + content[content.rindex(b"data/1") + 6 :]
    for damaged in (swapped, same, renamed):
        path.write_bytes(damaged)
        refused(lambda: read_tensors(path), "truncated or not a file of torch.save")


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, None])
def test_a_flipped_bit_of_a_weight_is_found(how: int | None, tmp_path: Path) -> None:
    path, content = tmp_path / "a.pt", saved({"a": torch.arange(1000.0)})
    content = content if how is None else repacked(content, how)
    entry = records(content)["data/0"]
    damaged = bytearray(content)
    damaged[entry.header_offset + 200] ^= 4
    path.write_bytes(damaged)
    refused(lambda: read_tensors(path), "truncated or not a file of torch.save")


def test_a_file_saved_without_checksums_is_read(tmp_path: Path) -> None:
    content = bytearray(saved({"a": torch.arange(4.0)}))
    for signature, place in ((b"PK\x01\x02", 16), (b"PK\x07\x08", 4)):
        at = -1
        while (at := content.find(signature, at + 1)) >= 0:
            content[at + place : at + place + 4] = bytes(4)
    (tmp_path / "a.pt").write_bytes(content)
    assert torch.equal(read_tensors(tmp_path / "a.pt")["a"], torch.arange(4.0))


def test_a_sparse_tar(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        entry = tarfile.TarInfo("storages")
        entry.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "6442450944,0"}
        entry.pax_headers |= {"GNU.sparse.size": "6442450944", "GNU.sparse.name": "storages"}
        tar.addfile(entry, io.BytesIO())
    refused(lambda: pickles.read(path), "not a plain file")


def test_old_files_give_no_memory_that_was_never_written(tmp_path: Path) -> None:
    path, file = tmp_path / "a.pt", io.BytesIO()
    torch.save({"a": torch.ones(4), "b": torch.ones(4)}, file, _use_new_zipfile_serialization=False)
    content = file.getvalue()
    at = content.rindex(b"\x80\x02]")
    one = pickle.dumps(pickle.loads(content[at:])[:1], 2) + struct.pack("<q4f", 4, *[1.0] * 4)
    path.write_bytes(content[:at] + one)
    refused(lambda: pickles.read(path), "other storages")


def test_views_far_larger_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, path)
    refused(lambda: read_tensors(path), "far larger than the file")
    torch.save(dict.fromkeys(map(str, range(2000)), torch.zeros(1).expand(1000, 1000)), path)
    refused(lambda: read_tensors(path), "far larger than the file")


def taming(**changed: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**tensors_without_middle_attention(), **{key.replace("_X_", "."): value for key, value in changed.items()}}


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("encoder.down.0.block.100000.conv1.weight", "blocks: input should be less than or equal to 256, got 100001"),
        ("encoder.down.1000000000.block.0.conv1.weight", "level 1000000000 of the encoder"),
        ("decoder.up.1000000000.block.0.conv1.weight", "level 1000000000|no tensor for"),
        ("encoder.down.0.block.0.conv1.weight", r"is \(0, 3, 3, 3\)"),
    ],
)
def test_keys_and_shapes_that_no_network_has(key: str, said: str, tmp_path: Path) -> None:
    tensors = {
        **tensors_without_middle_attention(),
        key: torch.zeros(0, 3, 3, 3) if "0.block.0" in key else torch.ones(1),
    }
    if "0000" in key:
        tensors[key] = torch.ones(32, 32, 3, 3)
    torch.save(tensors, tmp_path / "a.pt")
    refused(lambda: convert("taming", tmp_path / "a.pt"), said)


def test_thousands_of_keys(tmp_path: Path) -> None:
    tensors = vqvae2_tensors()
    tensors |= {f"enc_t.blocks.{i}.weight": torch.ones(1) for i in range(20_000)}
    save_file(tensors, tmp_path / "a.safetensors")
    refused(lambda: convert("vqvae2", tmp_path / "a.safetensors"), "does not fit")


def test_names_with_escapes_reach_no_terminal(tmp_path: Path) -> None:
    torch.save({"a\x1b[31m": torch.ones(1)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"no proper name, 'a\\x1b\[31m'"):
        read_tensors(tmp_path / "a.pt")
