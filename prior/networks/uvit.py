"""U-ViT: a bidirectional transformer with long skips over masked codes (arXiv 2209.12152, figure 1)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from prior.conditions.base import Context
from prior.networks.blocks import Block, BlockConfig, EntryFields, initialise_masked, tell
from prior.networks.masked import Masked, MaskedConfig
from prior.sequences import Sequence
from tokenizers_vq.config import ConfigError
from tokenizers_vq.quantizers import Quantizer


class UvitConfig(EntryFields, MaskedConfig):
    """Bidirectional transformer over masked codes whose later blocks also read what the earlier ones gave."""

    kind: Literal["uvit"] = "uvit"
    layers: Annotated[int, Field(ge=1)]
    """number of blocks, odd: as many on the way in as out, and one between them"""
    dim: Annotated[int, Field(ge=1)]
    """width"""
    heads: Annotated[int, Field(ge=1)]
    """attention heads, which divide the width"""
    hidden: Annotated[int, Field(ge=1)] | None = None
    """width inside the MLP; null: 4 dim"""
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
        self.check_entry(self.layers)
        return self

    def block(self, layer: int) -> BlockConfig:
        """Of block number `layer`."""
        return BlockConfig(
            dim=self.dim,
            heads=self.heads,
            hidden=self.hidden or 4 * self.dim,
            norm="layer",
            mlp="gelu",
            bias=True,
            qkv_bias=False,
            cross=self.crosses(layer),
            adaln="adaln" in self.entry,
            dropout=self.dropout,
            attention_dropout=self.dropout,
            eps=self.eps,
        )

    def build(self, sequence: Sequence, book: Quantizer | None = None) -> Uvit:
        """The network for a sequence."""
        return Uvit(sequence, **self.arguments())


class Uvit(Masked):
    """The condition as a prefix, or told aside, then codes with learned positions; every place sees every other."""

    of_codes = ("tokens", "head")
    of_places = ("positions",)

    def __init__(self, sequence: Sequence, **fields: Any) -> None:
        config = UvitConfig(**fields)
        super().__init__(sequence, config.schedule, config.label_smoothing)
        self.config, self.middle = config, config.layers // 2
        self.tokens = nn.Embedding(sequence.vocabulary + 1, config.dim)
        self.positions = nn.Parameter(torch.empty(sequence.length, config.dim))
        self.blocks = nn.ModuleList(Block(config.block(layer)) for layer in range(config.layers))
        self.skips = nn.ModuleList(nn.Linear(2 * config.dim, config.dim) for _ in range(self.middle))
        self.norm = nn.LayerNorm(config.dim, config.eps)
        self.head = nn.Linear(config.dim, sequence.vocabulary)
        initialise_masked(self)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def trunk_blocks(self) -> list[nn.Module]:
        """The transformer's blocks."""
        return list(self.blocks)

    def forward(self, tokens: Tensor, context: Context) -> Tensor:
        """Codes `(B, N)`, -1 where masked -> logits `(B, N, K)` of every place."""
        codes = tokens.masked_fill(tokens < 0, self.sequence.vocabulary)  # the last row stands for the mask
        x, mask = self.tokens(codes) + self.positions, None
        if "prefix" in self.config.entry:
            x = torch.cat((context.vectors.to(x.dtype), x), dim=1)
            if context.mask is not None:
                mask = F.pad(context.mask, (0, tokens.shape[1]), value=True)[:, None, None]
        x = F.dropout(x, self.config.dropout, self.training)
        told = tell(context, self.config.entry, x.dtype)
        kept: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            if layer > self.middle:
                x = self.skips[layer - self.middle - 1](torch.cat((x, kept.pop()), dim=-1))
            x = block(x, mask=mask, told=told)
            if layer < self.middle:
                kept.append(x)
        return self.head(self.norm(x[:, -tokens.shape[1] :]))
