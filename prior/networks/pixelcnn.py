"""Gated PixelCNN: a stack of convolutions over the rows above, one over the places to the left (arXiv 1606.05328)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from prior.conditions.base import Context
from prior.convolutions import WHOLE, Convolution, Whole, Windows
from prior.networks.autoregressive import Autoregressive, State
from prior.networks.base import BaseNetworkConfig
from prior.networks.planes import at, plane_of, told_plane
from prior.sequences import Sequence
from tokenizers_vq.quantizers import Quantizer


class PixelCnnConfig(BaseNetworkConfig):
    """Gated PixelCNN, for one grid of codes."""

    kind: Literal["pixelcnn"] = "pixelcnn"
    layers: Annotated[int, Field(ge=1)]
    """number of gated layers"""
    dim: Annotated[int, Field(ge=1)]
    """width of both stacks"""
    first_kernel: Annotated[int, Field(ge=3)] = 7
    """side of the first layer's window, odd"""
    kernel: Annotated[int, Field(ge=3)] = 3
    """side of the other layers' windows, odd"""
    head_dim: Annotated[int, Field(ge=1)] = 512
    """width before the last layer"""
    entry: Literal["projected", "direct"] = "projected"
    """how a condition reaches the gates: by a projection in each layer, or by vectors that have a part for each"""

    @field_validator("first_kernel", "kernel")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"a window has a middle, so its side is odd; got {value}")
        return value

    @property
    def told_dim(self) -> int:
        """Width of the vectors that it is told."""
        return self.layers * 2 * self.dim if self.entry == "direct" else self.dim

    def build(self, sequence: Sequence, book: Quantizer | None = None) -> PixelCnn:
        """The network for a sequence. Raises `ValueError` for anything but one grid of one code at a place."""
        return PixelCnn(sequence, book, **self.arguments())


class Layer(nn.Module):
    """Both stacks of a gated layer. The first one hides the place itself, and has no residual branch."""

    def __init__(self, config: PixelCnnConfig, first: bool) -> None:
        super().__init__()
        dim, kernel = config.dim, config.first_kernel if first else config.kernel
        side = kernel // 2
        self.residual = not first
        self.vertical = Convolution(dim, 2 * dim, (side + 1, kernel), (side, side, side, 0), seen=0 if first else None)
        self.horizontal = Convolution(dim, 2 * dim, (1, side + 1), (side, 0, 0, 0), seen=side if first else None)
        self.across = Convolution(2 * dim, 2 * dim)
        self.out = Convolution(dim, dim)
        self.told = Convolution(dim, 2 * dim, bias=False) if config.entry == "projected" else None

    def forward(self, down: Tensor, right: Tensor, told: Tensor, how: Whole = WHOLE) -> tuple[Tensor, Tensor]:
        """The inputs of both stacks `(B, D, H, W)`, and what is added before the gates -> their outputs."""
        given, below = self.down(down, told, how)
        return below, self.right(right, given, told, how)

    def down(self, x: Tensor, told: Tensor, how: Whole) -> tuple[Tensor, Tensor]:
        """The vertical stack's input -> what the horizontal one is given of it, and its output."""
        inner = how.convolve(self.vertical, x)
        return self.across(inner), _gate(inner + told)

    def right(self, x: Tensor, given: Tensor, told: Tensor, how: Whole) -> Tensor:
        """The horizontal stack's input, and what `down` gives it -> its output."""
        return self.gated(x, how.convolve(self.horizontal, x) + given + told)

    def gated(self, x: Tensor, inner: Tensor) -> Tensor:
        """What stands before the gate -> the output, with the input where there is a residual branch."""
        y = self.out(_gate(inner))
        return x + y if self.residual else y


def _gate(x: Tensor) -> Tensor:
    signal, gate = x.chunk(2, dim=1)
    return torch.tanh(signal) * torch.sigmoid(gate)


