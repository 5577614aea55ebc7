"""A decoder-only transformer over codes: RMSNorm, SwiGLU, rotary positions on the grid (LlamaGen, arXiv 2406.06525)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from prior.conditions.base import Context
from prior.networks.autoregressive import Autoregressive, State
from prior.networks.base import BaseNetworkConfig
from prior.networks.cache import Cache
from prior.networks.packing import Product, product, product_add
from prior.sequences import Sequence
from tokenizers_vq.config import ConfigError
from tokenizers_vq.quantizers import Quantizer


class GptConfig(BaseNetworkConfig):
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

    def build(self, sequence: Sequence, book: Quantizer | None = None) -> Gpt:
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

    def forward(
        self,
        x: Tensor,
        angles: Tensor,
        mask: Tensor | None = None,
        store: Callable[[Tensor, Tensor], Any] | None = None,
    ) -> Tensor:
        """`(B, n, D)` with angles `(n, head_dim / 2)` -> `(B, n, D)`; keys and values are handed to `store`.

        `mask`: bool `(B, 1, n, n)`, True where a place (row) sees another (column); None: it sees itself and those
        before.
        """
        b, n, d = x.shape
        q, k, v = self.qkv(self.attention_norm(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, angles), rotate(k, angles)
        if store is not None:
            store(k, v)
        mixed = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)
        x = x + F.dropout(self.out(mixed.transpose(1, 2).reshape(b, n, d)), self.dropout, self.training)
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + F.dropout(self.down(F.silu(gate) * up), self.dropout, self.training)


class Gpt(Autoregressive):
    """Tokens and a prefix of vectors -> logits of the next tokens.

    Place `p` of the input holds the prefix (P places), then codes 0, 1, ...; its output predicts code `p - P + 1`.
    Prefix places are not rotated. Where there are several grids or levels, an embedding of a token's stream is added.
    """

    def __init__(self, sequence: Sequence, **fields: Any) -> None:
        super().__init__(sequence)
        config = GptConfig(**fields)
        self.config = config
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

    def trunk_blocks(self) -> list[nn.Module]:
        """The transformer's blocks."""
        return list(self.blocks)

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

    def forward(self, tokens: Tensor, context: Context) -> Tensor:
        """Codes `(B, N)` -> logits `(B, N, K)`, place i from the codes before it."""
        return self.read(tokens[:, :-1], context)

    def read(self, tokens: Tensor, context: Context, cache: Cache | None = None) -> Tensor:
        """The first codes `(B, n)` -> logits `(B, n + 1, K)` of codes 0 to n; fills an empty `cache`."""
        prefix = context.vectors.shape[1]
        x = torch.cat((context.vectors.to(self.tokens.weight.dtype), self.embed(tokens)), dim=1)
        x = F.dropout(x, self.config.token_dropout, self.training)
        angles, mask = self.angles(prefix)[: x.shape[1]], _visible(context, tokens.shape[1])
        if cache is not None:
            cache.reserve(x.shape[1])
        for layer, block in enumerate(self.stack):
            x = block(x, angles, mask, None if cache is None else partial(cache.write, layer))
        if cache is not None:
            cache.advance(x.shape[1])
        return self.head(self.norm(x[:, prefix - 1 :]))

    def start(self, tokens: Tensor, context: Context) -> GptState:
        """Keys and values of the context and of codes `(B, n)`, and a fast path for those that follow."""
        config, weight = self.config, self.head.weight
        rows, prefix = context.vectors.shape[:2]
        places, head_dim = prefix + self.sequence.length - 1, config.dim // config.heads
        cache = Cache(config.layers, rows, config.heads, places, head_dim, weight.dtype, weight.device)
        if prefix == 1 and context.mask is None and not tokens.shape[1]:  # a step like the others
            state = GptState(self, cache, context)
            state.feed(context.vectors[:, 0])
            return state
        logits = self.read(tokens, context, cache)[:, -1]
        state = GptState(self, cache, context)
        state.logits = logits
        return state


def _visible(context: Context, count: int) -> Tensor | None:
    """Bool `(B, 1, P + n, P + n)` of a context of P places and n codes; None where it hides nothing."""
    if context.mask is None:
        return None
    real = F.pad(context.mask, (0, count), value=True)
    square = torch.ones(real.shape[1], real.shape[1], dtype=torch.bool, device=real.device)
    # Padding sees itself, for a softmax over nothing is NaN.
    return ((square.tril() & real[:, None]) | torch.eye(len(square), dtype=torch.bool, device=real.device))[:, None]


def _fast_norm(norm: RMSNorm) -> Product:
    """`RMSNorm.forward` in fewer operations, without gradient: x sqrt(D) / hypot(|x|, sqrt(D eps))."""
    count = norm.weight.numel()
    scaled = norm.weight.detach().float() * count**0.5
    floor = torch.tensor((count * norm.eps) ** 0.5, device=scaled.device)

    def apply(x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return (x * scaled).div_(length.hypot_(floor)).to(x.dtype)

    return apply


class GptState(State):
    """One token at a time, without gradient or dropout; equals `Gpt.forward`. Keeps copies of the weights."""

    def __init__(self, network: Gpt, cache: Cache, context: Context) -> None:
        self.network, self.cache, self.prefix = network, cache, context.vectors.shape[1]
        rows, heads = cache.layers[0].shape[1:3]
        angles = network.angles(self.prefix)
        turn = torch.polar(torch.ones_like(angles), angles)
        scale = cache.layers[0].shape[-1] ** -0.5
        # Queries, keys and values are turned in one product: queries scaled too, values as they are.
        self.turns = torch.stack((turn * scale, turn, torch.ones_like(turn)), dim=1).unsqueeze(2)
        self.shape = (rows, 3, heads, -1, 2)
        self.stores = [layer.flatten(1, 2) for layer in cache.layers]
        self.padding = None if context.mask is None else (~context.mask).repeat_interleave(heads, 0)[:, None]
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
        if self.cache.reserve(1):
            self.stores = [layer.flatten(1, 2) for layer in self.cache.layers]
        for layer, (norm1, qkv, out, norm2, gate_up, down) in enumerate(self.blocks):
            x = out(self._attend(layer, qkv(norm1(x))), x)
            gate, up = gate_up(norm2(x)).chunk(2, dim=-1)
            x = down(F.silu(gate).mul_(up), x)
        self.cache.advance(1)
        self.logits = self.head(self.norm(x))
        return self.logits

    def _attend(self, layer: int, qkv: Tensor) -> Tensor:
        """Queries, keys and values `(B, 3 D)` of the next place -> what it sees, `(B, D)`; keeps keys and values."""
        place, store = self.cache.used, self.stores[layer]
        turned = torch.view_as_complex(qkv.float().view(self.shape)) * self.turns[place]
        turned = torch.view_as_real(turned).flatten(-2).transpose(0, 1)
        self.cache.layers[layer][:, :, :, place] = turned[1:]
        queries = turned[0].reshape(store.shape[1], 1, -1).to(qkv.dtype)
        keys, values = (store[:, :, : place + 1] if self.slices else store).unbind()
        scores = torch.bmm(queries, keys.transpose(1, 2))
        if not self.slices:
            scores[:, :, place + 1 :] = float("-inf")
        if self.padding is not None:
            scores[:, :, : self.prefix].masked_fill_(self.padding, float("-inf"))
        return torch.bmm(scores.softmax(dim=-1), values).view(qkv.shape[0], -1)
