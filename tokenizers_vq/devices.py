"""Which device and which precision: what `--device` and `--precision` mean."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from tokenizers_vq.config import nearest

M = TypeVar("M", bound=nn.Module)
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "fp32", "bf16")


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """`auto` (CUDA, else MPS, else CPU), `cpu`, `cuda` or `mps`; under several processes each its own CUDA device.

    Raises `ValueError` for unknown names and for devices that are not there.
    """
    if isinstance(name, torch.device):
        return name
    if name not in DEVICES:
        raise ValueError(f"no device '{name}'{nearest(name, DEVICES)}")
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in has.items() if there)
    if not has[name]:
        raise ValueError(f"device '{name}' is not available here; use --device auto")
    return torch.device(name, int(os.environ.get("LOCAL_RANK", 0))) if name == "cuda" else torch.device(name)


def resolve_precision(name: str, device: torch.device) -> str:
    """`fp32` or `bf16`; `auto` is bf16 where `device` computes it natively. Raises `ValueError` for other names."""
    if name not in PRECISIONS:
        raise ValueError(f"no precision '{name}'{nearest(name, PRECISIONS)}")
    if name != "auto":
        return name
    return "bf16" if fast_bf16(device) else "fp32"


def fast_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 in hardware: AMX or AVX512-bf16 of a processor, or a GPU's bf16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # torch asks the processor under names that are private, and young: absent means no
        queries = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
        return any(query is not None and query() for query in queries)
    return False


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """float32 products and convolutions in float32: on CUDA torch convolves in TF32 (10 bits) unless told otherwise.

    What the user has allowed comes back afterwards, by whichever of torch's two ways it was said.
    """
    if device.type != "cuda":
        yield
        return
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(products, "fp32_precision"):  # torch 2.9; the older switches refuse to be read once these are used
        switches: list[tuple[Any, str, Any]] = [(products, "fp32_precision", "ieee")]
        switches.append((convolutions.conv, "fp32_precision", "ieee"))  # type: ignore[attr-defined]
    else:
        switches = [(products, "allow_tf32", False), (convolutions, "allow_tf32", False)]
    before = [getattr(where, name) for where, name, _ in switches]
    for where, name, value in switches:
        setattr(where, name, value)
    try:
        yield
    finally:
        for (where, name, _), value in zip(switches, before, strict=True):
            setattr(where, name, value)


@contextmanager
def computing(device: torch.device, half: torch.dtype | None) -> Iterator[None]:
    """Networks in `half` by autocast; without it in the dtype of their parameters, float32 in full."""
    if half is None:
        with torch.autocast(device.type, enabled=False), full_float32(device):
            yield
    else:
        with torch.autocast(device.type, dtype=half):
            yield


class Processes(NamedTuple):
    """This process among those that a launcher started."""

    rank: int
    world: int


def processes() -> Processes:
    """Rank and world size as launchers say them (RANK, WORLD_SIZE); (0, 1) without one. Sets nothing up."""
    return Processes(int(os.environ.get("RANK") or 0), int(os.environ.get("WORLD_SIZE") or 1))


def join_processes(device: torch.device) -> Processes:
    """As `processes`, and sets up the group that collectives need where there are several."""
    found = processes()
    if found.world > 1:
        from accelerate import PartialState

        state = PartialState(cpu=device.type == "cpu")
        return Processes(state.process_index, state.num_processes)
    return found


def constant(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """`torch.tensor` of numbers, on `device`. Made on an accelerator, it would wait for all work there."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


def channels_last(module: M) -> M:
    """The module with its four-dimensional weights in channels_last, in place.

    `Module.to(memory_format=)` refuses the weights of convolutions over time, which have five.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return module


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules built inside lie on the meta device: they have shapes, and neither memory nor values."""
    with torch.device("meta"), _Unfilled():
        yield


_DRAWN = (torch.Tensor.normal_, torch.Tensor.uniform_)


class _Unfilled(TorchFunctionMode):
    """Leaves tensors as they are where they would be drawn: on the meta device that imports torch's compiler first."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init" or func in _DRAWN:
            return args[0] if args else kwargs["tensor"]
        if func in (torch.randn, torch.rand):
            return torch.empty(*args, **kwargs)
        return func(*args, **kwargs)
