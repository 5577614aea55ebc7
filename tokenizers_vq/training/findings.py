"""What the doctor finds, and the figures of log lines that it looks at."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from tokenizers_vq.training.advice import Advice

T = TypeVar("T")
Line = Mapping[str, Any]
"""of log.jsonl"""

ENOUGH = 5
"""lines that a verdict wants: of fewer, each may be an accident"""


class Finding(NamedTuple):
    """One thing that is wrong."""

    what: str
    """a short title"""
    when: str
    """the steps that show it"""
    evidence: str
    """the figures"""
    advice: tuple[Advice, ...]
    """what to try, the likeliest first"""


def recent_of(lines: Sequence[Line]) -> Sequence[Line]:
    """The last fifth, five at least."""
    return lines[-_window(len(lines)) :]


def windows(items: Sequence[T]) -> list[Sequence[T]]:
    """Whole windows as long as the recent one, which is the last; none overlap."""
    size = _window(len(items))
    return [items[i : i + size] for i in range(len(items) % size, len(items), size)]


def values(lines: Sequence[Line], name: str) -> list[float]:
    """The figure of this name in the lines that have it."""
    return [float(line[name]) for line in lines if name in line]


def gap(line: Line) -> float:
    """How far the discriminator's mean logits of images and of reconstructions are apart."""
    return float(line["adversary/logits_real"] - line["adversary/logits_fake"])


def mean(figures: Sequence[float]) -> float:
    """NaN of none."""
    return sum(figures) / len(figures) if figures else math.nan


def median(figures: Sequence[float]) -> float:
    """The upper of the two in the middle."""
    return sorted(figures)[len(figures) // 2]


def share(items: Sequence[Any], test: Callable[[Any], bool]) -> float:
    """How many of the items pass."""
    return sum(map(test, items)) / len(items)


def when(lines: Sequence[Line]) -> str:
    """The steps from the first line to the last."""
    return f"steps {lines[0]['step']} to {lines[-1]['step']}"


def _window(count: int) -> int:
    return max(ENOUGH, count // 5)
