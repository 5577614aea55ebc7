"""MaskGIT: a bidirectional transformer over codes of which some are masked (arXiv 2202.04200, section 3)."""

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


class MaskGitConfig(MaskedConfig):
    """Bidirectional transformer over masked codes."""

    kind: Literal["maskgit"] = "maskgit"
    layers: Annotated[int, Field(ge=1)]
    """number of blocks"""
    dim: Annotated[int, Field(ge=1)]
    """width; the MLP is 4 times as wide"""
    heads: Annotated[int, Field(ge=1)]
    """attention heads, which divide the width"""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """of the embedded codes, of the attention and of each branch's output"""
    eps: float = 1e-12
    """of LayerNorm"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dim % self.heads:
            raise ConfigError(("heads",), f"{self.heads} heads do not divide the width {self.dim}")
        return self

    def build(self, sequence: Sequence, book: Quantizer | None = None) -> MaskGit:
        """The network for a sequence."""
        return MaskGit(sequence, **self.arguments())


class Block(nn.Module):
    """Attention and MLP, each followed by a norm over the sum with its input, as in BERT (arXiv 1810.04805)."""

    def __init__(self, config: MaskGitConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads, self.dropout = config.heads, config.dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.attention_norm = nn.LayerNorm(dim, config.eps)
        self.up = nn.Linear(dim, 4 * dim)
        self.down = nn.Linear(4 * dim, dim)
        self.mlp_norm = nn.LayerNorm(dim, config.eps)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`(B, n, D)` -> the same; `mask`: bool `(B, 1, 1, n)`, False where nothing may look."""
        b, n, d = x.shape
        dropout = self.dropout if self.training else 0.0
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout).transpose(1, 2).reshape(b, n, d)
        x = self.attention_norm(x + F.dropout(self.out(mixed), dropout))
        return self.mlp_norm(x + F.dropout(self.down(F.gelu(self.up(x))), dropout))


class MaskGit(Masked):
    """The context as a prefix, then codes with learned positions; every place sees every other."""

    of_codes = ("tokens", "head")
    of_places = ("positions",)

    def __init__(self, sequence: Sequence, **fields: Any) -> None:
        config = MaskGitConfig(**fields)
        super().__init__(sequence, config.schedule, config.label_smoothing)
        self.config = config
        self.tokens = nn.Embedding(sequence.vocabulary + 1, config.dim)
        self.positions = nn.Parameter(torch.empty(sequence.length, config.dim))
        self.norm = nn.LayerNorm(config.dim, config.eps)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.head = nn.Linear(config.dim, sequence.vocabulary)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
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
        x = F.dropout(self.norm(x), self.config.dropout, self.training)
        mask = None
        if context.mask is not None:
            mask = F.pad(context.mask, (0, tokens.shape[1]), value=True)[:, None, None]
        for block in self.blocks:
            x = block(x, mask)
        return self.head(x[:, prefix:])
