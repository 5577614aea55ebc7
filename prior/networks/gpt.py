"""A decoder-only transformer over codes: RMSNorm, SwiGLU, rotary positions on the grid (LlamaGen, arXiv 2406.06525)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from prior.cache import Cache
from prior.networks.packing import Product, product, product_add
from prior.sequences import Sequence
from tokenizers_vq.config import Config, ConfigError


class GptConfig(Config):
    """Decoder-only transformer."""

    kind: Literal["gpt"] = "gpt"
    layers: Annotated[int, Field(ge=1)]
    """number of blocks"""
    dim: Annotated[int, Field(ge=4)]
    """width"""
    heads: Annotated[int, Field(ge=1)]
    """attention heads; dim / heads must be a multiple of 4"""
    multiple: Annotated[int, Field(ge=1)] = 256
    """the SwiGLU's hidden width is 8/3 dim, rounded up to a multiple of this"""
    token_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """dropout of the embedded tokens"""
    residual_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """dropout of each branch's output"""
    eps: float = 1e-5
    """of RMSNorm"""
    base: float = 10000.0
    """wavelength base of the rotary positions"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dim % (4 * self.heads):
            raise ConfigError(("heads",), f"dim / heads must be a multiple of 4, got {self.dim} / {self.heads}")
        return self

    def build(self, sequence: Sequence) -> Gpt:
        """The network for a sequence."""
        return Gpt(sequence, **self.arguments())


def rotary_angles(positions: Tensor, head_dim: int, base: float) -> Tensor:
    """Positions `(N, 4)` -> float32 `(N, head_dim / 2)`: the angle of each pair of channels (RoPE, arXiv 2104.09864).

    The first half of the pairs turns with the row, the second half with the column.
    """
    count = head_dim // 4
    frequencies = base ** (-torch.arange(count, device=positions.device, dtype=torch.float32) / count)
    return (positions[:, 1:3, None].float() * frequencies).flatten(1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn neighbouring channels of `x` `(..., N, head_dim)` by `angles` `(N, head_dim / 2)`, in float32."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)


class RMSNorm(nn.Module):
    """`x / rms(x) * weight`, computed in float32 (arXiv 1910.07467)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """`(..., D)` -> the same shape and dtype."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class Block(nn.Module):
    """Attention and SwiGLU (arXiv 2002.05202), each behind a norm and on a residual branch."""

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        dim = config.dim
        hidden = -(-(2 * 4 * dim // 3) // config.multiple) * config.multiple
        self.heads, self.dropout = config.heads, config.residual_dropout
        self.attention_norm = RMSNorm(dim, config.eps)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.mlp_norm = RMSNorm(dim, config.eps)
        self.gate_up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor, angles: Tensor, layer: int, cache: Cache | None) -> Tensor:
        """`(B, n, D)` with angles `(n, head_dim / 2)` -> `(B, n, D)`; attends to the cache's tokens too."""
        b, n, d = x.shape
        q, k, v = self.qkv(self.attention_norm(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, angles), rotate(k, angles)
        if cache is not None:
            k, v = cache.write(layer, k, v)
        if cache is None or cache.used == 0:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            past = torch.ones(n, k.shape[2], dtype=torch.bool, device=x.device).tril(cache.used)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=past)
        x = x + F.dropout(self.out(mixed.transpose(1, 2).reshape(b, n, d)), self.dropout, self.training)
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + F.dropout(self.down(F.silu(gate) * up), self.dropout, self.training)


