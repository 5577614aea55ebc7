"""Encoder and decoders of TiTok (Yu et al., arXiv 2406.07550): an image becomes a short row of codes, without a grid.

A vision transformer reads patches and T learned latent tokens, of which only the latents go on to be quantized; another
reads the codes' vectors and one mask token a patch. Positions and T belong to one image size, so no other is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from tokenizers_vq.config import Blocks, Config, ConfigError, Size
from tokenizers_vq.networks.base import Decoder, DecoderFields, Encoder
from tokenizers_vq.networks.blocks import precise, stride_grid
from tokenizers_vq.networks.linear import use_onednn
from tokenizers_vq.networks.maskgit import MaskgitDecoderConfig
from tokenizers_vq.networks.transformer import Attention, Block


class _TitokConfig(Config):
    tokens: Size = 32
    """latent tokens: the codes of an image; encoder's and decoder's must agree"""
    patch: Size = 16
    """side of a patch in pixels"""
    width: Size = 512
    """width of a token"""
    layers: Blocks = Field(default=8, ge=1)
    """transformer blocks"""
    heads: Size = 8
    """attention heads"""
    mlp: Size | None = None
    """width inside a feed-forward; null = 4 x `width`"""

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.width % self.heads:
            raise ConfigError(("heads",), f"{self.heads} heads do not divide the width {self.width}")
        return self


class TitokEncoderConfig(_TitokConfig):
    """Encoder of TiTok; published: small 8 x 512 with 8 heads, base 12 x 768 with 12, large 24 x 1024 with 16."""

    kind: Literal["titok"] = "titok"
    legacy_reshape: bool = False
    """read the T x width latents as width x T without transposing, as the published two-stage models do by mistake"""

    def build(self, *, dim: int, channels: int, image_size: tuple[int, int]) -> TitokEncoder:
        """The encoder for images of `channels` and of `image_size`, and features of `dim`."""
        return TitokEncoder(dim=dim, channels=channels, image_size=image_size, **self.arguments())


class _TitokDecoderConfig(_TitokConfig, DecoderFields):
    tail_dropout: float = Field(default=0.0, ge=0, le=1)
    """share of the training batches that lose their last codes, how many is drawn evenly; above 0, any first codes of
    an image decode by themselves (One-D-Piece, arXiv 2501.10064)"""


class TitokDecoderConfig(_TitokDecoderConfig):
    """Single-stage decoder of TiTok, which gives pixels; its sizes need not be the encoder's."""

    kind: Literal["titok"] = "titok"

    def build(self, *, dim: int, channels: int, image_size: tuple[int, int]) -> TitokDecoder:
        """The decoder from features of `dim` to images of `channels` and of `image_size`."""
        return TitokDecoder(dim=dim, channels=channels, image_size=image_size, **self.arguments())


class TitokProxyDecoderConfig(_TitokDecoderConfig):
    """Two-stage decoder of TiTok, which predicts another tokenizer's codes and decodes them with that one's decoder."""

    kind: Literal["titok_proxy"] = "titok_proxy"
    proxy_codes: int = Field(default=1024, ge=1, le=2**31)
    """codes of the other tokenizer"""
    proxy_dim: Size = 256
    """width of its codes"""
    proxy: MaskgitDecoderConfig = MaskgitDecoderConfig()
    """its decoder"""
    stage: Literal["codes", "pixels"] = "codes"
    """codes: gives logits, for the loss `proxy_codes`, the proxy frozen; pixels: gives images, and the proxy trains"""

    @model_validator(mode="after")
    def _check_output(self) -> Self:
        if self.output != "pixels":
            raise ConfigError(("output",), "of a titok_proxy decoder is pixels: give proxy.output instead")
        if self.proxy.output != "pixels":
            raise ConfigError(("proxy", "output"), "a titok_proxy decoder needs a proxy that gives pixels")
        return self

    def build(self, *, dim: int, channels: int, image_size: tuple[int, int]) -> TitokProxyDecoder:
        """The decoder from features of `dim` to images of `channels` and of `image_size`."""
        return TitokProxyDecoder(dim=dim, channels=channels, image_size=image_size, **self.arguments())


