"""`Batch`: images of one micro-batch and what the data say of each, as losses and discriminators see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from tokenizers_vq import checks


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


def check_captions(captions: Sequence[tuple[str, ...]] | None, user: str) -> list[tuple[str, ...]]:
    """The captions of each image that say anything, one or more.

    Raises `ValueError`, one line, where the data have none, or an image has none. `user`: what asks for them.
    """
    if captions is None:
        raise ValueError(
            f"{user} needs a caption for each image, and the data have none: give data with captions "
            "(`data.caption_column`), or take it out"
        )
    said = [tuple(text for text in texts if text.strip()) for texts in captions]
    if without := sum(not texts for texts in said):
        raise ValueError(
            f"{user} needs a caption for each image; {without} of {len(said)} images have none: give each one, or take "
            "it out"
        )
    return said


def check_labels(labels: Tensor | None, classes: int, user: str, field: str) -> Tensor:
    """The labels, `(B,)` int64, where each is one of 0 to `classes - 1`.

    Raises `ValueError`, one line, where the data have none, an image has none, or one is out of range. `user`: what
    asks for them; `field`: where a recipe says how many classes there are.
    """
    if labels is not None and checks.noting():
        # An index out of range would end an accelerator's process before anybody is told.
        within = labels.clamp(0, classes - 1)
        checks.check((labels == within).all(), lambda: _refuse_labels(labels, classes, user, field))
        return within
    return _refuse_labels(labels, classes, user, field)


def _refuse_labels(labels: Tensor | None, classes: int, user: str, field: str) -> Tensor:
    if labels is None or (labels.numel() and bool((labels < 0).all())):
        raise ValueError(
            f"{user} needs a label for each image, and the data have none: give data with labels (folders of "
            "classes, or `data.label_column`), or take it out"
        )
    if without := int((labels < 0).sum()):
        raise ValueError(
            f"{user} needs a label for each image; {without} of {len(labels)} images have none (-1): give each one, or "
            "take it out"
        )
    if labels.numel() and (high := int(labels.max())) >= classes:
        raise ValueError(
            f"{field}: label {high} is out of range, {classes} classes have labels 0 to {classes - 1}: "
            f"set {field.rpartition('.')[2]} to {high + 1} or more"
        )
    return labels
