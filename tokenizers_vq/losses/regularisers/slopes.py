"""The slope of a discriminator at images, to be differentiated once more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tokenizers_vq.config import ConfigError
from tokenizers_vq.discriminators.base import Discriminator, ask
from tokenizers_vq.losses.record import Record


def check_unmixed(discriminator: Discriminator, penalty: str) -> None:
    """Raises `ConfigError` where an image's logits depend on the others: their slope would be of all of these."""
    if (mixing := discriminator.mixing) is not None:
        path = ("adversary", "discriminator", *mixing.path)
        raise ConfigError(
            path,
            f"{penalty} is about each image's own logits, which {mixing.by} mixes over the batch: "
            f"{mixing.remedy.format(path='.'.join(path))}",
        )


@contextmanager
def twice_differentiable(device: torch.device) -> Iterator[None]:
    """float32 whatever autocast says, since squares of slopes need it; attention unfused: fused has one backward."""
    with torch.autocast(device.type, enabled=False), sdpa_kernel(SDPBackend.MATH):
        yield


def slopes(discriminator: Discriminator, record: Record, images: Tensor, *, averaged: bool) -> Tensor:
    """`d (logits of an image) / d image`, `(B, C, H, W)` like `images`, differentiable at the discriminator's weights.

    Of several logits an image counts their sum, over positions and scales; `averaged`: the mean over positions, then
    over scales, as objectives have it. What else the discriminator looks at is `record`'s, and held.
    """
    with twice_differentiable(images.device):
        leaf = _full(images.detach()).requires_grad_()
        inputs = _full(discriminator.inputs(record, leaf))
        logits = [scale.float() for scale in ask(discriminator, inputs, frozen=False).logits]
        if averaged:
            total = len(images) * torch.stack([scale.mean() for scale in logits]).mean()
        else:
            total = torch.stack([scale.sum() for scale in logits]).sum()
        (gradient,) = torch.autograd.grad(total, leaf, create_graph=True)
    return gradient.float()


def _full(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_full, value))
    half = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if half else value
