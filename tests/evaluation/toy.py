"""A tokenizer of patch means: every 4x4 patch becomes one of K levels of grey, or K vectors where several channels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_vq.codes import CodeLayout


class ToyTokenizer:
    """Grey patch means, `size` levels evenly spaced in [-1, 1]."""

    def __init__(self, size: int = 8, image_size: int = 16, channels: int = 3) -> None:
        self.size, self.config = size, SimpleNamespace(image_size=image_size, channels=channels)
        self.quantizers = (SimpleNamespace(codebook=torch.linspace(-1, 1, size)[:, None]),)
        self.fingerprint = "toy"
        self.training = True
        self.modes: list[bool] = []

    def eval(self) -> None:
        self.training = False

    def train(self) -> None:
        self.training = True

    def code_layout(self, height: int | None = None, width: int | None = None) -> CodeLayout:
        height, width = height or self.config.image_size, width or self.config.image_size
        return CodeLayout(((height // 4, width // 4),), 1, (self.size,))

    def encode(self, images: Tensor) -> Any:
        self.modes.append(self.training)
        means = F.avg_pool2d(images.mean(1, keepdim=True), 4)[:, 0]
        return ((means + 1) / 2 * (self.size - 1)).round().long()

    def decode(self, codes: Any) -> Tensor:
        values = codes.float() / (self.size - 1) * 2 - 1
        grown = values.repeat_interleave(4, 1).repeat_interleave(4, 2)
        return grown[:, None].expand(-1, self.config.channels, -1, -1)


class ExactTokenizer(ToyTokenizer):
    """Decodes to the last images it saw."""

    def encode(self, images: Tensor) -> Any:
        self.last = images
        return super().encode(images)

    def decode(self, codes: Any) -> Tensor:
        return self.last


class ShadedTokenizer(ToyTokenizer):
    """Adds some of the last images it saw, so that patches are not flat."""

    def encode(self, images: Tensor) -> Any:
        self.last = images
        return super().encode(images)

    def decode(self, codes: Any) -> Tensor:
        return 0.5 * super().decode(codes) + 0.25 * self.last


class SequenceTokenizer(ToyTokenizer):
    """Two one-dimensional grids of two levels each, as unlike an image as codes get."""

    def code_layout(self, height: int | None = None, width: int | None = None) -> CodeLayout:
        return CodeLayout(((2,), (6,)), 2, (self.size,) * 4)

    def encode(self, images: Tensor) -> Any:
        codes = super().encode(images).flatten(1).repeat(1, 2)
        return codes[:, :4].reshape(-1, 2, 2), codes[:, 4:16].reshape(-1, 6, 2)

    def decode(self, codes: Any) -> Tensor:
        return torch.zeros(len(codes[0]), 3, 16, 16)


def batches(images: Tensor, size: int = 4) -> list[dict[str, Any]]:
    """Batches of `size`, the last one smaller."""
    return [{"images": part} for part in images.split(size)]
