"""The reference's keys to ours, strictly."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from tokenizers_vq.devices import without_memory
from tokenizers_vq.quantizers.base import training_buffers

logger = logging.getLogger(__name__)
_SHOWN = 20
M = TypeVar("M", bound=nn.Module)


class Renamed(dict[str, Tensor]):
    """Tensors by our keys; `original` tells the file's own key of each, for what is said of them."""

    def __init__(self, tensors: Mapping[str, Tensor], original: Mapping[str, str]) -> None:
        super().__init__(tensors)
        self.original = dict(original)


def original(tensors: Mapping[str, Tensor], key: str) -> str:
    """The file's own key of the tensor at `key`; `key` itself where nothing renamed it."""
    return tensors.original.get(key, key) if isinstance(tensors, Renamed) else key


def rekey(tensors: Mapping[str, Tensor], ours: Callable[[str], str]) -> Renamed:
    """The tensors by what `ours` gives for each key."""
    keys = {key: ours(key) for key in tensors}
    return Renamed(
        {keys[key]: tensor for key, tensor in tensors.items()},
        {new: original(tensors, key) for key, new in keys.items()},
    )


def rename(tensors: Mapping[str, Tensor], rules: Iterable[tuple[str, str]]) -> Renamed:
    """Every regular expression of `rules` replaced in every key, in turn."""
    rules = list(rules)

    def ours(key: str) -> str:
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        return key

    return rekey(tensors, ours)


def joined(*parts: tuple[str, str, Mapping[str, Tensor]]) -> Renamed:
    """The tensors of several parts, each (our prefix, the file's prefix, tensors) without its prefix."""
    return Renamed(
        {f"{ours}{key}": tensor for ours, _, tensors in parts for key, tensor in tensors.items()},
        {f"{ours}{key}": f"{theirs}{original(tensors, key)}" for ours, theirs, tensors in parts for key in tensors},
    )


def skip(tensors: Mapping[str, Tensor], pattern: str, why: str) -> dict[str, Tensor]:
    """The tensors whose key does not match `pattern` from its start; the others are logged as skipped."""
    kept = {key: tensor for key, tensor in tensors.items() if re.match(pattern, key) is None}
    prefixes = Counter(key.split(".")[0] for key in tensors if key not in kept)
    if prefixes:
        shown = ", ".join(f"{prefix} ({count})" for prefix, count in sorted(prefixes.items()))
        logger.warning("skipped keys that are not used here, %s: %s", why, shown)
    return kept


def fill(build: Callable[[], M], tensors: Mapping[str, Tensor], path: Path) -> M:
    """What `build` gives, with the tensors by our keys, floating ones as float32; buffers of training may be absent.

    Raises `ValueError` naming missing, surplus and misshapen keys, as the file has them where `rename` gave `tensors`,
    before anything of their size is built.
    """
    with without_memory():
        empty = build()
    wanted = empty.state_dict()
    optional = training_buffers(empty)
    missing = [name for name in wanted if name not in tensors and name not in optional]
    problems = [f"missing {name}{_beside(tensors, name)}" for name in missing]
    problems += [f"surplus {original(tensors, name)}" for name in tensors if name not in wanted]
    problems += [
        f"{original(tensors, name)} is {tuple(tensor.shape)}, wanted {tuple(wanted[name].shape)}"
        for name, tensor in tensors.items()
        if name in wanted and tensor.shape != wanted[name].shape
    ]
    problems += [
        f"{original(tensors, name)} is of {tensor.dtype}" for name, tensor in tensors.items() if tensor.is_complex()
    ]
    if problems:
        left = len(problems) - _SHOWN
        shown = "; ".join(sorted(problems)[:_SHOWN]) + (f"; and {left} more" if left > 0 else "")
        raise ValueError(f"{path} does not fit the layout that its config or keys describe: {shown}")
    module = build()
    module.load_state_dict({**module.state_dict(), **tensors}, strict=True)
    return module


def _beside(tensors: Mapping[str, Tensor], name: str) -> str:
    """` (in the file: ...)` for a missing key of ours, told by a tensor of the same layer, where names differ."""
    layer, _, last = name.rpartition(".")
    for other in ("weight", "bias"):
        theirs, _, kind = original(tensors, f"{layer}.{other}").rpartition(".")
        if f"{layer}.{other}" in tensors and kind == other and theirs != layer:
            return f" (in the file: {theirs}.{last})"
    return ""
