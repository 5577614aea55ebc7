"""Stands where a published tokenizer has no decoder: it encodes, and says what is missing where it should decode."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from tokenizers_vq.config import Size
from tokenizers_vq.networks.base import Decoder, DecoderFields


class AbsentDecoderConfig(DecoderFields):
    """No decoder, but for the convolution behind the codes, which transformers keeps."""

    kind: Literal["absent"] = "absent"
    latent_width: Size
    """channels after that convolution"""
    advice: str
    """what the error of `decode` says behind `this tokenizer only encodes`: where a decoder is found"""

    def build(self, *, dim: int, channels: int, image_size: tuple[int, int]) -> AbsentDecoder:
        """The decoder that refuses."""
        return AbsentDecoder(dim=dim, latent_width=self.latent_width, advice=self.advice)


class AbsentDecoder(Decoder):
    """Raises `ValueError` for any features. Fields: `AbsentDecoderConfig`."""

    def __init__(self, *, dim: int, latent_width: int, advice: str) -> None:
        super().__init__()
        self.advice = advice
        self.head = nn.Conv2d(dim, latent_width, 1)

    def forward(self, features: Tensor) -> Tensor:
        raise ValueError(f"this tokenizer only encodes: {self.advice}")
