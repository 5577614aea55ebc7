"""MaskGIT: a bidirectional transformer over codes of which some are masked (arXiv 2202.04200, section 3)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from prior.conditions.base import Context
from prior.networks.blocks import Block, BlockConfig, EntryFields, tell
from prior.networks.masked import Masked, MaskedConfig
from prior.sequences import Sequence
from tokenizers_vq.config import ConfigError
from tokenizers_vq.quantizers import Quantizer


class MaskGitConfig(EntryFields, MaskedConfig):
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
        self.check_entry(self.layers)
        return self

    def block(self, layer: int) -> BlockConfig:
        """Of block number `layer`: BERT's."""
        return BlockConfig(
            dim=self.dim,
            heads=self.heads,
            hidden=4 * self.dim,
            norm="layer",
            mlp="gelu",
            norm_first=False,
            bias=True,
            cross=self.crosses(layer),
            adaln="adaln" in self.entry,
            dropout=self.dropout,
            attention_dropout=self.dropout,
            eps=self.eps,
        )

    def build(self, sequence: Sequence, book: Quantizer | None = None) -> MaskGit:
        """The network for a sequence."""
        return MaskGit(sequence, **self.arguments())


class MaskGit(Masked):
    """The condition as a prefix, or told aside, then codes with learned positions; every place sees every other."""

    of_codes = ("tokens", "head")
    of_places = ("positions",)

    def __init__(self, sequence: Sequence, **fields: Any) -> None:
        config = MaskGitConfig(**fields)
        super().__init__(sequence, config.schedule, config.label_smoothing)
        self.config = config
        self.tokens = nn.Embedding(sequence.vocabulary + 1, config.dim)
        self.positions = nn.Parameter(torch.empty(sequence.length, config.dim))
        self.norm = nn.LayerNorm(config.dim, config.eps)
        self.blocks = nn.ModuleList(Block(config.block(layer)) for layer in range(config.layers))
        self.head = nn.Linear(config.dim, sequence.vocabulary)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
            if isinstance(module, Block):
                module.begin_untold()
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
        x = F.dropout(self.norm(x), self.config.dropout, self.training)
        told = tell(context, self.config.entry, x.dtype)
        for block in self.blocks:
            x = block(x, mask=mask, told=told)
        return self.head(x[:, -tokens.shape[1] :])
