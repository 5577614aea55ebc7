"""Pickles are read, never run: the three formats of torch.save, whole modules, strangers' classes, malice."""

from __future__ import annotations

import builtins
import collections
import contextlib
import io
import os
import pickle
import struct
import sys
import tarfile
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tokenizers_vq.conversion import pickles
from tokenizers_vq.conversion.checkpoint import read_tensors
from tokenizers_vq.conversion.modules import module_tensors
from tokenizers_vq.conversion.pickles import Inert
from tokenizers_vq.conversion.unpickling import Storage, as_tensor
from tokenizers_vq.networks.vqgan import VqganEncoderConfig

FORMATS = [True, False]


class Evil:
    """Runs a function when it is unpickled by `pickle.load`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.reduced = (function, args)

    def __reduce__(self) -> Any:
        return self.reduced


def attacks(target: Path) -> dict[str, Any]:
    """Objects that would create `target` when unpickled by Python."""
    text = f"open({str(target)!r}, 'w').close()"
    return {
        "os.system": Evil(os.system, f"touch {target}"),
        "eval": Evil(eval, text),
        "exec": Evil(exec, text),
        "getattr": Evil(builtins.getattr, Evil(__import__, "os"), "system"),
        "open": Evil(open, str(target), "w"),
        "inside": {"state_dict": {"weight": torch.ones(2), "extra": [Evil(eval, text)]}},
    }


@pytest.mark.parametrize("zip_format", FORMATS)
@pytest.mark.parametrize("attack", list(attacks(Path("x"))))
def test_a_malicious_pickle_does_not_run(attack: str, zip_format: bool, tmp_path: Path) -> None:
    target, path = tmp_path / "written", tmp_path / "evil.ckpt"
    torch.save({"a": torch.ones(3), "evil": attacks(target)[attack]}, path, _use_new_zipfile_serialization=zip_format)
    content = pickles.read(path)
    assert torch.equal(content["a"], torch.ones(3))
    assert not target.exists()
    if attack != "open":  # it must be an attack that works, elsewhere
        torch.load(path, weights_only=False)
        assert target.exists() or attack == "getattr"


RAN: list[str] = []


class Trap:
    """Every hook that unpickling, looking at and dropping an object of this class could touch."""

    def __setstate__(self, state: Any) -> None:
        RAN.append("setstate")

    def __new__(cls, *args: Any) -> Any:
        RAN.append("new")
        return super().__new__(cls)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            RAN.append(name)
        raise AttributeError(name)

    def __hash__(self) -> int:
        RAN.append("hash")
        return 1

    def __eq__(self, other: object) -> bool:
        RAN.append("eq")
        return True

    def __reduce_ex__(self, protocol: Any) -> Any:
        return (type(self), (), {"a": torch.zeros(1)}, iter([1]), iter([("k", "v")]))


def test_no_hook_of_a_foreign_class_runs(tmp_path: Path) -> None:
    torch.save({"trap": Trap(), "set": [Trap()]}, tmp_path / "trap.pt")
    RAN.clear()
    trap = pickles.read(tmp_path / "trap.pt")["trap"]
    assert isinstance(trap, Inert)
    assert RAN == []
    assert torch.equal(trap.attributes()["a"], torch.zeros(1))
    assert (trap.items, trap.entries) == ([1], {"k": "v"})


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'touch {}'\ntR.",
        b"(S'touch {}'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch {}'\no.",
        b"\x80\x02cos\nsystem\nX\x08\x00\x00\x00touch xx\x85\x81.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0etouch {}\x85R.",
        b'ctorch.serialization\n_get_layout\n(S\'__import__("os").system("touch {}")\'\ntR.',
        # A known function given other defaults or code by BUILD, then called.
        b"\x80\x02ctorch._utils\n_rebuild_parameter\n(Nc__builtin__\neval\ntb)R.",
    ],
)
def test_hand_written_programs_do_nothing(program: bytes, tmp_path: Path) -> None:
    target = tmp_path / "written"
    path = tmp_path / "program.pkl"
    path.write_bytes(program.replace(b"{}", str(target).encode()))
    before = torch._utils._rebuild_parameter.__defaults__
    with contextlib.suppress(ValueError):
        pickles.read(path)
    assert not target.exists()
    assert torch._utils._rebuild_parameter.__defaults__ == before


@pytest.mark.parametrize("zip_format", FORMATS)
def test_a_training_checkpoint_with_strangers_inside(zip_format: bool, tmp_path: Path) -> None:
    module = types.ModuleType("vanished_callbacks")
    classes = {name: type(name, (), {"__module__": module.__name__}) for name in ("ModelCheckpoint", "Config")}
    classes["Options"] = type("Options", (dict,), {"__module__": module.__name__})
    vars(module).update(classes)
    sys.modules["vanished_callbacks"] = module
    checkpoint, options = classes["ModelCheckpoint"](), classes["Options"](a=1)
    vars(checkpoint).update(best=np.float64(0.5), monitor="loss", path=Path("a"), score=torch.tensor(2.0))
    weight = torch.randn(3, 4)
    content = {
        "state_dict": collections.OrderedDict(weight=weight, row=weight[1], column=weight.T[2]),
        "callbacks": {classes["ModelCheckpoint"]: checkpoint, "options": options},
        "loops": [collections.defaultdict(list, a=[1]), collections.Counter("aab"), {1, 2}, frozenset([3]), (4,), b"x"],
        "step": np.int64(7),
        "dtype": torch.float16,
        "size": torch.Size([1, 2]),
        "array": np.arange(3),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2, dtype=torch.float64)}}}],
    }
    torch.save(content, tmp_path / "last.ckpt", _use_new_zipfile_serialization=zip_format)
    del sys.modules["vanished_callbacks"]
    read = pickles.read(tmp_path / "last.ckpt")
    state = read["state_dict"]
    assert torch.equal(state["weight"], weight)
    assert torch.equal(state["row"], weight[1])
    assert torch.equal(state["column"], weight.T[2])
    assert state["weight"].untyped_storage().data_ptr() == state["row"].untyped_storage().data_ptr()
    stranger = next(value for value in read["callbacks"].values() if isinstance(value, Inert) and value.state)
    assert stranger.attributes()["best"] == 0.5
    assert stranger.attributes()["monitor"] == "loss"
    assert read["callbacks"]["options"].entries == {"a": 1}
    assert read["loops"] == [{"a": [1]}, {"a": 2, "b": 1}, {1, 2}, frozenset([3]), (4,), b"x"]
    assert (read["step"], read["dtype"], read["size"]) == (7, torch.float16, (1, 2))
    assert set(read_tensors(tmp_path / "last.ckpt", "state_dict")) == {"weight", "row", "column"}


@pytest.mark.parametrize("zip_format", FORMATS)
def test_a_module_pickled_whole_gives_its_state_dict(zip_format: bool, tmp_path: Path) -> None:
    encoder = VqganEncoderConfig(width=32, multipliers=(1, 2), attention=(1,)).build(
        dim=3, channels=3, image_size=(8, 8)
    )
    module = nn.Sequential(encoder, nn.BatchNorm2d(3))
    module.register_buffer("scratch", torch.ones(1), persistent=False)
    module.again = encoder
    torch.save(module, tmp_path / "encoder.pkl", _use_new_zipfile_serialization=zip_format)
    tensors = module_tensors(pickles.read(tmp_path / "encoder.pkl"), tmp_path / "encoder.pkl")
    expected = module.state_dict()
    assert list(tensors) and set(tensors) == set(expected)
    assert all(torch.equal(tensors[key], value) for key, value in expected.items())
    torch.save({"model": module}, tmp_path / "wrapped.pt")
    assert set(read_tensors(tmp_path / "wrapped.pt", "model")) == set(expected)


@pytest.mark.parametrize("zip_format", FORMATS)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
)
def test_every_dtype_shape_and_view(dtype: torch.dtype, zip_format: bool, tmp_path: Path) -> None:
    base = torch.arange(24).reshape(2, 3, 4).to(dtype)
    tensors = {
        "base": base, "permuted": base.permute(2, 0, 1), "part": base[1, :, 1:3], "empty": base[:0],
        "scalar": base[1, 2, 3], "expanded": base[:1, :1, :1].expand(5, 3, 2), "parameter": nn.Parameter(base.float()),
    }  # fmt: skip
    torch.save(tensors, tmp_path / "views.pt", _use_new_zipfile_serialization=zip_format)
    read = pickles.read(tmp_path / "views.pt")
    assert read["base"].dtype == dtype
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor.detach()), name


def test_dtypes_without_a_storage_class(tmp_path: Path) -> None:
    tensors = {"float8": torch.ones(6).to(torch.float8_e4m3fn), "uint16": torch.arange(4).to(torch.uint16)}
    torch.save(tensors, tmp_path / "new.pt")
    read = pickles.read(tmp_path / "new.pt")
    assert read["uint16"].tolist() == [0, 1, 2, 3]
    assert read["float8"].dtype == torch.float8_e4m3fn
    assert read["float8"].float().tolist() == [1.0] * 6


def test_a_zip_that_was_packed_again_compressed(tmp_path: Path) -> None:
    torch.save({"weight": torch.arange(100.0)}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as old,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert torch.equal(pickles.read(tmp_path / "b.pt")["weight"], torch.arange(100.0))


def test_the_tar_format_of_the_first_torch(tmp_path: Path) -> None:
    class Global:
        """Pickles as a class of torch by name."""

        def __init__(self, name: str) -> None:
            self.name = name

    class Pickler(pickle._Pickler):  # type: ignore[name-defined]
        def save(self, thing: Any, *args: Any) -> None:
            if isinstance(thing, Global):
                self.write(f"ctorch\n{thing.name}\n".encode())
            elif thing == "TENSOR":
                self.save(5), self.write(pickle.BINPERSID)
            else:
                super().save(thing, *args)

    def dumped(*things: Any) -> bytes:
        file = io.BytesIO()
        for thing in things:
            file.write(thing) if isinstance(thing, bytes) else Pickler(file, 2).dump(thing)
        return file.getvalue()

    values = struct.pack("<q6f", 6, *range(6))
    shape = struct.pack("<q2q2qq", 2, 2, 2, 2, 1, 1)
    members = {
        "storages": dumped(1, (1, "cpu", Global("FloatStorage")), values, [(2, 1, 1, 5)]),
        "tensors": dumped(1, (5, 2, Global("FloatTensor")), shape),
        "pickle": dumped({"weight": "TENSOR"}),
    }
    with tarfile.open(tmp_path / "old.tar", "w") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    assert pickles.read(tmp_path / "old.tar")["weight"].tolist() == [[2.0, 3.0], [4.0, 5.0]]


@pytest.mark.parametrize("zip_format", FORMATS)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.99])
def test_a_truncated_file_is_one_clear_line(share: float, zip_format: bool, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    tensors = {f"weight{i}": torch.randn(100) for i in range(5)}
    torch.save({"state_dict": tensors}, path, _use_new_zipfile_serialization=zip_format)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"last\.ckpt is truncated or not a file of torch\.save") as error:
        read_tensors(path, "state_dict")
    assert "\n" not in str(error.value)


def test_what_is_no_checkpoint_is_said(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    for content, said in [
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\n<!DOCTYPE html>", "web page"),
        (b"\x00" * 1000, "truncated or not a file"),
        (b"hello world", "truncated or not a file"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=said):
            pickles.read(path)
    with pytest.raises(ValueError, match="is a folder"):
        pickles.read(tmp_path)
    torch.save([1], path)
    with pytest.raises(ValueError, match="no tensors by name"):
        read_tensors(path)


def test_tensors_outside_their_storage_are_refused() -> None:
    storage = Storage(torch.zeros(6).untyped_storage(), torch.float32)
    assert as_tensor(storage, 1, (5,), (1,)).shape == (5,)
    for offset, size, stride in [
        (2, (5,), (1,)),
        (0, (2, 2), (5, 1)),
        (0, (2,), (-1,)),
        (-1, (2,), (1,)),
        (0, (2,), ()),
    ]:
        with pytest.raises(pickle.UnpicklingError):
            as_tensor(storage, offset, size, stride)


def test_a_module_that_holds_itself_ends(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(1, 1))
    module._modules["self"] = module
    torch.save(module, tmp_path / "loop.pkl")
    assert set(module_tensors(pickles.read(tmp_path / "loop.pkl"), tmp_path / "loop.pkl")) == {"0.weight", "0.bias"}


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_object_that_is_no_module_is_named_by_file_and_class(wrapped: bool, tmp_path: Path) -> None:
    target, path = tmp_path / "written", tmp_path / "evil.ckpt"
    evil = next(iter(attacks(target).values()))
    torch.save({"state_dict": evil} if wrapped else evil, path)
    with pytest.raises(ValueError, match=r"evil\.ckpt holds an object of [\w.]+\.\w+, not tensors") as error:
        read_tensors(path, "state_dict")
    assert "\n" not in str(error.value) and not target.exists()
    torch.save([1], path)
    with pytest.raises(ValueError, match=r"holds an object of list, not tensors by name"):
        module_tensors(pickles.read(path), path)
