"""A transformer's block, with every choice that published priors made, and two ways in for a condition.

A condition comes in as a prefix (vectors before the codes, which a network puts there itself), by cross-attention in
blocks, or pooled, as shift, scale and gate of every branch (AdaLN, DiT, arXiv 2212.09748, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from prior.conditions.base import Context
from prior.networks.rotary import rotate
from tokenizers_vq.config import Config, ConfigError

Entry = Literal["prefix", "cross", "adaln"]
Store = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""keys and values `(B, heads, n, head_dim)` of these places -> those that they look at"""


class EntryFields(Config):
    """How a condition comes into a transformer, for the config of any."""

    entry: Annotated[tuple[Entry, ...], Field(min_length=1)] = ("prefix",)
    """ways in for the condition: prefix: its vectors stand before the codes; cross: blocks look at them; adaln: their
    mean sets shift, scale and gate of every branch"""
    cross_every: Annotated[int, Field(ge=1)] = 1
    """every n-th block looks at the condition, where `entry` has cross"""

    def crosses(self, layer: int) -> bool:
        """Whether block number `layer` looks at the condition's vectors."""
        return "cross" in self.entry and (layer + 1) % self.cross_every == 0

    def check_entry(self, layers: int) -> None:
        """Raises `ConfigError` where no block would look at the condition, or a way in stands there twice."""
        if len(set(self.entry)) < len(self.entry):
            raise ConfigError(("entry",), f"{list(self.entry)} names a way in twice")
        if "cross" in self.entry and self.cross_every > layers:
            raise ConfigError(("cross_every",), f"{self.cross_every} is more than there are blocks ({layers})")


class BlockConfig(Config):
    """A block; networks fill it in from their own fields."""

    dim: int
    """width"""
    heads: int
    """attention heads"""
    hidden: int
    """width inside the MLP"""
    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm (arXiv 1910.07467) or LayerNorm"""
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    """SwiGLU (arXiv 2002.05202) or two layers around a GELU"""
    norm_first: bool = True
    """norms before the branches; otherwise over the sum of a branch and its input, as in BERT (arXiv 1810.04805)"""
    bias: bool = False
    """biases of all linear layers"""
    qkv_bias: bool | None = None
    """biases of queries, keys and values; null: as `bias`"""
    qk_norm: bool | Literal["width"] = False
    """norms of queries and keys, a head at a time (arXiv 2302.05442); width: of all heads together, without weights"""
    head_dim: int | None = None
    """width of a head; null: dim / heads"""
    causal: bool = False
    """whether a place sees itself and those before alone, where no mask says otherwise"""
    cross: bool = False
    """cross-attention to the condition's vectors after the attention"""
    adaln: bool = False
    """shift, scale and gate of both branches from the pooled condition, the identity at first"""
    dropout: float = 0.0
    """of each branch's output"""
    attention_dropout: float = 0.0
    """of the attention's weights"""
    eps: float = 1e-5
    """of the norms"""


class Told(NamedTuple):
    """What blocks are told of a condition, besides a prefix."""

    vectors: Tensor | None = None
    """`(B, P, D)` for cross-attention"""
    mask: Tensor | None = None
    """bool `(B, 1, 1, P)`, False where a vector is padding"""
    pooled: Tensor | None = None
    """`(B, 1, D)`, or `(B, n, D)` for each place, for AdaLN; after its SiLU"""


def tell(context: Context, entry: Sequence[Entry], dtype: torch.dtype, places: Tensor | None = None) -> Told:
    """What blocks with these ways in are told; `places` `(n, D)`: added to the pooled condition at each place."""
    vectors = context.vectors.to(dtype)
    mask = None if context.mask is None else context.mask[:, None, None]
    pooled = None
    if "adaln" in entry:
        pooled = pool(context).to(dtype)[:, None]
        pooled = F.silu(pooled if places is None else pooled + places)
    crossing = "cross" in entry
    return Told(vectors if crossing else None, mask if crossing else None, pooled)


