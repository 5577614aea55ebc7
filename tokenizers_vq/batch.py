"""`Batch`: images of one micro-batch and what the data say of each, as losses and discriminators see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """One micro-batch of B images. What the data do not have is None."""

    images: Tensor
    """`(B, C, H, W)` in [-1, 1]"""
    keys: Sequence[str] = ()
    """names of the images"""
    labels: Tensor | None = None
    """`(B,)` int64, -1 where an image has none"""
    captions: Sequence[tuple[str, ...]] | None = None
    """all captions of each image, `()` where it has none"""

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Batch:
        """The batch that a loader gives; fields which it lacks stay None, others of it are left out."""
        return cls(**{name: data[name] for name in cls._fields if name in data})


def check_labels(labels: Tensor | None, classes: int, user: str) -> Tensor:
    """The labels, `(B,)` int64, where each is one of 0 to `classes - 1`; else raises `ValueError`, one line."""
    if labels is None:
        raise ValueError(f"{user} needs labels, but the data have none: give data.label_column, or take it out")
    if labels.numel():
        low, high = (int(bound) for bound in labels.aminmax())
        if low < 0:
            raise ValueError(f"{user} needs a label for every image, but some have none: leave these out of the data")
        if high >= classes:
            raise ValueError(f"{user}: `classes` is {classes}, but the data have label {high}: give {high + 1} or more")
    return labels