class Gpt(nn.Module):
    """Tokens and a prefix of vectors -> logits of the next tokens.

    Place `p` of the input holds the prefix (P places), then codes 0, 1, ...; its output predicts code `p - P + 1`.
    Prefix places are not rotated. Where there are several grids or levels, an embedding of a token's stream is added.
    """

    exact = True
    """its likelihood is exact"""

    def __init__(self, sequence: Sequence, **fields: Any) -> None:
        super().__init__()
        config = GptConfig(**fields)
        self.config, self.sequence = config, sequence
        streams = len(sequence.layout.sizes)
        self.tokens = nn.Embedding(sequence.vocabulary, config.dim)
        self.streams = nn.Embedding(streams, config.dim) if streams > 1 else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, config.eps)
        self.head = nn.Linear(config.dim, sequence.vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
        for block in self.stack:
            for branch in (block.out, block.down):
                nn.init.normal_(branch.weight, std=0.02 / (2 * config.layers) ** 0.5)

    @property
    def stack(self) -> list[Block]:
        """The blocks, typed."""
        return list(self.blocks)  # type: ignore[arg-type]

    def angles(self, prefix: int) -> Tensor:
        """float32 `(P + N, head_dim / 2)`: no rotation for the prefix."""
        config = self.config
        angles = rotary_angles(self.sequence.positions, config.dim // config.heads, config.base)
        return F.pad(angles, (0, 0, prefix, 0))

    def embed(self, tokens: Tensor, first: int = 0) -> Tensor:
        """Codes `(B, n)` at places `first, ...` of the row -> `(B, n, D)`."""
        x = self.tokens(tokens)
        if self.streams is not None:
            x = x + self.streams(self.sequence.streams[first : first + tokens.shape[1]])
        return x

    def cache(self, batch: int, prefix: int) -> Cache:
        """An empty cache for a prefix of `prefix` places and all codes but the last."""
        config, weight = self.config, self.head.weight
        places = prefix + self.sequence.length - 1
        head_dim = config.dim // config.heads
        return Cache(config.layers, batch, config.heads, places, head_dim, weight.dtype, weight.device)

    def forward(self, tokens: Tensor, prefix: Tensor, cache: Cache | None = None) -> Tensor:
        """Codes `(B, n)` and prefix `(B, P, D)` -> logits `(B, n + 1, K)` of codes 0 to n; fills an empty `cache`."""
        x = torch.cat((prefix.to(self.tokens.weight.dtype), self.embed(tokens)), dim=1)
        x = F.dropout(x, self.config.token_dropout, self.training)
        angles = self.angles(prefix.shape[1])[: x.shape[1]]
        if cache is not None:
            cache.reserve(x.shape[1])
        for layer, block in enumerate(self.stack):
            x = block(x, angles, layer, cache)
        if cache is not None:
            cache.advance(x.shape[1])
        return self.head(self.norm(x[:, prefix.shape[1] - 1 :]))

    def decoder(self, cache: Cache, prefix: int) -> GptDecoder:
        """A fast path for one token at a time, on top of a filled cache."""
        return GptDecoder(self, cache, prefix)


def _fast_norm(norm: RMSNorm) -> Product:
    """`RMSNorm.forward` in fewer operations, without gradient: x sqrt(D) / hypot(|x|, sqrt(D eps))."""
    count = norm.weight.numel()
    scaled = norm.weight.detach().float() * count**0.5
    floor = torch.tensor((count * norm.eps) ** 0.5, device=scaled.device)

    def apply(x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return (x * scaled).div_(length.hypot_(floor)).to(x.dtype)

    return apply


class GptDecoder:
    """One token at a time, without gradient or dropout; equals `Gpt.forward`. Keeps copies of the weights."""

    def __init__(self, network: Gpt, cache: Cache, prefix: int) -> None:
        self.network, self.cache, self.prefix = network, cache, prefix
        rows, heads = cache.layers[0].shape[1:3]
        angles = network.angles(prefix)
        turn = torch.polar(torch.ones_like(angles), angles)
        scale = cache.layers[0].shape[-1] ** -0.5
        # Queries, keys and values are turned in one product: queries scaled too, values as they are.
        self.turns = torch.stack((turn * scale, turn, torch.ones_like(turn)), dim=1).unsqueeze(2)
        self.shape = (rows, 3, heads, -1, 2)
        self.stores = [layer.flatten(1, 2) for layer in cache.layers]
        # MKL's float32 products take slices of the cache as they are.
        self.slices = cache.layers[0].dtype == torch.float32
        self.blocks = [
            (
                _fast_norm(block.attention_norm),
                product(block.qkv.weight, rows),
                product_add(block.out.weight, rows),
                _fast_norm(block.mlp_norm),
                product(block.gate_up.weight, rows),
                product_add(block.down.weight, rows),
            )
            for block in network.stack
        ]
        self.norm = _fast_norm(network.norm)
        self.head = product(network.head.weight, rows)

    def step(self, tokens: Tensor) -> Tensor:
        """The code `(B,)` after those seen so far -> logits `(B, K)` of the one that follows."""
        return self.feed(self.network.embed(tokens[:, None], self.cache.used - self.prefix)[:, 0])

    def feed(self, x: Tensor) -> Tensor:
        """As `step`, for the vectors `(B, D)` at the next place: those of the prefix, or embedded codes."""
        cache = self.cache
        if cache.reserve(1):
            self.stores = [layer.flatten(1, 2) for layer in cache.layers]
        place, turns = cache.used, self.turns[cache.used]
        for (norm1, qkv, out, norm2, gate_up, down), store, layer in zip(
            self.blocks, self.stores, cache.layers, strict=True
        ):
            turned = torch.view_as_complex(qkv(norm1(x)).float().view(self.shape)) * turns
            turned = torch.view_as_real(turned).flatten(-2).transpose(0, 1)
            layer[:, :, :, place] = turned[1:]
            queries = turned[0].reshape(store.shape[1], 1, -1).to(x.dtype)
            keys, values = (store[:, :, : place + 1] if self.slices else store).unbind()
            scores = torch.bmm(queries, keys.transpose(1, 2))
            if not self.slices:
                scores[:, :, place + 1 :] = float("-inf")
            mixed = torch.bmm(scores.softmax(dim=-1), values)
            x = out(mixed.view(x.shape), x)
            gate, up = gate_up(norm2(x)).chunk(2, dim=-1)
            x = down(F.silu(gate).mul_(up), x)
        cache.advance(1)
        return self.head(self.norm(x))
