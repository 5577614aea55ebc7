"""The Gram loss (Gatys et al., arXiv 1508.06576): textures alike, wherever in the image they lie."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from tokenizers_vq.losses.stages import StagesConfig, StagesTerm
from tokenizers_vq.tokenizer import Tokenizer


def gram(features: Tensor) -> Tensor:
    """`(B, C, H, W)` -> float32 `(B, C, C)`, `F F^T / (C H W)`; in float32 whatever the autocast."""
    _, channels, height, width = features.shape
    with torch.autocast(features.device.type, enabled=False):
        flat = features.float().flatten(2)
        return flat @ flat.transpose(1, 2) / (channels * height * width)


class GramConfig(StagesConfig):
    """Distance of the Gram matrices of a timm backbone's features at chosen stages; also called the style loss.

    On photographs the default backbone gives a gradient some 10^5 times that of L1: begin with a weight near 1e-5.
    """

    kind: Literal["gram"] = "gram"

    def build(self, tokenizer: Tokenizer | None = None) -> Gram:
        return Gram(**self.arguments())


class Gram(StagesTerm):
    """`mean over stages of w_s * |G(x) - G(y)|_F^2`, averaged over the batch; G as in Johnson et al. (1603.08155)."""

    name = "gram"

    def __init__(self, **fields: Any) -> None:
        super().__init__(GramConfig(**fields))

    def distance(self, real: Tensor, fake: Tensor) -> Tensor:
        return (gram(real) - gram(fake)).square().sum(dim=(1, 2)).mean()
