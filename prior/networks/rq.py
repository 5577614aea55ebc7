"""RQ-Transformer: one transformer over positions, one over the levels of each (arXiv 2203.01941, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence as Listed
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from prior.conditions.base import Context
from prior.networks.autoregressive import Autoregressive, State
from prior.networks.base import BaseNetworkConfig
from prior.networks.blocks import Block, BlockConfig, initialise
from prior.networks.cache import Cache
from prior.sequences import Sequence
from tokenizers_vq.config import ConfigError
from tokenizers_vq.quantizers import Quantizer


class RqConfig(BaseNetworkConfig):
    """Transformers over positions and over levels, for codes of several levels."""

    fed_vectors: ClassVar[bool] = True
    kind: Literal["rq"] = "rq"
    layers: Annotated[int, Field(ge=1)]
    """blocks over positions"""
    depth_layers: Annotated[int, Field(ge=1)]
    """blocks over the levels of a position"""
    dim: Annotated[int, Field(ge=1)]
    """width; the MLP is 4 times as wide"""
    heads: Annotated[int, Field(ge=1)]
    """attention heads, which divide the width"""
    shared_head: bool = True
    """one last layer for the codes of all levels; otherwise one each"""
    token_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """dropout of what the blocks over positions are fed"""
    residual_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """dropout of each branch's output"""
    eps: float = 1e-5
    """of LayerNorm"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dim % self.heads:
            raise ConfigError(("heads",), f"{self.heads} heads do not divide the width {self.dim}")
        return self

    def build(self, sequence: Sequence, book: Quantizer | None = None) -> Rq:
        """The network for a sequence. Raises `ValueError` for codes of one level or of several grids."""
        return Rq(sequence, book, **self.arguments())


class Head(nn.Module):
    """A norm and a last layer for each level."""

    def __init__(self, dim: int, levels: int, codes: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps)
        self.weight = nn.Parameter(torch.empty(levels, codes, dim))
        self.bias = nn.Parameter(torch.zeros(levels, codes))

    def forward(self, x: Tensor, level: int = 0) -> Tensor:
        """`(B, n, D)` of levels `level, ...` -> logits `(B, n, K)`; of one matrix, it is that of all levels."""
        x = self.norm(x)
        if len(self.weight) == 1:
            return F.linear(x, self.weight[0], self.bias[0])
        there = slice(level, level + x.shape[1])
        return torch.einsum("bld,lkd->blk", x, self.weight[there]) + self.bias[there]


class Rq(Autoregressive):
    """Position by position, level by level: codes `(B, N)` in raster order, the levels of a position together.

    Blocks over positions are fed the context as a prefix, then the vectors of each position, all its levels summed;
    what they say of a position, then the sums of its first 1, 2, ... levels, are fed to blocks over levels.
    """

    of_codes = ("enter", "enter_depth", "head")
    of_places = ("positions",)
    book: Quantizer

    def __init__(self, sequence: Sequence, book: Quantizer | None = None, **fields: Any) -> None:
        super().__init__(sequence, _checked(sequence, book))
        self.config = config = RqConfig(**fields)
        dim, self.levels = config.dim, sequence.layout.levels
        self.enter, self.enter_depth = nn.Linear(self.book.dim, dim), nn.Linear(self.book.dim, dim)
        self.positions = nn.Parameter(torch.empty(sequence.length // self.levels, dim))
        self.level_positions = nn.Parameter(torch.empty(self.levels, dim))
        block = BlockConfig(
            dim=dim,
            heads=config.heads,
            hidden=4 * dim,
            norm="layer",
            mlp="gelu",
            bias=True,
            causal=True,
            dropout=config.residual_dropout,
            eps=config.eps,
        )
        self.blocks = nn.ModuleList(Block(block) for _ in range(config.layers))
        self.depth_blocks = nn.ModuleList(Block(block) for _ in range(config.depth_layers))
        self.head = Head(dim, 1 if config.shared_head else self.levels, sequence.vocabulary, config.eps)
        for parts, blocks in (
            ((self.enter, self.blocks), self.stack),
            ((self.enter_depth, self.depth_blocks), self.depth_stack),
        ):
            initialise(nn.ModuleList(parts), blocks)
        for weight in (self.positions, self.level_positions, self.head.weight):
            nn.init.normal_(weight, std=0.02)

    @property
    def stack(self) -> list[Block]:
        """The blocks over positions, typed."""
        return list(self.blocks)  # type: ignore[arg-type]

    @property
    def depth_stack(self) -> list[Block]:
        """The blocks over levels, typed."""
        return list(self.depth_blocks)  # type: ignore[arg-type]

    def trunk_blocks(self) -> list[nn.Module]:
        """The blocks of both transformers."""
        return [*self.blocks, *self.depth_blocks]

    def vectors(self, tokens: Tensor) -> Tensor:
        """Codes `(B, p L)` of the first p positions -> what each adds, `(B, p, L, D')`."""
        codes = tokens.unflatten(1, (-1, self.levels)).unbind(-1)
        found = [self.book.addend(part, level).transpose(1, 2) for level, part in enumerate(codes)]
        return torch.stack(found, dim=2).to(self.positions.dtype)

    def positioned(self, vectors: Tensor, first: int = 0) -> Tensor:
        """Vectors `(B, p, L, D')` of positions `first, ...` -> what blocks over positions are fed, `(B, p, D)`."""
        # Each level enters by itself: the bias counts L times in the reference.
        return self.enter(vectors).sum(dim=2) + self.positions[first : first + vectors.shape[1]]

    def forward(self, tokens: Tensor, context: Context) -> Tensor:
        """Codes `(B, N)` -> logits `(B, N, K)`, place i from the codes before it."""
        vectors, prefix = self.vectors(tokens), context.vectors.shape[1]
        x = torch.cat((context.vectors.to(vectors.dtype), self.positioned(vectors)[:, :-1]), dim=1)
        x, mask = F.dropout(x, self.config.token_dropout, self.training), _visible(context, x.shape[1])
        for block in self.stack:
            x = block(x, mask=mask)
        deep = self.enter_depth(vectors.cumsum(dim=2)[:, :, :-1])
        y = torch.cat((x[:, prefix - 1 :, None], deep), dim=2).flatten(0, 1) + self.level_positions
        for block in self.depth_stack:
            y = block(y)
        return self.head(y).unflatten(0, (len(tokens), -1)).flatten(1, 2)

    def start(self, tokens: Tensor, context: Context) -> RqState:
        """Keys and values of the context and of whole positions; the levels of the last one are read one by one."""
        return RqState(self, tokens, context)


class RqState(State):
    """Code by code, without gradient or dropout; equals `Rq.forward`."""

    def __init__(self, network: Rq, tokens: Tensor, context: Context) -> None:
        self.network, self.context = network, context
        config, rows, prefix = network.config, len(tokens), context.vectors.shape[1]
        head_dim, like = config.dim // config.heads, network.positions
        places = prefix + len(network.positions) - 1
        self.body, self.depth = (
            Cache(layers, rows, config.heads, length, head_dim, like.dtype, like.device)
            for layers, length in ((config.layers, places), (config.depth_layers, network.levels))
        )
        whole = tokens.shape[1] // network.levels
        self.place = whole * network.levels
        x = context.vectors.to(like.dtype)
        if whole:
            x = torch.cat((x, network.positioned(network.vectors(tokens[:, : self.place]))), dim=1)
        self._read_position(x)
        for place in range(self.place, tokens.shape[1]):
            self.step(tokens[:, place])

    def step(self, tokens: Tensor) -> Tensor:
        """The code `(B,)` after those seen so far -> logits `(B, K)` of the one that follows."""
        network = self.network
        position, level = divmod(self.place, network.levels)
        vector = network.book.addend(tokens[:, None], level).transpose(1, 2).to(network.positions.dtype)
        self.seen.append(vector)
        self.place += 1
        if level + 1 < network.levels:
            self._read_level(network.enter_depth(torch.stack(self.seen).sum(dim=0)), level + 1)
        else:
            self._read_position(network.positioned(torch.stack(self.seen, dim=2), position))
        return self.logits

    def _read_position(self, x: Tensor) -> None:
        """Vectors `(B, n, D)` of the places that follow: the context, or whole positions."""
        mask = _visible(self.context, self.body.used + x.shape[1])
        x = _through(self.network.stack, x, self.body, None if mask is None else mask[..., -x.shape[1] :, :])
        self.seen: list[Tensor] = []
        self.depth.used = 0
        self._read_level(x[:, -1:], 0)

    def _read_level(self, x: Tensor, level: int) -> None:
        """What stands before a level of this position, `(B, 1, D)`."""
        x = _through(self.network.depth_stack, x + self.network.level_positions[level], self.depth)
        self.logits = self.network.head(x, level)[:, 0]


def _through(blocks: Listed[Block], x: Tensor, cache: Cache, mask: Tensor | None = None) -> Tensor:
    """Places `(B, n, D)`, all of them or one, behind those in the cache."""
    cache.reserve(x.shape[1])
    for layer, block in enumerate(blocks):
        x = block(x, mask=mask, store=partial(cache.extend, layer))
    cache.advance(x.shape[1])
    return x


def _visible(context: Context, count: int) -> Tensor | None:
    """Bool `(B, 1, n, n)` of the first n places, the context's among them; None where nothing is padding."""
    if context.mask is None:
        return None
    real = F.pad(context.mask, (0, count - context.mask.shape[1]), value=True)
    square = torch.ones(count, count, dtype=torch.bool, device=real.device)
    # Padding sees itself, for a softmax over nothing is NaN.
    return ((square.tril() & real[:, None]) | torch.eye(count, dtype=torch.bool, device=real.device))[:, None]


def _checked(sequence: Sequence, book: Quantizer | None) -> Quantizer:
    """The book. Raises `ValueError` for codes of one level, of several grids, or of another quantizer."""
    layout = sequence.layout
    if len(layout.grids) > 1 or layout.levels == 1 or book is None:
        grids = " + ".join("x".join(map(str, grid)) for grid in layout.grids)
        raise ValueError(
            "an rq network predicts codes of several levels on one grid, such as a residual quantizer's; these stand "
            f"on {grids}, {layout.levels} at a position: take another kind of network"
        )
    if book.layout(layout.grids[0]) != layout:
        raise ValueError(f"the quantizer's codes have layout {book.layout(layout.grids[0]).to_dict()}, not this one")
    return book