def pool(context: Context) -> Tensor:
    """The mean `(B, D)` of the vectors that are no padding."""
    if context.mask is None:
        return context.vectors.mean(dim=1)
    real = context.mask[..., None].to(context.vectors.dtype)
    return (context.vectors * real).sum(dim=1) / real.sum(dim=1)


class RMSNorm(nn.Module):
    """`x / rms(x) * weight`, computed in float32 (arXiv 1910.07467)."""

    def __init__(self, dim: int, eps: float, affine: bool = True) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """`(..., D)` -> the same shape and dtype."""
        weight = None if self.weight is None else self.weight.float()
        return F.rms_norm(x.float(), (self.dim,), weight, self.eps).to(x.dtype)


def make_norm(kind: str, dim: int, eps: float, affine: bool = True) -> RMSNorm | nn.LayerNorm:
    """A norm over the last dimension; without weights unless `affine`."""
    if kind == "rms":
        return RMSNorm(dim, eps, affine)
    return nn.LayerNorm(dim, eps, elementwise_affine=affine)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`x (1 + scale) + shift` (DiT, arXiv 2212.09748)."""
    return x * (1 + scale) + shift


class LastNorm(nn.Module):
    """The norm before the head, without weights of its own: the pooled condition shifts and scales it."""

    def __init__(self, kind: str, dim: int, eps: float) -> None:
        super().__init__()
        self.norm = make_norm(kind, dim, eps, affine=False)
        self.modulation = nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor, pooled: Tensor) -> Tensor:
        """`(B, n, D)` and `Told.pooled` -> `(B, n, D)`."""
        shift, scale = self.modulation(pooled).chunk(2, dim=-1)
        return modulate(self.norm(x), shift, scale)


class CrossAttention(nn.Module):
    """A branch in which places look at the vectors of a condition, both behind a norm."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads, self.attention_dropout = config.heads, config.attention_dropout
        self.norm = make_norm(config.norm, dim, config.eps)
        self.told_norm = make_norm(config.norm, dim, config.eps)
        self.query = nn.Linear(dim, dim, bias=config.bias)
        self.key_value = nn.Linear(dim, 2 * dim, bias=config.bias)
        self.out = nn.Linear(dim, dim, bias=config.bias)

    def read(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, P, D)` -> keys and values `(B, heads, P, head_dim)`."""
        b, p, _ = vectors.shape
        keys, values = self.key_value(self.told_norm(vectors)).view(b, p, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        return keys, values

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """What the places `(B, n, D)` see, `(B, n, D)`; `mask`: bool `(B, 1, 1, P)`."""
        b, n, d = x.shape
        queries = self.query(self.norm(x)).view(b, n, self.heads, -1).transpose(1, 2)
        dropout = self.attention_dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(queries, keys, values, mask, dropout)
        return self.out(mixed.transpose(1, 2).reshape(b, n, d))


class Block(nn.Module):
    """Attention, what it is told, and an MLP, each with a norm and on a residual branch."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        dim, bias = config.dim, config.bias
        self.config, self.heads = config, config.heads
        head_dim = config.head_dim or dim // config.heads
        inner = head_dim * config.heads
        self.attention_norm = make_norm(config.norm, dim, config.eps)
        self.qkv = nn.Linear(dim, 3 * inner, bias=bias if config.qkv_bias is None else config.qkv_bias)
        self.out = nn.Linear(inner, dim, bias=bias)
        self.mlp_norm = make_norm(config.norm, dim, config.eps)
        if config.mlp == "swiglu":
            self.gate_up = nn.Linear(dim, 2 * config.hidden, bias=bias)
        else:
            self.up = nn.Linear(dim, config.hidden, bias=bias)
        self.down = nn.Linear(config.hidden, dim, bias=bias)
        by_head = config.qk_norm is True
        self.query_norm = make_norm(config.norm, head_dim, config.eps) if by_head else None
        self.key_norm = make_norm(config.norm, head_dim, config.eps) if by_head else None
        self.width_norm = make_norm(config.norm, inner, config.eps, False) if config.qk_norm == "width" else None
        self.cross = CrossAttention(config) if config.cross else None
        self.modulation = nn.Linear(dim, 6 * dim) if config.adaln else None

    def forward(
        self,
        x: Tensor,
        turns: Tensor | None = None,
        mask: Tensor | None = None,
        told: Told = Told(),
        store: Store | None = None,
    ) -> Tensor:
        """`(B, n, D)` -> `(B, n, D)`; keys and values of the attention go through `store`.

        `turns`: of rotary positions, as `rotate` takes them. `mask`: bool, broadcast to `(B, heads, n, n)`, True where
        a place (row) sees another (column); None: all, or itself and those before where it is causal.
        """
        first, second = self.modulations(told.pooled)
        x = self._branch(x, self.attention_norm, lambda y: self._attend(y, turns, mask, store), first)
        if self.cross is not None and told.vectors is not None:
            x = x + self._drop(self.cross(x, *self.cross.read(told.vectors), told.mask))
        return self._branch(x, self.mlp_norm, self._mlp, second)

    def modulations(self, pooled: Tensor | None) -> tuple[tuple[Tensor, ...] | None, tuple[Tensor, ...] | None]:
        """Shift, scale and gate of attention and of MLP, each `(B, 1 or n, D)`; None without AdaLN."""
        if self.modulation is None or pooled is None:
            return None, None
        parts = self.modulation(pooled).chunk(6, dim=-1)
        return parts[:3], parts[3:]

    def _branch(
        self,
        x: Tensor,
        norm: nn.Module,
        change: Callable[[Tensor], Tensor],
        modulation: tuple[Tensor, ...] | None,
    ) -> Tensor:
        if modulation is None:
            return x + self._drop(change(norm(x))) if self.config.norm_first else norm(x + self._drop(change(x)))
        shift, scale, gate = modulation
        if self.config.norm_first:
            return x + gate * self._drop(change(modulate(norm(x), shift, scale)))
        # Behind the norm the identity is a gate of 1, which 1 + 0 is at first.
        return modulate(norm(x + (1 + gate) * self._drop(change(x))), shift, scale)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.config.dropout, self.training)

    def _attend(
        self,
        x: Tensor,
        turns: Tensor | None,
        mask: Tensor | None,
        store: Store | None,
    ) -> Tensor:
        b, n, _ = x.shape
        parts = self.qkv(x).view(b, n, 3, -1)
        if self.width_norm is not None:
            parts = torch.cat((self.width_norm(parts[:, :, :2]), parts[:, :, 2:]), dim=2)
        q, k, v = parts.view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if turns is not None:
            q, k = rotate(q, turns), rotate(k, turns)
        if store is not None:
            k, v = store(k, v)
        dropout = self.config.attention_dropout if self.training else 0.0
        causal = self.config.causal and mask is None and n > 1  # one place sees all that is kept
        mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal)
        return self.out(mixed.transpose(1, 2).reshape(b, n, -1))

    def _mlp(self, x: Tensor) -> Tensor:
        if self.config.mlp == "gelu":
            return self.down(F.gelu(self.up(x)))
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


def initialise(network: nn.Module, blocks: Sequence[Block], std: float = 0.02) -> None:
    """GPT-2's start: N(0, std), branches' last layers smaller by sqrt(2 layers); AdaLN the identity at first."""
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for block in blocks:
        for branch in (block.out, block.down):
            nn.init.normal_(branch.weight, std=std / (2 * len(blocks)) ** 0.5)
    still(network)


def initialise_masked(network: nn.Module) -> None:
    """MaskGIT's start of layers: a normal distribution of 0.02, cut at two; AdaLN the identity at first."""
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.trunc_normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    still(network)


def still(network: nn.Module) -> None:
    """AdaLN as it starts: nothing is shifted, scaled or let through, whatever the condition (DiT's adaLN-Zero)."""
    for module in network.modules():
        if isinstance(module, (Block, LastNorm)) and module.modulation is not None:
            nn.init.zeros_(module.modulation.weight)
            nn.init.zeros_(module.modulation.bias)
