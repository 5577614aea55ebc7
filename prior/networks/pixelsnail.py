"""PixelSNAIL: causal gated blocks and, where wanted, attention to all places before (arXiv 1712.09763), as priors of
VQ-VAE-2 (arXiv 1906.00446) have them in the implementation of Kim Seonghyeon (rosinality)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from prior.conditions.base import Context
from prior.convolutions import WHOLE, Convolution, GatedBlock, Whole, Windows, earlier, pointwise
from prior.networks.autoregressive import Autoregressive, State
from prior.networks.base import BaseNetworkConfig
from prior.networks.planes import at, plane_of, told_plane
from prior.sequences import Sequence
from tokenizers_vq.config import ConfigError
from tokenizers_vq.quantizers import Quantizer


class PixelSnailConfig(BaseNetworkConfig):
    """PixelSNAIL, for one grid of codes."""

    kind: Literal["pixelsnail"] = "pixelsnail"
    layers: Annotated[int, Field(ge=1)]
    """number of blocks"""
    residuals: Annotated[int, Field(ge=1)]
    """gated residual branches of each block"""
    dim: Annotated[int, Field(ge=2)]
    """width"""
    hidden: Annotated[int, Field(ge=1)]
    """width inside the residual branches"""
    kernel: Annotated[int, Field(ge=3)] = 5
    """side of the windows, odd"""
    attention: bool = True
    """whether blocks attend to all places before; otherwise they see what their windows reach"""
    heads: Annotated[int, Field(ge=1)] = 8
    """attention heads, which divide half the width"""
    out_residuals: Annotated[int, Field(ge=0)] = 0
    """gated residual branches of single places before the last layer"""
    entry: Literal["gates", "stem"] = "gates"
    """where a condition comes in: at the gate of every residual branch, or once, before the blocks"""
    told_width: Annotated[int, Field(ge=1)] | None = None
    """width of the condition at the gates; null: the network's"""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """inside the residual branches"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kernel % 2 == 0:
            raise ConfigError(("kernel",), f"a window has a middle, so its side is odd; got {self.kernel}")
        if self.attention and (self.dim % 2 or self.dim // 2 % self.heads):
            raise ConfigError(("heads",), f"{self.heads} heads do not divide half the width {self.dim}")
        if self.entry == "stem" and self.told_width not in (None, self.dim):
            raise ConfigError(("told_width",), "a condition that comes in at the stem has the network's width")
        return self

    @property
    def told_dim(self) -> int:
        """Width of the vectors that it is told."""
        return self.told_width or self.dim

    def build(self, sequence: Sequence, book: Quantizer | None = None) -> PixelSnail:
        """The network for a sequence. Raises `ValueError` for anything but one grid of one code at a place."""
        return PixelSnail(sequence, book, **self.arguments())


class Attention(nn.Module):
    """What a place sees of the places before it, half the width; queries and keys pass through a gated block each."""

    def __init__(self, config: PixelSnailConfig) -> None:
        super().__init__()
        dim, half = config.dim, config.dim // 2
        self.heads = config.heads
        self.key_block = GatedBlock(2 * dim + 2, dim, pointwise, dropout=config.dropout)
        self.query_block = GatedBlock(dim + 2, dim, pointwise, dropout=config.dropout)
        self.query, self.key, self.value = (pointwise(inputs, half) for inputs in (dim + 2, 2 * dim + 2, 2 * dim + 2))
        self.out_block = GatedBlock(dim, dim, pointwise, aux=half, dropout=config.dropout)

    def forward(self, x: Tensor, y: Tensor, places: Tensor, how: Whole) -> Tensor:
        """A block's input and its branches' output `(B, D, H, W)`, the places' coordinates -> `(B, D, H, W)`."""
        keyed = self.key_block(torch.cat((x, y, places), dim=1))
        asked = self.query_block(torch.cat((y, places), dim=1))
        parts = (self.query(asked), self.key(keyed), self.value(keyed))
        q, k, v = (part.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3) for part in parts)
        seen = how.attend(self, q, k, v).transpose(2, 3).flatten(1, 2).unflatten(2, y.shape[2:])
        return self.out_block(y, seen)


class Block(nn.Module):
    """Gated residual branches, then attention or one more layer that knows the place."""

    def __init__(self, config: PixelSnailConfig) -> None:
        super().__init__()
        told = config.told_dim if config.entry == "gates" else 0
        make = earlier(config.kernel)
        self.residuals = nn.ModuleList(
            GatedBlock(config.dim, config.hidden, make, told=told, dropout=config.dropout)
            for _ in range(config.residuals)
        )
        self.attention = Attention(config) if config.attention else None
        self.out = None if config.attention else pointwise(config.dim + 2, config.dim)

    def forward(self, x: Tensor, places: Tensor, told: Tensor, how: Whole = WHOLE) -> Tensor:
        """`(B, D, H, W)`, coordinates `(1, 2, H, W)`, the condition -> `(B, D, H, W)`."""
        y = x
        for residual in self.residuals:
            y = residual(y, told=told, how=how)
        places = places.expand(len(x), -1, -1, -1).to(x.dtype)
        if self.attention is not None:
            return self.attention(x, y, places, how)
        assert self.out is not None
        return self.out(torch.cat((y, places), dim=1))