class _Trunk(nn.Module):
    """A class token, patches and latents with learned positions through pre-norm blocks; `norm` is for the caller."""

    def __init__(self, config: _TitokConfig, patches: int) -> None:
        super().__init__()
        width = config.width
        # As large as what the patches hold, so that attention tells places apart from the first step on.
        self.class_token = nn.Parameter(0.5 * torch.randn(1, width))
        self.positions = nn.Parameter(0.5 * torch.randn(1 + patches, width))
        self.latent_positions = nn.Parameter(0.5 * torch.randn(config.tokens, width))
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            Block(Attention(width, config.heads), width, config.mlp or 4 * width) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, patches: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, N, width)` and `(B, T, width)` -> the same two."""
        first = self.class_token.to(patches.dtype).expand(patches.shape[0], 1, -1)
        tokens = torch.cat([first, patches], dim=1) + self.positions.to(patches.dtype)
        places = self.latent_positions[: latents.shape[1]].to(latents.dtype)
        tokens = torch.cat([tokens, (latents + places).to(tokens.dtype)], dim=1)
        tokens = self.norm_in(tokens)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens[:, 1 : 1 + patches.shape[1]], tokens[:, 1 + patches.shape[1] :]


def _initialise(network: nn.Module) -> None:
    # All that a latent learns of the image comes through attention. With the published weights of std 0.02 the latents
    # of all images stay alike for thousands of steps.
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)


class TitokEncoder(Encoder):
    """`(B, C, H, W)` pixels of `image_size` -> `(B, dim, T)` features. Fields: `TitokEncoderConfig`."""

    def __init__(self, *, dim: int, channels: int = 3, image_size: tuple[int, int] = (256, 256), **fields: Any) -> None:
        super().__init__()
        self.config = config = TitokEncoderConfig(**fields)
        self.size = image_size
        height, width = stride_grid(*image_size, config.patch)
        self.embed = nn.Linear(channels * config.patch**2, config.width)
        self.latents = nn.Parameter(config.width**-0.5 * torch.randn(config.tokens, config.width))
        self.trunk = _Trunk(config, height * width)
        self.quant_conv = nn.Linear(config.width, dim)
        _initialise(self)
        use_onednn(self)

    def grid(self, height: int, width: int) -> tuple[int]:
        """`(T,)`. Raises `ValueError` for any size but `image_size`: T codes do not tell the decoder another."""
        if (height, width) != self.size:
            wanted = "x".join(map(str, self.size))
            raise ValueError(
                f"this tokenizer's {self.config.tokens} codes stand for images of {wanted}, got {height}x{width}: "
                f"resize or crop to {wanted}"
            )
        return (self.config.tokens,)

    def forward(self, pixels: Tensor) -> Tensor:
        patch = self.config.patch
        patches = precise(self.embed, rearrange(pixels, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch))
        _, latents = self.trunk(patches, self.latents.to(patches.dtype).expand(patches.shape[0], -1, -1))
        return rearrange(precise(self._to_features, latents), "b t d -> b d t")

    def _to_features(self, latents: Tensor) -> Tensor:
        latents = self.trunk.norm(latents)
        if self.config.legacy_reshape:
            latents = latents.reshape(latents.shape[0], self.config.width, self.config.tokens).mT
        return self.quant_conv(latents)

    def trunk_blocks(self) -> Iterator[nn.Module]:
        yield from self.trunk.blocks


class _MaskDecoder(Decoder):
    """What both decoders share: codes' vectors and mask tokens in, patches out."""

    def __init__(self, config: _TitokDecoderConfig, dim: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.patch, self.tokens, self.tail_dropout = config.patch, config.tokens, config.tail_dropout
        self.prefixes = config.tail_dropout > 0
        self.patches = stride_grid(*image_size, config.patch)
        self.post_quant_conv = nn.Linear(dim, config.width)
        self.mask_token = nn.Parameter(config.width**-0.5 * torch.randn(1, 1, config.width))
        self.trunk = _Trunk(config, self.patches[0] * self.patches[1])

    def _transform(self, features: Tensor) -> Tensor:
        """`(B, dim, T)` -> `(B, h*w, width)`."""
        kept = features.shape[2:]
        if kept != (self.tokens,) and not (self.prefixes and len(kept) == 1 and 1 <= kept[0] < self.tokens):
            fewer = ", or its first ones" if self.prefixes else ""
            raise ValueError(
                f"an image has {self.tokens} codes here{fewer}, got {tuple(kept)}: decode what this tokenizer encoded, "
                "and give encoder and decoder the same `tokens`"
            )
        if self.training and self.tail_dropout and float(torch.rand(())) < self.tail_dropout:
            features = features[:, :, : int(torch.randint(1, self.tokens + 1, ()))]
        latents = self.post_quant_conv(rearrange(features, "b d t -> b t d"))
        count = self.patches[0] * self.patches[1]
        masks = self.mask_token.to(latents.dtype).expand(latents.shape[0], count, -1)
        patches: Tensor = self.trunk.norm(self.trunk(masks, latents)[0])
        return patches

    def trunk_blocks(self) -> Iterator[nn.Module]:
        yield from self.trunk.blocks


class TitokDecoder(_MaskDecoder):
    """`(B, dim, T)` features -> `(B, C, H, W)` output of `image_size`. Fields: `TitokDecoderConfig`."""

    def __init__(self, *, dim: int, channels: int = 3, image_size: tuple[int, int] = (256, 256), **fields: Any) -> None:
        config = TitokDecoderConfig(**fields)
        super().__init__(config, dim, image_size)
        self.distribution = config.output
        self.to_pixels = nn.Linear(config.width, config.patch**2 * channels)
        self.head = nn.Conv2d(channels, config.output_channels(channels), 3, padding=1)
        _initialise(self)
        use_onednn(self)

    def forward(self, features: Tensor) -> Tensor:
        patches = self.to_pixels(self._transform(features))
        return self.head(
            rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=self.patches[0], p=self.patch, q=self.patch)
        )


class TitokProxyDecoder(_MaskDecoder):
    """`(B, dim, T)` features -> logits `(B, K, h, w)` of the proxy's codes, or images `(B, C, H, W)`.

    Fields: `TitokProxyDecoderConfig`. `render` turns logits into pixels: the mean of the proxy's code vectors under
    softmax, then its decoder.
    """

    def __init__(self, *, dim: int, channels: int = 3, image_size: tuple[int, int] = (256, 256), **fields: Any) -> None:
        config = TitokProxyDecoderConfig(**fields)
        super().__init__(config, dim, image_size)
        self.stage = config.stage
        self.expand = nn.Linear(config.width, 2 * config.width)
        self.logits = nn.Linear(2 * config.width, config.proxy_codes)
        _initialise(self)
        self.codebook = nn.Parameter(torch.empty(config.proxy_codes, config.proxy_dim))
        nn.init.uniform_(self.codebook, -1 / config.proxy_codes, 1 / config.proxy_codes)
        self.proxy = config.proxy.build(dim=config.proxy_dim, channels=channels, image_size=image_size)
        if config.stage == "codes":
            self.codebook.requires_grad_(False)
            self.proxy.requires_grad_(False)
        use_onednn(self)

    @property
    def head(self) -> nn.Module:  # type: ignore[override]  # which of its parts is the last depends on the stage
        """The last layer before the output."""
        return self.logits if self.stage == "codes" else self.proxy.head

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.expand(self._transform(features))
        logits = self.logits(hidden.float().tanh().to(hidden.dtype))  # in bfloat16 a CPU takes many times as long
        logits = rearrange(logits, "b (h w) k -> b k h w", h=self.patches[0])
        return logits if self.stage == "codes" else self._decode(logits)

    def render(self, output: Tensor) -> Tensor:
        return self._decode(output) if self.stage == "codes" else output

    @torch.no_grad()
    def adopt(self, codebook: Tensor, decoder: Decoder) -> None:
        """Take a trained proxy's codes `(K, D)` and decoder, for stage 1. Raises `ValueError` where they do not fit.

        `tokenizer.decoder.adopt(proxy.quantizer.codebook, proxy.decoder)`, and save it for `tvq train --init-from`.
        """
        if codebook.shape != self.codebook.shape:
            raise ValueError(
                f"the codes to adopt are {tuple(codebook.shape)}, this decoder's {tuple(self.codebook.shape)}: "
                f"give decoder.proxy_codes={codebook.shape[0]} and decoder.proxy_dim={codebook.shape[1]}"
            )
        ours, theirs = self.proxy.state_dict(), decoder.state_dict()
        misfit = sorted(
            name
            for name in {*ours, *theirs}
            if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape
        )
        if misfit:
            raise ValueError(
                f"decoder.proxy does not fit the decoder to adopt, first at {misfit[0]}: give it its fields"
            )
        self.codebook.copy_(codebook)
        self.proxy.load_state_dict(theirs)

    def _decode(self, logits: Tensor) -> Tensor:
        shares = logits.float().softmax(dim=1).to(logits.dtype)
        return self.proxy(torch.einsum("bkhw,kd->bdhw", shares, self.codebook.to(shares.dtype)))

    def trunk_blocks(self) -> Iterator[nn.Module]:
        yield from super().trunk_blocks()
        yield from self.proxy.trunk_blocks()
