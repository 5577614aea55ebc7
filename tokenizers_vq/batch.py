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