class PixelCnn(Autoregressive):
    """Code by code in raster order. The two stacks together see all places before one: there is no blind spot."""

    of_codes = ("tokens", "head")

    def __init__(self, sequence: Sequence, book: Quantizer | None = None, **fields: Any) -> None:
        super().__init__(sequence, book)
        self.config = config = PixelCnnConfig(**fields)
        self.grid = plane_of(sequence, config.kind)
        self.tokens = nn.Embedding(sequence.vocabulary, config.dim)
        nn.init.xavier_uniform_(self.tokens.weight)
        self.layers = nn.ModuleList(Layer(config, number == 0) for number in range(config.layers))
        self.inner_head = Convolution(config.dim, config.head_dim)
        self.head = Convolution(config.head_dim, sequence.vocabulary)

    @property
    def stack(self) -> list[Layer]:
        """The layers, typed."""
        return list(self.layers)  # type: ignore[arg-type]

    def trunk_blocks(self) -> list[nn.Module]:
        """The layers."""
        return list(self.layers)

    def told(self, context: Context) -> list[Tensor]:
        """What is added before the gates of each layer, `(B, 2 D, H or 1, W or 1)`."""
        plane = told_plane(context, self.grid).to(self.tokens.weight.dtype)
        if self.config.entry == "direct":
            return list(plane.chunk(self.config.layers, dim=1))
        return [layer.told(plane) for layer in self.stack if layer.told is not None]

    def embed(self, tokens: Tensor) -> Tensor:
        """Codes `(B, N)` -> `(B, D, H, W)`."""
        return self.tokens(tokens).transpose(1, 2).unflatten(2, self.grid)

    def read(self, tokens: Tensor, told: list[Tensor], how: Whole) -> Tensor:
        """Codes `(B, N)` -> logits `(B, K, H, W)`."""
        down = right = self.embed(tokens)
        for layer, here in zip(self.stack, told, strict=True):
            down, right = layer(down, right, here, how)
        return self.last(right)

    def last(self, x: Tensor) -> Tensor:
        """What the horizontal stack gives -> logits `(B, K, H, W)`."""
        return self.head(F.relu(self.inner_head(x)))

    def forward(self, tokens: Tensor, context: Context) -> Tensor:
        """Codes `(B, N)` -> logits `(B, N, K)`, place i from the codes before it."""
        return self.read(tokens, self.told(context), WHOLE).flatten(2).transpose(1, 2)

    def start(self, tokens: Tensor, context: Context) -> PixelCnnState:
        """Both stacks' inputs at the places before codes `(B, n)` end."""
        return PixelCnnState(self, tokens, context)


class PixelCnnState(State):
    """Row by row the vertical stack, place by place the horizontal one; equals `PixelCnn.forward`."""

    @torch.no_grad()
    def __init__(self, network: PixelCnn, tokens: Tensor, context: Context) -> None:
        self.network, self.windows, self.told = network, Windows(), network.told(context)
        self.place, length = tokens.shape[1], network.sequence.length
        self.given: list[Tensor] = []
        row, column = self._where()
        # What stands at the places to come is written over before it is looked at.
        logits = network.read(F.pad(tokens, (0, length - self.place)), self.told, self.windows)
        self.logits = logits[:, :, row, column]
        self._row(row)

    def _where(self) -> tuple[int, int]:
        return divmod(self.place, self.network.grid[1])

    def _row(self, row: int) -> None:
        """The vertical stack of a row, for which all rows above are known."""
        width, windows = self.network.grid[1], self.windows
        columns, self.given = slice(0, width), []
        windows.move(row, columns, row * width)
        below: Tensor | None = None
        for layer, told in zip(self.network.stack, self.told, strict=True):
            here = at(told, row, columns)
            if below is None:
                inner = windows.look(layer.vertical, row, columns)
                given, below = layer.across(inner), _gate(inner + here)
            else:
                given, below = layer.down(below, here, windows)
            self.given.append(given)

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:
        """The code `(B,)` after those seen so far -> logits `(B, K)` of the one that follows."""
        network, windows, stack = self.network, self.windows, self.network.stack
        row, column = self._where()
        code = network.tokens(tokens)[:, :, None, None]
        windows.move(row, slice(column, column + 1), self.place)
        windows.keep(stack[0].vertical, code)
        windows.keep(stack[0].horizontal, code)
        self.place += 1
        row, column = self._where()
        if not column:
            self._row(row)
        columns = slice(column, column + 1)
        windows.move(row, columns, self.place)
        told, given = at(self.told[0], row, columns), self.given[0][..., columns]
        x = stack[0].gated(code, windows.look(stack[0].horizontal, row, columns) + given + told)
        for number, layer in enumerate(stack[1:], 1):
            x = layer.right(x, self.given[number][..., columns], at(self.told[number], row, columns), windows)
        self.logits = network.last(x)[:, :, 0, 0]
        return self.logits
