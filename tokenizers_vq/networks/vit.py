"""Encoder and decoder of ViT-VQGAN (Yu et al., arXiv 2110.04627): vision transformers on non-overlapping patches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from tokenizers_vq.config import Blocks, Config, ConfigError, Size
from tokenizers_vq.networks.base import Decoder, DecoderFields, Encoder
from tokenizers_vq.networks.blocks import precise, stride_grid
from tokenizers_vq.networks.linear import use_onednn
from tokenizers_vq.networks.transformer import Attention, Block, Mlp


class _VitConfig(Config):
    patch: Size = 8
    """side of a patch in pixels: the stride"""
    width: Size = 512
    """width of a token"""
    layers: Blocks = Field(default=8, ge=1)
    """transformer blocks"""
    heads: Size = 8
    """attention heads"""
    head_width: Size | None = None
    """width of a head; null = `width` / `heads`"""
    mlp: Size | None = None
    """width inside a feed-forward; null = 4 x `width`"""
    activation: Literal["gelu", "tanh"] = "gelu"
    """of the blocks' feed-forwards (tanh: enhancing-transformers)"""
    qkv_bias: bool = True
    """biases of queries, keys and values"""
    projection: bool = True
    """a linear layer after attention (enhancing-transformers leaves it out of a single head as wide as the token)"""
    positions: Literal["learned", "sincos"] = "learned"
    """position embeddings: learned, or fixed two-dimensional sines and cosines; both interpolate to other sizes"""
    tanh_head: bool = True
    """a feed-forward with tanh after the last block (section 3.1)"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.head_width is None and self.width % self.heads:
            raise ConfigError(("heads",), f"{self.heads} heads do not divide the width {self.width}")
        if not self.projection and (self.head_width or self.width // self.heads) * self.heads != self.width:
            raise ConfigError(
                ("projection",), "only heads that are together as wide as a token can do without a projection"
            )
        if self.positions == "sincos" and self.width % 4:
            raise ConfigError(("width",), f"sincos positions need a width divisible by 4, got {self.width}")
        return self


class VitEncoderConfig(_VitConfig):
    """Encoder of ViT-VQGAN; published: small 8 x 512 with 8 heads, base 12 x 768 with 12, large 32 x 1280 with 16."""

    kind: Literal["vit"] = "vit"

    def build(self, *, dim: int, channels: int, image_size: tuple[int, int]) -> VitEncoder:
        """The encoder for images of `channels` and features of `dim`; positions are those of `image_size`."""
        return VitEncoder(dim=dim, channels=channels, image_size=image_size, **self.arguments())


class VitDecoderConfig(_VitConfig, DecoderFields):
    """Decoder of ViT-VQGAN; its sizes need not be the encoder's."""

    kind: Literal["vit"] = "vit"
    bias: Literal["pixel", "channel"] = "pixel"
    """of the layer that makes patches: one for each pixel of a patch, or one a channel (enhancing-transformers)"""
    overlap: Blocks = 0
    """3x3 convolutions over the image that the patches make, which see across their borders; 0 = none, as published"""
    overlap_width: Size = 32
    """channels between those convolutions"""

    def build(self, *, dim: int, channels: int, image_size: tuple[int, int]) -> VitDecoder:
        """The decoder from features of `dim` to images of `channels`; positions are those of `image_size`."""
        return VitDecoder(dim=dim, channels=channels, image_size=image_size, **self.arguments())


