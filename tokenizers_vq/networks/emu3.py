"""Encoder and decoder of Emu3 (arXiv 2409.18869): VQGAN's with MoVQ's norms, and convolutions over time at the codes.

Emu3 reads video; an image is a clip of `frames` equal frames that become one time step, and what it decodes to is the
first frame. Equal frames are encoded once, and the first frame is all that is decoded: time is padded in front alone,
so that no later frame reaches it.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn
from typing_extensions import Self

from tokenizers_vq.config import Blocks, Config, ConfigError, Size
from tokenizers_vq.networks.blocks import swish
from tokenizers_vq.networks.normalisation import BatchNorm2d
from tokenizers_vq.networks.vqgan import VqganDecoder, VqganDecoderConfig, VqganEncoder, VqganEncoderConfig


class _TimeFields(Config):
    frames: Size = 4
    """frames of one time step, a power of two: each halving (encoder) or doubling (decoder) has a convolution"""
    time_blocks: Blocks = 2
    """residual blocks over time"""

    @model_validator(mode="after")
    def _check_frames(self) -> Self:
        if self.frames & (self.frames - 1):
            raise ConfigError(("frames",), f"must be a power of two, got {self.frames}")
        return self

    @property
    def halvings(self) -> int:
        """Convolutions over time that halve or double it."""
        return self.frames.bit_length() - 1

    def spatial(self) -> dict[str, Any]:
        """The fields of VQGAN's networks."""
        return {name: value for name, value in self.arguments().items() if name not in _TimeFields.model_fields}


class Emu3EncoderConfig(VqganEncoderConfig, _TimeFields):
    """Encoder of Emu3; published with width 256, multipliers 1-2-2-4, attention at level 3 and 4 frames."""

    kind: Literal["emu3"] = "emu3"  # type: ignore[assignment]

    def build(self, *, dim: int, channels: int, image_size: tuple[int, int]) -> Emu3Encoder:
        """The encoder for images of `channels` and features of `dim`."""
        return Emu3Encoder(dim=dim, channels=channels, **self.arguments())


class Emu3DecoderConfig(VqganDecoderConfig, _TimeFields):
    """Decoder of Emu3; its norms are conditioned on the code, and its channels at the code are the code's."""

    kind: Literal["emu3"] = "emu3"  # type: ignore[assignment]
    norm: Literal["spatial"] = "spatial"
    """every norm scaled and shifted by the code at its place (MoVQ, arXiv 2209.09002)"""

    @model_validator(mode="after")
    def _check_width(self) -> Self:
        if self.latent_width is not None:
            raise ConfigError(("latent_width",), "must be null: code and features go through the same convolutions")
        return self

    def build(self, *, dim: int, channels: int, image_size: tuple[int, int]) -> Emu3Decoder:
        """The decoder from features of `dim` to images of `channels`."""
        return Emu3Decoder(dim=dim, channels=channels, **self.arguments())


class TimeConvolution(nn.Conv3d):
    """`(B, C, T, h, w)` -> `(B, C', T', h, w)`: time padded by 2 in front alone, height and width kept."""

    def __init__(self, width_in: int, width_out: int, time: int = 3, side: int = 3, stride: int = 1) -> None:
        super().__init__(width_in, width_out, (time, side, side), (stride, 1, 1), (0, side // 2, side // 2))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (0, 0, 0, 0, 2, 0)))


class TimeBlock(nn.Module):
    """BatchNorm, swish and a convolution over time, twice, and a residual. `(B, C, T, h, w)` -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = BatchNorm2d(width)
        self.conv1 = TimeConvolution(width, width)
        self.norm2 = BatchNorm2d(width)
        self.conv2 = TimeConvolution(width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(swish(_normalised(self.norm1, x)))
        return x + self.conv2(swish(_normalised(self.norm2, h)))


def _normalised(norm: BatchNorm2d, x: Tensor) -> Tensor:
    return norm(x.flatten(2, 3)).unflatten(2, x.shape[2:4])


class Emu3Encoder(VqganEncoder):
    """`(B, C, H, W)` pixels -> `(B, dim, H/s, W/s)` features, s = 2^(levels - 1). Fields: `Emu3EncoderConfig`."""

    def __init__(self, *, dim: int, channels: int = 3, **fields: Any) -> None:
        config = Emu3EncoderConfig(**fields)
        super().__init__(dim=dim, channels=channels, **config.spatial())
        self.frames, latent = config.frames, config.latent_width or dim
        self.time_down = nn.ModuleList(TimeConvolution(latent, latent, 4, stride=2) for _ in range(config.halvings))
        self.time_blocks = nn.Sequential(*(TimeBlock(latent) for _ in range(config.time_blocks)))
        self.quant_conv = TimeConvolution(latent, dim, side=config.quant_kernel)

    def _to_features(self, h: Tensor) -> Tensor:
        h = self.conv_out(swish(self.norm(h)))
        h = h[:, :, None].expand(-1, -1, self.frames, -1, -1)
        for layer in self.time_down:
            h = swish(layer(h))
        return self.quant_conv(self.time_blocks(h)).squeeze(2)


class Emu3Decoder(VqganDecoder):
    """`(B, dim, h, w)` features -> `(B, C, h*s, w*s)` output. Fields: `Emu3DecoderConfig`."""

    def __init__(self, *, dim: int, channels: int = 3, **fields: Any) -> None:
        config = Emu3DecoderConfig(**fields)
        super().__init__(dim=dim, channels=channels, **config.spatial())
        self.post_quant_conv = TimeConvolution(dim, dim, side=config.quant_kernel)
        self.time_blocks = nn.Sequential(*(TimeBlock(dim) for _ in range(config.time_blocks)))
        self.time_up = nn.ModuleList(TimeConvolution(dim, dim) for _ in range(config.halvings))

    def forward(self, features: Tensor) -> Tensor:
        code = (F.normalize(features, dim=1) if self.normalise_codes else features)[:, :, None]
        both = self.time_blocks(torch.cat([self.post_quant_conv(code), code]))
        for layer in self.time_up:  # behind a doubling of time whose second half the first frame does not see
            both = swish(layer(both))
        h, code = both.squeeze(2).chunk(2)
        return self._synthesise(h, code)
