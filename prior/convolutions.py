"""Convolutions that see what came before alone, on a whole grid or place by place; PixelSNAIL's gated block."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Convolution(nn.Module):
    """Convolution of stride 1: `(B, C, H, W)` -> `(B, C', H, W)`.

    `pads`: zeros left, right and above (and below, where the window is not causal). `seen`: how many columns of the
    window's last row count; the others weigh nothing. `normed`: direction and length of each filter are learnt apart
    (arXiv 1602.07868).
    """

    seen: Tensor | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int] = (1, 1),
        pads: tuple[int, int, int, int] = (0, 0, 0, 0),
        seen: int | None = None,
        bias: bool = True,
        normed: bool = False,
    ) -> None:
        super().__init__()
        self.kernel, self.pads = kernel, pads
        self.weight = nn.Parameter(torch.empty(outputs, inputs, *kernel))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        bound = 1 / math.sqrt(inputs * math.prod(kernel))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound)) if bias else None
        mask = None
        if seen is not None:
            mask = torch.ones(1, 1, *kernel)
            mask[..., -1, seen:] = 0
        self.register_buffer("seen", mask, persistent=False)
        self.gain = nn.Parameter(_lengths(self._counted()).detach().clone()) if normed else None

    def _counted(self) -> Tensor:
        return self.weight if self.seen is None else self.weight * self.seen

    def over(self, padded: Tensor) -> Tensor:
        """What a window sees of an input that is padded already."""
        weight = self._counted()
        if self.gain is not None:
            weight = weight * (self.gain / _lengths(weight))
        return F.conv2d(padded, weight, self.bias)

    def padded(self, x: Tensor) -> Tensor:
        """With zeros around it, in memory of its own."""
        return F.pad(x, self.pads)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` -> `(B, C', H, W)`."""
        return self.over(x if self.kernel == (1, 1) else self.padded(x))


def _lengths(weight: Tensor) -> Tensor:
    return weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


class Whole:
    """How convolutions and attention see a whole grid."""

    def convolve(self, conv: Convolution, x: Tensor) -> Tensor:
        """`(B, C, H, W)` -> `(B, C', H, W)`."""
        return conv(x)

    def attend(self, module: nn.Module, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """`(B, heads, N, d)` each, of all places in raster order -> what a place sees of those before it.

        The first place sees nothing, which is 0.
        """
        n = queries.shape[2]
        mask = torch.ones(n, n, dtype=torch.bool, device=queries.device).tril(-1)
        mask[0, 0] = True  # a softmax over nothing is NaN
        found = F.scaled_dot_product_attention(queries, keys, values, mask)
        return torch.cat((torch.zeros_like(found[:, :, :1]), found[:, :, 1:]), dim=2)


WHOLE = Whole()


class Windows(Whole):
    """A whole grid at first, then a place or a row at a time: keeps what convolutions and attention look back at."""

    def __init__(self) -> None:
        self.inputs: dict[nn.Module, Tensor] = {}
        self.stores: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self.row, self.columns, self.place = -1, slice(0, 0), -1

    def move(self, row: int, columns: slice, place: int) -> None:
        """What follows is of these columns of a row; `place`: the number of the first."""
        self.row, self.columns, self.place = row, columns, place

    def convolve(self, conv: Convolution, x: Tensor) -> Tensor:
        """As `Whole.convolve`, of the present columns `(B, C, 1, n)`."""
        if conv.kernel == (1, 1):
            return conv(x)
        if self.row < 0:
            self.inputs[conv] = conv.padded(x)
            return conv.over(self.inputs[conv])
        self.keep(conv, x)
        return self.look(conv, self.row, self.columns)

    def keep(self, conv: Convolution, x: Tensor) -> None:
        """The input `(B, C, 1, n)` of the present columns."""
        left, _, top, _ = conv.pads
        there = slice(self.columns.start + left, self.columns.stop + left)
        self.inputs[conv][:, :, self.row + top, there] = x[:, :, 0]

    def look(self, conv: Convolution, row: int, columns: slice) -> Tensor:
        """What a convolution gives at columns of a row, from the inputs that are kept, `(B, C', 1, n)`."""
        height, width = conv.kernel
        return conv.over(self.inputs[conv][:, :, row : row + height, columns.start : columns.stop - 1 + width])

    def attend(self, module: nn.Module, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """As `Whole.attend`, of the present place `(B, heads, 1, d)`."""
        if self.row < 0:
            self.stores[module] = keys.clone(), values.clone()
            return super().attend(module, queries, keys, values)
        kept_keys, kept_values = self.stores[module]
        kept_keys[:, :, self.place], kept_values[:, :, self.place] = keys[:, :, 0], values[:, :, 0]
        if not self.place:
            return torch.zeros_like(values)
        return F.scaled_dot_product_attention(queries, kept_keys[:, :, : self.place], kept_values[:, :, : self.place])


class GatedBlock(nn.Module):
    """A residual branch of two convolutions behind ELUs with a gate at its end (PixelSNAIL, arXiv 1712.09763).

    `make(inputs, outputs)` makes a convolution. `aux`, `told`: channels of what is added inside and at the gate; 0:
    nothing is.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        make: Callable[[int, int], Convolution],
        aux: int = 0,
        told: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.conv1, self.conv2 = make(dim, hidden), make(hidden, 2 * dim)
        self.aux = Convolution(aux, hidden, normed=True) if aux else None
        self.told = Convolution(told, 2 * dim, bias=False, normed=True) if told else None

    def forward(self, x: Tensor, aux: Tensor | None = None, told: Tensor | None = None, how: Whole = WHOLE) -> Tensor:
        """`(B, C, H, W)`, further maps that broadcast to it -> `(B, C, H, W)`."""
        y = how.convolve(self.conv1, F.elu(x))
        if self.aux is not None and aux is not None:
            y = y + self.aux(F.elu(aux))
        y = F.dropout(F.elu(y), self.dropout, self.training)
        y = how.convolve(self.conv2, y)
        if self.told is not None and told is not None:
            y = y + self.told(told)
        return x + F.glu(y, dim=1)


def pointwise(inputs: int, outputs: int) -> Convolution:
    """A weight-normalised convolution of single places."""
    return Convolution(inputs, outputs, normed=True)


def centred(kernel: int) -> Callable[[int, int], Convolution]:
    """Makes weight-normalised convolutions that see all around a place."""
    return lambda inputs, outputs: Convolution(inputs, outputs, (kernel, kernel), (kernel // 2,) * 4, normed=True)


def earlier(kernel: int) -> Callable[[int, int], Convolution]:
    """Makes weight-normalised convolutions that see the places before one alone."""
    side = kernel // 2
    return lambda inputs, outputs: Convolution(
        inputs, outputs, (kernel, kernel), (side, side, kernel - 1, 0), seen=side, normed=True
    )