class _Tanh(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float().tanh().to(x.dtype)  # in bfloat16 a CPU takes many times as long


class _Trunk(nn.Module):
    """Positions, pre-norm blocks, a last norm, and the tanh feed-forward: `(B, h*w, width)` -> the same."""

    def __init__(self, config: _VitConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        if config.positions == "learned":
            positions = torch.empty(1, grid[0] * grid[1], config.width)
            self.positions = nn.Parameter(nn.init.trunc_normal_(positions, std=0.02))
        else:
            self.positions = nn.Parameter(sincos_positions(grid, config.width)[None], requires_grad=False)
        inner = config.mlp or 4 * config.width
        activation = _Tanh if config.activation == "tanh" else nn.GELU
        self.blocks = nn.ModuleList(
            Block(
                Attention(config.width, config.heads, config.head_width, config.qkv_bias),
                config.width,
                inner,
                activation,
            )
            for _ in range(config.layers)
        )
        if not config.projection:
            for block in self.blocks:
                block.attn.proj = nn.Identity()  # type: ignore[union-attr]
        self.norm = nn.LayerNorm(config.width)
        self.head = Mlp(config.width, inner, _Tanh) if config.tanh_head else nn.Identity()

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        tokens = tokens + self._positions(grid).to(tokens.dtype)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def end(self, tokens: Tensor) -> Tensor:
        """The last norm and the tanh feed-forward."""
        return self.head(self.norm(tokens))

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        if grid == self.grid:
            return self.positions
        return _resampled(self.positions, self.grid, grid)


def _resampled(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Positions `(1, N, width)` of one grid, stretched to another (bicubic, antialiased), in their dtype."""
    plane = rearrange(positions.float(), "b (h w) d -> b d h w", h=old[0])
    plane = F.interpolate(plane, size=new, mode="bicubic", antialias=True)
    return rearrange(plane, "b d h w -> b (h w) d").to(positions.dtype)


def sincos_positions(grid: tuple[int, int], width: int) -> Tensor:
    """float32 `(h*w, width)`: sines and cosines of the column, then of the row (He et al., arXiv 2111.06377)."""
    if torch.get_default_device().type == "meta":  # of a config alone, whose image may be of any size
        return torch.empty(grid[0] * grid[1], width)
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64, device="cpu") / (width // 4))
    rows, columns = (torch.arange(size, dtype=torch.float64, device="cpu") for size in grid)
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (column, row)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()


def _initialise(network: nn.Module, trunk: _Trunk) -> None:
    # Blocks begin near the identity, weights of std 0.02. With Xavier's throughout they would drown what
    # the patches say beyond their mean, and the codes learn little else for thousands of steps.
    inner = {*trunk.blocks.modules(), *trunk.head.modules()}
    for module in network.modules():
        if isinstance(module, nn.Linear):
            if module in inner:
                nn.init.trunc_normal_(module.weight, std=0.02)
            else:
                nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class VitEncoder(Encoder):
    """`(B, C, H, W)` pixels -> `(B, dim, H/patch, W/patch)` features. Fields: `VitEncoderConfig`."""

    def __init__(self, *, dim: int, channels: int = 3, image_size: tuple[int, int] = (256, 256), **fields: Any) -> None:
        super().__init__()
        config = VitEncoderConfig(**fields)
        self.patch = config.patch
        self.embed = nn.Linear(channels * config.patch**2, config.width)
        self.trunk = _Trunk(config, self.grid(*image_size))
        self.quant_conv = nn.Linear(config.width, dim)
        _initialise(self, self.trunk)
        use_onednn(self)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return stride_grid(height, width, self.patch)

    def forward(self, pixels: Tensor) -> Tensor:
        grid = self.grid(*pixels.shape[-2:])
        patches = rearrange(pixels, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch, q=self.patch)
        features = precise(self._to_features, self.trunk(precise(self.embed, patches), grid))
        return rearrange(features, "b (h w) d -> b d h w", h=grid[0])

    def _to_features(self, tokens: Tensor) -> Tensor:
        return self.quant_conv(self.trunk.end(tokens))

    def trunk_blocks(self) -> Iterator[nn.Module]:
        yield from self.trunk.blocks


class _Overlap(nn.Sequential):
    """3x3 convolutions before the last: `(B, C, H, W)` -> `(B, C + width, H, W)`, behind the input what they make."""

    def __init__(self, channels: int, width: int, count: int) -> None:
        pairs = itertools.pairwise([channels, *[width] * count])
        super().__init__(*(layer for pair in pairs for layer in (nn.Conv2d(*pair, 3, padding=1), nn.GELU())))

    def forward(self, input: Tensor) -> Tensor:
        return torch.cat([input, super().forward(input)], dim=1) if len(self) else input


class VitDecoder(Decoder):
    """`(B, dim, h, w)` features -> `(B, C, h*patch, w*patch)` output. Fields: `VitDecoderConfig`.

    With `overlap`, the last convolution is the `head` and begins as the identity on the image of the patches.
    """

    def __init__(self, *, dim: int, channels: int = 3, image_size: tuple[int, int] = (256, 256), **fields: Any) -> None:
        super().__init__()
        config = VitDecoderConfig(**fields)
        self.patch, self.distribution = config.patch, config.output
        self.post_quant_conv = nn.Linear(dim, config.width)
        self.trunk = _Trunk(config, stride_grid(*image_size, config.patch))
        out = config.output_channels(channels)
        patches = nn.Linear(config.width, out * config.patch**2, bias=config.bias == "pixel")
        self.overlap: _Overlap | None = None
        if config.overlap:
            self.patches, before = patches, config.overlap - 1
            self.overlap = _Overlap(out, config.overlap_width, before)
            self.head = nn.Conv2d(out + (config.overlap_width if before else 0), out, 3, padding=1)
            nn.init.dirac_(self.head.weight)
            nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        else:
            self.head = patches
        self.bias = nn.Parameter(torch.zeros(out)) if config.bias == "channel" else None
        _initialise(self, self.trunk)
        use_onednn(self)

    def forward(self, features: Tensor) -> Tensor:
        height, width = features.shape[-2:]
        tokens = self.post_quant_conv(rearrange(features, "b d h w -> b (h w) d"))
        tokens = self.trunk.end(self.trunk(tokens, (height, width)))
        patches = self.head(tokens) if self.overlap is None else self.patches(tokens)
        output = rearrange(patches, "b (h w) (c p q) -> b c (h p) (w q)", h=height, p=self.patch, q=self.patch)
        output = output if self.bias is None else output + self.bias[:, None, None]
        return output if self.overlap is None else self.head(self.overlap(output))

    def trunk_blocks(self) -> Iterator[nn.Module]:
        yield from self.trunk.blocks
        if self.overlap:
            yield self.overlap
