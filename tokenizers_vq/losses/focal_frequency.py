"""Focal frequency loss (Jiang et al., arXiv 2012.12821): frequencies that are hard to reconstruct weigh more."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokenizers_vq.config import Config, Rate
from tokenizers_vq.losses.record import Record
from tokenizers_vq.losses.terms import Term
from tokenizers_vq.tokenizer import Tokenizer


class FocalFrequencyConfig(Config):
    """Weighted squared difference of the two-dimensional spectra of image and reconstruction."""

    kind: Literal["focal_frequency"] = "focal_frequency"
    weight: Rate = 1.0
    """weight, or a schedule of it"""
    alpha: float = Field(default=1.0, ge=0)
    """exponent of the difference in a frequency's weight; 0: all weigh the same, which is a quarter of the L2 loss"""

    def build(self, tokenizer: Tokenizer | None = None) -> FocalFrequency:
        return FocalFrequency(**self.arguments())


class FocalFrequency(Term):
    """`mean w(u, v) |X(u, v) - Y(u, v)|^2`, of the unitary transforms of images on [0, 1] (eq. 8 and 9).

    `w = |X - Y|^alpha`, over its largest value in that channel of that image; it has no gradient.
    """

    name = "focal_frequency"

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        config = FocalFrequencyConfig(**fields)
        self.weight, self.alpha = config.weight, config.alpha

    def forward(self, record: Record) -> Tensor:
        difference = (record.reconstructions.float() - record.images.float()) / 2
        spectrum = torch.view_as_real(torch.fft.fft2(difference, norm="ortho")).square().sum(dim=-1)
        focus = spectrum.detach() ** (self.alpha / 2)
        largest = focus.amax(dim=(2, 3), keepdim=True)
        # A channel without any difference has no largest one, and no loss whatever its weights are.
        return (focus / largest.where(largest > 0, 1) * spectrum).mean()
