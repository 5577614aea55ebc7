"""Blocks that several families share: residual block, attention, resampling (arXiv 2012.09841, as in DDPM's U-Net)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tokenizers_vq.codes import nearest_multiples
from tokenizers_vq.networks.normalisation import GroupNorm


def stride_grid(height: int, width: int, stride: int) -> tuple[int, int]:
    """`(H / stride, W / stride)`. Raises `ValueError` naming the nearest sizes where the stride does not divide."""
    if height % stride or width % stride or min(height, width) < stride:
        rows, columns = (" or ".join(map(str, nearest_multiples(size, stride))) for size in (height, width))
        raise ValueError(
            f"image size {height}x{width} is not divisible by the stride {stride}: "
            f"resize or crop to a height of {rows} and a width of {columns} (`images.read(x, size=...)` does both)"
        )
    return height // stride, width // stride


def swish(x: Tensor) -> Tensor:
    """`x * sigmoid(x)` of a tensor that nothing else reads; in place where autograd does not need it."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def precise(module: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`module(x)` in float32 under autocast, where autograd is off.

    Encoders run the layers beside the pixels and beside the codes so: rounding there is most of what moves a feature
    to another code, and they are a small part of the work. Training keeps its speed.
    """
    if torch.is_grad_enabled() or not torch.is_autocast_enabled(x.device.type):
        return module(x)
    with torch.autocast(x.device.type, enabled=False):
        return module(x.float())


def entered(module: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    """`precise(module, pixels)`, handed on in autocast's dtype: in float32 all of the first level would mix dtypes."""
    h = precise(module, pixels)
    if torch.is_grad_enabled() or not torch.is_autocast_enabled(pixels.device.type):
        return h
    return h.to(torch.get_autocast_dtype(pixels.device.type))


class Conditioned(nn.Module):
    """A layer that is given the code `(B, D, h, w)` beside the features `(B, C, H, W)`."""


def told(layer: nn.Module, x: Tensor, *code: Tensor) -> Tensor:
    """`layer(x)`, with the code where it takes one."""
    out: Tensor = layer(x, *code) if isinstance(layer, Conditioned) else layer(x)
    return out


Norm = Callable[[int, int], nn.Module]
"""`norm(groups, width)`, a norm of `(B, width, H, W)`"""
Convolution = Callable[[int, int], nn.Module]
"""`convolution(width_in, width_out)`, which keeps height and width"""
Score = Literal["dot", "l2"]


def group_norm(groups: int, width: int) -> nn.Module:
    """GroupNorm with VQGAN's epsilon."""
    return GroupNorm(groups, width, eps=1e-6)


class ResidualBlock(nn.Module):
    """GroupNorm, swish, 3x3 twice, plus a 1x1 shortcut where the width changes. `(B, C, H, W)` -> `(B, C', H, W)`.

    `norm` and `convolution` make other layers; those that are `Conditioned` take the code that `forward` is given.
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        groups: int = 32,
        dropout: float = 0.0,
        bias: bool = True,
        norm: Norm = group_norm,
        convolution: Convolution | None = None,
    ) -> None:
        super().__init__()
        make = convolution or partial(nn.Conv2d, kernel_size=3, padding=1, bias=bias)
        self.norm1 = norm(groups, width_in)
        self.conv1 = make(width_in, width_out)
        self.norm2 = norm(groups, width_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = make(width_out, width_out)
        self.shortcut = nn.Conv2d(width_in, width_out, 1, bias=bias) if width_in != width_out else nn.Identity()

    def forward(self, x: Tensor, *code: Tensor) -> Tensor:
        # No name keeps the first convolution's output: without autograd three tensors live at once, not four.
        h = told(self.norm2, told(self.conv1, swish(told(self.norm1, x, *code)), *code), *code)
        h = told(self.conv2, self.dropout(swish(h)), *code)
        shortcut = self.shortcut(x)
        return h.add_(shortcut) if not torch.is_grad_enabled() else h + shortcut


class Attention(nn.Module):
    """Self-attention over all positions, with 1x1 convolutions and a residual. `(B, C, H, W)` -> the same.

    `l2` compares tied queries and keys x = W_q h of each head by their distance and tells what is linear in them
    (`l2_attention`), which makes what `attend` adds Lipschitz in the normed features.
    """

    def __init__(
        self, width: int, groups: int = 32, heads: int = 1, norm: Norm = group_norm, score: Score = "dot"
    ) -> None:
        super().__init__()
        self.heads, self.score = heads, score
        self.norm = norm(groups, width)
        dot = score == "dot"
        self.q = nn.Conv2d(width, width, 1, bias=dot)  # no distance sees a bias
        if dot:
            self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1, groups=1 if dot else heads)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, *code: Tensor) -> Tensor:
        return x + self.attend(told(self.norm, x, *code))

    def attend(self, h: Tensor) -> Tensor:
        """What the other positions tell, of normed features `(B, C, H, W)`."""
        if self.score == "l2":
            heard = l2_attention(self._by_head(self.q(h)))
            return self.out(self.v(self._joined(heard, h.shape[2])))
        q, k, v = (self._by_head(layer(h)) for layer in (self.q, self.k, self.v))
        return self.out(self._joined(F.scaled_dot_product_attention(q, k, v), h.shape[2]))

    def _by_head(self, x: Tensor) -> Tensor:
        return rearrange(x, "b (n c) h w -> b n (h w) c", n=self.heads)

    def _joined(self, x: Tensor, height: int) -> Tensor:
        return rearrange(x, "b n (h w) c -> b (n c) h w", h=height)


def l2_attention(x: Tensor) -> Tensor:
    """`(..., N, d)` -> the same: the mean of all x_j as x_i hears them, by softmax of `-|x_i - x_j|^2 / sqrt(d)`.

    Lipschitz attention of Kim et al. (arXiv 2006.04710), as GigaGAN has it (arXiv 2303.05511): queries and keys are
    tied, and what is told is linear in them; with the maps W_q before, W_v and W_o behind, its Jacobian is at most
    `sqrt(N) (4 phi^-1(N - 1) + 1) |W_q| |W_v| |W_o|`, phi(t) = t exp(t + 1). Unfused: fused kernels have no second
    derivative. float32 inside, since distances of neighbours would cancel in half precision.
    """
    with torch.autocast(x.device.type, enabled=False):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        squares = wide.square().sum(dim=-1)
        # |x_i|^2 is the same for all j: softmax does not see it.
        scores = (2 * wide @ wide.mT - squares[..., None, :]) * x.shape[-1] ** -0.5
        return (torch.softmax(scores, dim=-1) @ wide).to(x.dtype)


class Downsample(nn.Module):
    """3x3 convolution of stride 2, padded right and below only. `(B, C, H, W)` -> `(B, C, H/2, W/2)`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest neighbour by 2, then a 3x3 convolution. `(B, C, H, W)` -> `(B, C, 2H, 2W)`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
