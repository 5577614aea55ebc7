"""VQBridge: in training the codebook passes a small network, so that each update moves all codes (arXiv 2509.10140)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from tokenizers_vq.codes import CodeLayout, Quantized
from tokenizers_vq.config import MOST_CODES, Blocks, ConfigError, Size
from tokenizers_vq.quantizers.base import (
    Quantizer,
    QuantizerFields,
    Remedy,
    check_codes,
    check_in_all_processes,
    fewer_codes,
    narrower,
    straight_through,
)
from tokenizers_vq.quantizers.rotation import rotate
from tokenizers_vq.quantizers.search import nearest_codes
from tokenizers_vq.quantizers.statistics import code_stats, count
from tokenizers_vq.quantizers.vector import VectorQuantizer, VectorQuantizerConfig


class VqBridgeQuantizerConfig(QuantizerFields):
    """A codebook behind a small network; saved, it is a plain one, and its kind is `vector`."""

    kind: Literal["vqbridge"] = "vqbridge"
    num_codes: int = Field(default=16384, ge=1, le=MOST_CODES)
    """codes in the codebook"""
    dim: Size = 256
    """width of a code"""
    beta: float = 0.25
    """weight of the commitment term"""
    estimator: Literal["straight_through", "rotation"] = "straight_through"
    """gradient of the features: the code's as it is, or turned and scaled as the feature is to its code (2410.06424)"""
    network: Literal["vit", "mlp"] = "vit"
    """vit: attention between patches of codes (the paper's); mlp: two layers, code by code"""
    width: Size = 256
    """vit: width of a token; mlp: of the hidden layer"""
    layers: Blocks = Field(default=2, ge=1)
    """vit: blocks"""
    heads: Size = 4
    """vit: attention heads"""
    patch: Size = 4
    """vit: the codes stand on a square, of which patch x patch are one token"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        side = math.isqrt(self.num_codes)
        if self.network == "vit" and (side * side != self.num_codes or side % self.patch):
            raise ConfigError(
                ("num_codes",),
                f"{self.num_codes} codes are no square whose side {self.patch} divides: a vit bridge reads patches of "
                f"{self.patch}x{self.patch} codes, so take {self.patch**2} x a square number, or network: mlp",
            )
        if self.network == "vit" and self.width % self.heads:
            raise ConfigError(("heads",), f"{self.heads} heads do not divide the width {self.width}")
        return self

    def remedies(self) -> list[Remedy]:
        """Fewer dimensions, fewer codes."""
        return narrower(self) + fewer_codes(self)

    def folded(self) -> VectorQuantizerConfig:
        """Of the codebook behind its network."""
        return VectorQuantizerConfig(num_codes=self.num_codes, dim=self.dim, beta=self.beta, estimator=self.estimator)

    def build(self) -> VqBridgeQuantizer:
        """The quantizer."""
        return VqBridgeQuantizer(**self.arguments())


class VqBridgeQuantizer(Quantizer):
    """Features `(B, D, *grid)` to the nearest row of bridge(weight). Fields: `VqBridgeQuantizerConfig`.

    Losses as `VectorQuantizer`'s, of the bridged codes: `codebook` = |sg[z] - q|^2, which trains the bridge and through
    it all codes, and `commitment` = beta |z - sg[q]|^2. `folded` is the same quantizer without the bridge, and what
    `save_pretrained` of a tokenizer writes. Stats in training: `statistics.code_stats`.
    """

    training_state: ClassVar[tuple[str, ...]] = ("age",)
    age: Tensor

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.config = config = VqBridgeQuantizerConfig(**fields)
        self.in_dim = self.dim = config.dim
        self.num_codes = config.num_codes
        self.straight = config.estimator == "straight_through"
        self.weight = nn.Parameter(torch.randn(config.num_codes, config.dim))
        if config.network == "vit":
            self.bridge: nn.Module = _VitBridge(config)
        else:
            first, second = nn.Linear(config.dim, config.width), nn.Linear(config.width, config.dim)
            self.bridge = nn.Sequential(first, nn.GELU(), second)
        self.register_buffer("age", torch.zeros(config.num_codes, dtype=torch.long))

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """Of the commitment."""
        return {"commitment": self.config.beta}

    @property
    def codebook(self) -> Tensor:
        """`(K, D)`, the vectors that `lookup` gives, in the parameters' dtype."""
        with torch.autocast(self.weight.device.type, enabled=False):
            return self.bridge(self.weight)

    def folded(self) -> VectorQuantizer:
        """A plain quantizer of the same codes."""
        made = self.config.folded().build()
        with torch.no_grad():
            made.load_state_dict({"weight": self.codebook, "age": self.age})
        return made.to(self.weight.device, self.weight.dtype).train(self.training)

    def layout(self, grid: tuple[int, ...]) -> CodeLayout:
        """One code of K at every position of `grid`."""
        return CodeLayout((grid,), 1, (self.num_codes,))

    def encode(self, features: Tensor) -> Tensor:
        """`(B, D, *grid)` -> int64 `(B, *grid)`. Raises `ValueError` for non-finite features."""
        with torch.no_grad():
            return self._search(features, self.codebook)

    def _search(self, features: Tensor, codebook: Tensor) -> Tensor:
        rows = features.detach().float().movedim(1, -1)
        return nearest_codes(rows.reshape(-1, self.dim), codebook.detach().float()).reshape(rows.shape[:-1])

    def lookup(self, codes: Tensor) -> Tensor:
        """int64 `(B, *grid)` -> `(B, D, *grid)` in the codebook's dtype. Raises `ValueError` for codes out of range."""
        check_codes(codes, self.num_codes)
        return F.embedding(codes, self.codebook).movedim(-1, 1)

    def forward(self, features: Tensor) -> Quantized:
        """`(B, D, *grid)` -> `Quantized`. Raises `ValueError` for non-finite features, in training in all processes."""
        with torch.autocast(features.device.type, enabled=False):
            z, codebook = features.float(), self.codebook.float()
            if self.training:
                check_in_all_processes(z)
            codes = self._search(z, codebook)
            target = F.embedding(codes, codebook).movedim(-1, 1)
            losses = {
                "commitment": self.config.beta * F.mse_loss(z, target.detach()),
                "codebook": F.mse_loss(target, z.detach()),
            }
            estimated = rotate(z, target) if self.config.estimator == "rotation" else z
            quantized = straight_through(target, estimated).to(self.weight.dtype)
            stats = code_stats(count(codes, self.num_codes), self.age) if self.training else {}
        return Quantized(quantized, codes, losses, stats)