class PixelSnail(Autoregressive):
    """Code by code in raster order. The codes enter as they are, each a channel of its own.

    As published, a place knows all codes before it but the last one of the row above, which is known where the window
    reaches it, and at the places after that.
    """

    of_codes = ("above", "left", "head")
    places: Tensor

    def __init__(self, sequence: Sequence, book: Quantizer | None = None, **fields: Any) -> None:
        super().__init__(sequence, book)
        self.config = config = PixelSnailConfig(**fields)
        height, width = self.grid = plane_of(sequence, config.kind)
        kernel, codes, dim = config.kernel, sequence.vocabulary, config.dim
        side = kernel // 2
        self.above = Convolution(codes, dim, (side, kernel), (side, side, side - 1, 0), normed=True)
        self.left = Convolution(codes, dim, (side + 1, side), (side - 1, 0, side, 0), normed=True)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.out_residuals = nn.ModuleList(
            GatedBlock(dim, config.hidden, pointwise, dropout=config.dropout) for _ in range(config.out_residuals)
        )
        self.head = pointwise(dim, codes)
        rows, columns = ((torch.arange(size).float() - size / 2) / size for size in (height, width))
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]
        self.register_buffer("places", places, persistent=False)

    def trunk_blocks(self) -> list[nn.Module]:
        """The blocks."""
        return list(self.blocks)

    def told(self, context: Context) -> Tensor:
        """The condition, `(B, D, H or 1, W or 1)`."""
        return told_plane(context, self.grid).to(self.head.weight.dtype)

    def channels(self, tokens: Tensor) -> Tensor:
        """Codes `(B, n)` -> `(B, n, K)`, 1 at the code, 0 elsewhere."""
        return F.one_hot(tokens, self.sequence.vocabulary).to(self.head.weight.dtype)

    def read(self, tokens: Tensor, told: Tensor, how: Whole) -> Tensor:
        """Codes `(B, N)` -> logits `(B, K, H, W)`."""
        codes = self.channels(tokens).transpose(1, 2).unflatten(2, self.grid)
        # What the rows above give is moved a row down, what stands to the left a column to the right.
        above = F.pad(how.convolve(self.above, codes), (0, 0, 1, 0))[:, :, :-1]
        left = F.pad(how.convolve(self.left, codes), (1, 0))[..., :-1]
        return self.deep(above + left, self.places, told, how)

    def deep(self, x: Tensor, places: Tensor, told: Tensor, how: Whole) -> Tensor:
        """The stem's `(B, D, H, W)` -> logits `(B, K, H, W)`."""
        x = x + told if self.config.entry == "stem" else x
        for block in self.blocks:
            x = block(x, places, told, how)
        for residual in self.out_residuals:
            x = residual(x)
        return self.head(F.elu(x))

    def forward(self, tokens: Tensor, context: Context) -> Tensor:
        """Codes `(B, N)` -> logits `(B, N, K)`, place i from the codes before it."""
        return self.read(tokens, self.told(context), WHOLE).flatten(2).transpose(1, 2)

    def start(self, tokens: Tensor, context: Context) -> PixelSnailState:
        """What convolutions and attention look back at, of the places before codes `(B, n)` end."""
        return PixelSnailState(self, tokens, context)


class PixelSnailState(State):
    """Place by place; equals `PixelSnail.forward`."""

    @torch.no_grad()
    def __init__(self, network: PixelSnail, tokens: Tensor, context: Context) -> None:
        self.network, self.windows, self.told = network, Windows(), network.told(context)
        self.place, length = tokens.shape[1], network.sequence.length
        # What stands at the places to come is written over before it is looked at.
        logits = network.read(F.pad(tokens, (0, length - self.place)), self.told, self.windows)
        self.logits = logits.flatten(2)[:, :, self.place]

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:
        """The code `(B,)` after those seen so far -> logits `(B, K)` of the one that follows."""
        network, windows, width = self.network, self.windows, self.network.grid[1]
        code = network.channels(tokens)[:, :, None, None]
        row, column = divmod(self.place, width)
        windows.move(row, slice(column, column + 1), self.place)
        windows.keep(network.above, code)
        windows.keep(network.left, code)
        self.place += 1
        row, column = divmod(self.place, width)
        columns = slice(column, column + 1)
        windows.move(row, columns, self.place)
        x = code.new_zeros(len(code), network.config.dim, 1, 1)
        if row:
            x = x + windows.look(network.above, row - 1, columns)
        if column:
            x = x + windows.look(network.left, row, slice(column - 1, column))
        places, told = at(network.places, row, columns), at(self.told, row, columns)
        self.logits = network.deep(x, places, told, windows)[:, :, 0, 0]
        return self.logits
