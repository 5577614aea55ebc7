"""The reference's keys to ours, strictly."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

logger = logging.getLogger(__name__)
M = TypeVar("M", bound=nn.Module)


def rename(tensors: Mapping[str, Tensor], rules: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """Every regular expression of `rules` replaced in every key, in turn."""
    renamed = {}
    for key, tensor in tensors.items():
        ours = key
        for pattern, replacement in rules:
            ours = re.sub(pattern, replacement, ours)
        renamed[ours] = tensor
    return renamed


def skip(tensors: Mapping[str, Tensor], pattern: str, why: str) -> dict[str, Tensor]:
    """The tensors whose key does not match `pattern` from its start; the others are logged as skipped."""
    kept = {key: tensor for key, tensor in tensors.items() if re.match(pattern, key) is None}
    prefixes = Counter(key.split(".")[0] for key in tensors if key not in kept)
    if prefixes:
        shown = ", ".join(f"{prefix} ({count})" for prefix, count in sorted(prefixes.items()))
        logger.warning("skipped keys that the tokenizer does not use, %s: %s", why, shown)
    return kept


def fill(module: M, tensors: Mapping[str, Tensor], path: Path) -> M:
    """`module` with the tensors by our keys, floating ones as float32; buffers of training alone may be absent.

    Raises `ValueError` naming missing, surplus and misshapen keys.
    """
    wanted = dict(module.state_dict())
    optional = {
        f"{name}.{buffer}" if name else buffer
        for name, part in module.named_modules()
        for buffer in getattr(part, "training_state", ())
    }
    problems = [f"missing {name}" for name in wanted if name not in tensors and name not in optional]
    problems += [f"surplus {name}" for name in tensors if name not in wanted]
    problems += [
        f"{name} is {tuple(tensor.shape)}, wanted {tuple(wanted[name].shape)}"
        for name, tensor in tensors.items()
        if name in wanted and tensor.shape != wanted[name].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise ValueError(f"{path} does not fit the layout that its config or keys describe: {shown}")
    upcast = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    module.load_state_dict({**wanted, **upcast}, strict=True)
    return module