class _VitBridge(nn.Module):
    """Codes `(K, D)`, row by row on a square, in patches through pre-norm blocks, and back: `(K, D)`.

    No positions, no affine norms, and no shortcut around it all.
    """

    def __init__(self, config: VqBridgeQuantizerConfig) -> None:
        super().__init__()
        self.patch = config.patch
        inner = config.dim * config.patch**2
        self.embed = nn.Linear(inner, config.width)
        self.blocks = nn.ModuleList(_Block(config.width, config.heads) for _ in range(config.layers))
        self.head = nn.Linear(config.width, inner)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, codes: Tensor) -> Tensor:
        side, p = math.isqrt(len(codes)), self.patch
        tokens = rearrange(codes, "(h p w q) d -> (h w) (d p q)", h=side // p, p=p, w=side // p, q=p)
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        out = self.head(_normed(x))
        return rearrange(out, "(h w) (p q d) -> (h p w q) d", h=side // p, p=p, q=p)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = rearrange(self.qkv(_normed(x)), "n (k h d) -> k h n d", k=3, h=self.heads)
        attended = F.scaled_dot_product_attention(query[None], key[None], value[None])[0]
        x = x + self.proj(rearrange(attended, "h n d -> n (h d)"))
        return x + self.fc2(F.gelu(self.fc1(_normed(x)), approximate="tanh"))


def _normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)
