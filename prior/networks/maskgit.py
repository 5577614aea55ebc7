"""MaskGIT: a bidirectional transformer over codes of which some are masked (arXiv 2202.04200, section 3).

As published, norms follow the branches, as in BERT, and the class stands before the codes. Halton-MaskGIT (arXiv
2503.17076) puts norms first, tells the class by AdaLN and adds registers (arXiv 2309.16588).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from prior.conditions.base import Context
from prior.networks.blocks import Block, BlockConfig, EntryFields, LastNorm, initialise_masked, make_norm, tell
from prior.networks.masked import Masked, MaskedConfig
from prior.sequences import Sequence
from tokenizers_vq.config import ConfigError
from tokenizers_vq.quantizers import Quantizer


class TrunkConfig(EntryFields, MaskedConfig):
    """A bidirectional transformer, whatever its places are told and asked."""

    layers: Annotated[int, Field(ge=1)]
    """number of blocks"""
    dim: Annotated[int, Field(ge=1)]
    """width"""
    heads: Annotated[int, Field(ge=1)]
    """attention heads"""
    head_dim: Annotated[int, Field(ge=1)] | None = None
    """width of a head; null: dim / heads, a whole number"""
    mlp: Literal["swiglu", "gelu"] = "gelu"
    """two layers around a GELU, or SwiGLU"""
    multiple: Annotated[int, Field(ge=1)] = 256
    """the SwiGLU's hidden width is 8/3 dim, rounded up to a multiple of this; of a GELU it is 4 dim"""
    norm: Literal["rms", "layer"] = "layer"
    """LayerNorm or RMSNorm"""
    norm_first: bool = False
    """norms before the branches, and one before the head; otherwise after them, and one of the embedded codes"""
    bias: bool = True
    """biases of the blocks' linear layers"""
    qk_norm: bool | Literal["width"] = False
    """norms of queries and keys: a head at a time, or width: of all heads together, without weights"""
    registers: Annotated[int, Field(ge=0)] = 0
    """learnt vectors after the codes that attention may use as it likes"""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """of the embedded codes, of the attention and of each branch's output"""
    eps: float = 1e-12
    """of the norms"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.head_dim is None and self.dim % self.heads:
            raise ConfigError(("heads",), f"{self.heads} heads do not divide the width {self.dim}")
        self.check_entry(self.layers)
        return self

    def block(self, layer: int) -> BlockConfig:
        """Of block number `layer`."""
        swiglu = -(-(8 * self.dim // 3) // self.multiple) * self.multiple
        return BlockConfig(
            dim=self.dim,
            heads=self.heads,
            head_dim=self.head_dim,
            hidden=swiglu if self.mlp == "swiglu" else 4 * self.dim,
            norm=self.norm,
            mlp=self.mlp,
            norm_first=self.norm_first,
            bias=self.bias,
            qk_norm=self.qk_norm,
            cross=self.crosses(layer),
            adaln="adaln" in self.entry,
            dropout=self.dropout,
            attention_dropout=self.dropout,
            eps=self.eps,
        )


class MaskGitConfig(TrunkConfig):
    """Bidirectional transformer over masked codes."""

    kind: Literal["maskgit"] = "maskgit"
    tied: bool = False
    """whether the last layer has the weights of the codes' embedding"""

    def build(self, sequence: Sequence, book: Quantizer | None = None) -> MaskGit:
        """The network for a sequence."""
        return MaskGit(sequence, **self.arguments())


class Trunk(Masked):
    """The context as it enters, then codes with learned positions; every place sees every other.

    A network makes what embeds codes and its head, then calls `initialise`.
    """

    of_places = ("positions",)

    def __init__(self, sequence: Sequence, config: TrunkConfig) -> None:
        super().__init__(sequence, config.schedule, config.label_smoothing)
        dim, norm, eps = config.dim, config.norm, config.eps
        self.config = config
        self.positions = nn.Parameter(torch.empty(sequence.length, dim))
        self.registers = nn.Parameter(torch.empty(config.registers, dim)) if config.registers else None
        self.norm = None if config.norm_first else make_norm(norm, dim, eps)
        self.blocks = nn.ModuleList(Block(config.block(layer)) for layer in range(config.layers))
        self.last_norm: nn.Module | None = None
        if config.norm_first:
            self.last_norm = LastNorm(norm, dim, eps) if "adaln" in config.entry else make_norm(norm, dim, eps)

    def initialise(self) -> None:
        """MaskGIT's start: a normal distribution of 0.02, cut at two, everywhere; AdaLN the identity."""
        initialise_masked(self)
        for vectors in (self.positions, self.registers):
            if vectors is not None:
                nn.init.trunc_normal_(vectors, std=0.02)

    def trunk_blocks(self) -> list[nn.Module]:
        """The transformer's blocks."""
        return list(self.blocks)

    def read(self, codes: Tensor, context: Context) -> Tensor:
        """Embedded codes `(B, N, D)` -> what the head is given, `(B, N, D)`."""
        config, real = self.config, context.mask
        x, before = codes + self.positions, 0
        if "prefix" in config.entry:
            x, before = torch.cat((context.vectors.to(x.dtype), x), dim=1), context.vectors.shape[1]
        if self.registers is not None:
            x = torch.cat((x, self.registers.expand(len(x), -1, -1)), dim=1)
        x = x if self.norm is None else self.norm(x)
        x = F.dropout(x, config.dropout, self.training)
        mask = None
        if before and real is not None:
            mask = F.pad(real, (0, x.shape[1] - before), value=True)[:, None, None]
        told = tell(context, config.entry, x.dtype)
        for block in self.blocks:
            x = block(x, None, mask, told)
        x = x[:, before : before + codes.shape[1]]
        if isinstance(self.last_norm, LastNorm):
            assert told.pooled is not None
            return self.last_norm(x, told.pooled)
        return x if self.last_norm is None else self.last_norm(x)


class MaskGit(Trunk):
    """Logits of every code from the codes that are shown."""

    of_codes = ("tokens", "head", "head_bias")
    config: MaskGitConfig

    def __init__(self, sequence: Sequence, **fields: Any) -> None:
        config = MaskGitConfig(**fields)
        super().__init__(sequence, config)
        self.tokens = nn.Embedding(sequence.vocabulary + 1, config.dim)
        self.head = nn.Linear(config.dim, sequence.vocabulary) if not config.tied else None
        self.head_bias = nn.Parameter(torch.zeros(sequence.vocabulary)) if config.tied else None
        self.initialise()

    def forward(self, tokens: Tensor, context: Context) -> Tensor:
        """Codes `(B, N)`, -1 where masked -> logits `(B, N, K)` of every place."""
        codes = tokens.masked_fill(tokens < 0, self.sequence.vocabulary)  # the last row stands for the mask
        x = self.read(self.tokens(codes), context)
        return F.linear(x, self.tokens.weight[:-1], self.head_bias) if self.head is None else self.head(x)
