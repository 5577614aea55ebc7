"""Checks of values, noted where they are made and read together: on an accelerator each reading waits for all work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

from tokenizers_vq import distributed


class _Noted(NamedTuple):
    good: Tensor
    """bool scalar"""
    otherwise: Callable[[], object]
    """raises, or warns"""


class Checks:
    """What was noted and not yet read."""

    def __init__(self) -> None:
        self._noted: list[_Noted] = []

    def note(self, good: Tensor, otherwise: Callable[[], object]) -> None:
        """Keep the flag of a check, and what to do where it is false."""
        self._noted.append(_Noted(good.detach().reshape(()), otherwise))

    def read(self, everywhere: bool = False) -> None:
        """Read all flags in one transfer; raises what the first bad one raises.

        `everywhere`: bad where it is so in any process. All processes have noted the same then.
        """
        noted, self._noted = self._noted, []
        if not noted:
            return
        device = noted[-1].good.device
        bad = torch.stack([~one.good.to(device, non_blocking=True) for one in noted])
        bad = distributed.sum(bad.float()) if everywhere else bad
        for flag, one in zip(bad.tolist(), noted, strict=True):
            if flag:
                one.otherwise()


_open: ContextVar[Checks | None] = ContextVar("checks", default=None)


@contextmanager
def together() -> Iterator[Checks]:
    """Checks inside are noted, and read at the end, unless it ends by an error; inside another, at that one's end."""
    outer = _open.get()
    if outer is not None:
        yield outer
        return
    checks = Checks()
    token = _open.set(checks)
    try:
        yield checks
    finally:
        _open.reset(token)
    checks.read()


@contextmanager
def at_once() -> Iterator[None]:
    """Checks inside are read where they are made: those of work that one process does alone, for example."""
    token = _open.set(None)
    try:
        yield
    finally:
        _open.reset(token)


def noting() -> bool:
    """Whether checks are noted now: then what is wrong goes on for a while, and must not harm."""
    return _open.get() is not None


def check(good: Tensor, otherwise: Callable[[], object]) -> None:
    """Call `otherwise` where the bool scalar `good` is false: now, or once the checks around are read."""
    checks = _open.get()
    if checks is not None:
        checks.note(good, otherwise)
    elif not good:
        otherwise()
