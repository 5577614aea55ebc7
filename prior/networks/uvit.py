"""U-ViT: a bidirectional transformer with long skips over masked codes (arXiv 2209.12152, figure 1)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from prior.conditions.base import Context
from prior.networks.masked import Masked, MaskedConfig
from prior.sequences import Sequence
from tokenizers_vq.config import ConfigError
from tokenizers_vq.quantizers import Quantizer


class UvitConfig(MaskedConfig):
    """Bidirectional transformer over masked codes whose later blocks also read what the earlier ones gave."""

    kind: Literal["uvit"] = "uvit"
    layers: Annotated[int, Field(ge=1)]
    """number of blocks, odd: as many on the way in as out, and one between them"""
    dim: Annotated[int, Field(ge=1)]
    """width"""
    heads: Annotated[int, Field(ge=1)]
    """attention heads, which divide the width"""
    mlp: Annotated[int, Field(ge=1)] | None = None
    """width of the MLP; null: 4 times the network's"""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """of the embedded codes, of the attention and of each branch's output"""
    eps: float = 1e-5
    """of LayerNorm"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dim % self.heads:
            raise ConfigError(("heads",), f"{self.heads} heads do not divide the width {self.dim}")
        if self.layers % 2 == 0:
            raise ConfigError(("layers",), f"must be odd, for one block lies in the middle; got {self.layers}")
        return self

    def build(self, sequence: Sequence, book: Quantizer | None = None) -> Uvit:
        """The network for a sequence."""
        return Uvit(sequence, **self.arguments())


class Block(nn.Module):
    """Attention and MLP, each behind a norm and on a residual branch; first the skip is merged, where there is one."""

    def __init__(self, config: UvitConfig, skip: bool) -> None:
        super().__init__()
        dim, hidden = config.dim, config.mlp or 4 * config.dim
        self.heads, self.dropout = config.heads, config.dropout
        self.skip = nn.Linear(2 * dim, dim) if skip else None
        self.attention_norm = nn.LayerNorm(dim, config.eps)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.mlp_norm = nn.LayerNorm(dim, config.eps)
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, mask: Tensor | None, skip: Tensor | None = None) -> Tensor:
        """`(B, n, D)` -> the same; `mask`: bool `(B, 1, 1, n)`, False where nothing may look; `skip`: as `x`."""
        if self.skip is not None and skip is not None:
            x = self.skip(torch.cat((x, skip), dim=-1))
        b, n, d = x.shape
        dropout = self.dropout if self.training else 0.0
        q, k, v = self.qkv(self.attention_norm(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout).transpose(1, 2).reshape(b, n, d)
        x = x + F.dropout(self.out(mixed), dropout)
        return x + F.dropout(self.down(F.gelu(self.up(self.mlp_norm(x)))), dropout)


class Uvit(Masked):
    """The context as a prefix, then codes with learned positions; every place sees every other."""

    def __init__(self, sequence: Sequence, **fields: Any) -> None:
        config = UvitConfig(**fields)
        super().__init__(sequence, config.schedule, config.label_smoothing)
        self.config, self.middle = config, config.layers // 2
        self.tokens = nn.Embedding(sequence.vocabulary + 1, config.dim)
        self.positions = nn.Parameter(torch.empty(sequence.length, config.dim))
        self.blocks = nn.ModuleList(Block(config, index > self.middle) for index in range(config.layers))
        self.norm = nn.LayerNorm(config.dim, config.eps)
        self.head = nn.Linear(config.dim, sequence.vocabulary)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def trunk_blocks(self) -> list[nn.Module]:
        """The transformer's blocks."""
        return list(self.blocks)

    def forward(self, tokens: Tensor, context: Context) -> Tensor:
        """Codes `(B, N)`, -1 where masked -> logits `(B, N, K)` of every place."""
        prefix = context.vectors.shape[1]
        codes = tokens.masked_fill(tokens < 0, self.sequence.vocabulary)  # the last row stands for the mask
        x = torch.cat((context.vectors.to(self.positions.dtype), self.tokens(codes) + self.positions), dim=1)
        x = F.dropout(x, self.config.dropout, self.training)
        mask = None
        if context.mask is not None:
            mask = F.pad(context.mask, (0, tokens.shape[1]), value=True)[:, None, None]
        skips: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            x = block(x, mask, skips.pop() if index > self.middle else None)
            if index < self.middle:
                skips.append(x)
        return self.head(self.norm(x[:, prefix:]))
