"""Off-diagonal orthogonality (Brock et al., BigGAN, arXiv 1809.11096): filters of a layer that do not overlap."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from tokenizers_vq.config import Config, Rate
from tokenizers_vq.discriminators.base import Discriminator, Judgement
from tokenizers_vq.discriminators.stylegan2 import EqualisedConv2d, EqualisedLinear
from tokenizers_vq.losses.objectives import Objective
from tokenizers_vq.losses.record import Record
from tokenizers_vq.losses.regularisers.base import Every, Regulariser


class OrthogonalConfig(Config):
    """Orthogonal filters of any length (Brock et al., arXiv 1809.11096, eq. 3)."""

    kind: Literal["orthogonal"] = "orthogonal"
    weight: Rate = 1e-4
    """beta"""
    every: Every = 1

    def build(self, discriminator: Discriminator, objective: Objective) -> Orthogonal:
        return Orthogonal(**self.arguments())


class Orthogonal(Regulariser):
    """`sum over layers of |W^T W * (1 - I)|^2`: products of different columns; their own lengths are free.

    A column of W, `(fan-in, outputs)`, is what makes one output: a filter. Biases, norms and tables of embeddings
    are left out; weights that a layer scales (StyleGAN2's) count as it uses them.
    """

    name = "orthogonal"

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        config = OrthogonalConfig(**fields)
        self.weight, self.every = config.weight, config.every

    def forward(self, record: Record, discriminator: Discriminator, real: Judgement, fake: Judgement) -> Tensor:
        with torch.autocast(record.images.device.type, enabled=False):
            return torch.stack([_overlap(filters) for filters in _filters(discriminator)]).sum()


def _filters(discriminator: Discriminator) -> list[Tensor]:
    """W^T of every layer, `(outputs, fan-in)`."""
    found = []
    for module in discriminator.modules():
        scale = module.scale if isinstance(module, (EqualisedConv2d, EqualisedLinear)) else 1.0
        for parameter in () if isinstance(module, nn.Embedding) else module.parameters(recurse=False):
            if parameter.requires_grad and parameter.ndim >= 2:
                found.append(scale * parameter.float().flatten(1))
    return found


def _overlap(filters: Tensor) -> Tensor:
    products = filters @ filters.T
    return (products - products.diag().diag()).square().sum()
