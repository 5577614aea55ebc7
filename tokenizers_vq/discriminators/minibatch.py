"""Minibatch discrimination (Salimans et al., arXiv 1606.03498, section 3.2) on any discriminator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tokenizers_vq import distributed
from tokenizers_vq.batch import Batch
from tokenizers_vq.config import Config
from tokenizers_vq.discriminators.base import Judgement, Mixing, Wrapper
from tokenizers_vq.discriminators.layers import Width, of_all
from tokenizers_vq.discriminators.projection import raised

if TYPE_CHECKING:
    from tokenizers_vq.discriminators import DiscriminatorConfig


class MinibatchConfig(Config):
    """How near an image lies to the others of its batch, in a few learned spaces, joins all its logits."""

    kind: Literal["minibatch"] = "minibatch"
    discriminator: DiscriminatorConfig
    """the one whose features are compared"""
    kernels: Width = 100
    """B: spaces in which images are compared"""
    dim: Annotated[int, Field(ge=1, le=1024)] = 5
    """C: dimensions of each"""

    def build(self, channels: int = 3, image_size: tuple[int, int] = (256, 256)) -> Minibatch:
        return Minibatch(channels, image_size, **self.arguments())


class Minibatch(Wrapper):
    """`logits + <w, o(x)>`, o being `closeness` of the inner one's last features (means over positions) times T.

    To lay o beside the features before a linear last layer, as the paper does, is the same. The batch is that of all
    processes, which hold equally many images.
    """

    def __init__(self, channels: int = 3, image_size: tuple[int, int] = (256, 256), **fields: Any) -> None:
        super().__init__(MinibatchConfig(**fields), channels, image_size)
        width, kernels, dim = self.feature_width, self.config.kernels, self.config.dim
        self.spaces = nn.Parameter(torch.randn(width, kernels, dim) * width**-0.5)
        self.weight = nn.Parameter(torch.randn(kernels) * kernels**-0.5)

    def check(self, batch: Batch) -> None:
        super().check(batch)
        if len(batch.images) * distributed.world_size() < 2:
            raise ValueError(
                "adversary.discriminator: minibatch compares images with others of their micro-batch, which holds one: "
                "raise `batch_size`, lower `accumulate`, or take minibatch out"
            )

    @property
    def mixing(self) -> Mixing | None:
        """This one itself."""
        return Mixing((), "minibatch discrimination", "take minibatch out of {path}, or the penalty")

    def forward(self, *inputs: Any) -> Judgement:
        """Given as the inner discriminator's `inputs` gives it."""
        judgement: Judgement = self.inner(*inputs)
        pooled = judgement.features[-1].flatten(2).mean(dim=2)
        with torch.autocast(pooled.device.type, enabled=False):  # differences of neighbours would cancel in half
            exact = pooled.to(torch.promote_types(pooled.dtype, torch.float32))
            near = closeness(torch.einsum("na,abc->nbc", exact, self.spaces.to(exact.dtype)))
            amount = near @ self.weight.to(exact.dtype)
        return raised(judgement, amount)


def closeness(places: Tensor) -> Tensor:
    """`o_ib = sum over j != i of exp(-|M_ib - M_jb|_1)` of places M, `(N, B, C)` -> `(N, B)`.

    Published code leaves out j = i, which would add 1. The others are those of all processes.
    """
    rows, processes = len(places), distributed.world_size()
    near = torch.exp(-(places[:, None] - of_all(places)).abs().sum(dim=-1))
    itself = torch.arange(rows, device=places.device) * processes + distributed.rank()
    others = itself[:, None] != torch.arange(rows * processes, device=places.device)
    return (near * others[..., None]).sum(dim=1)
