"""Blocks that several families share: residual block, attention, resampling (arXiv 2012.09841, as in DDPM's U-Net)."""

from __future__ import annotations

from collections.abc import Callable

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


Norm = Callable[[int, int], nn.Module]
"""`norm(groups, width)`, a norm of `(B, width, H, W)`"""


def group_norm(groups: int, width: int) -> nn.Module:
    """GroupNorm with VQGAN's epsilon."""
    return GroupNorm(groups, width, eps=1e-6)


class ResidualBlock(nn.Module):
    """GroupNorm, swish, 3x3 twice, plus a 1x1 shortcut where the width changes. `(B, C, H, W)` -> `(B, C', H, W)`.

    `norm(groups, width)` makes other norms, which take what `forward` is given beside the features.
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        groups: int = 32,
        dropout: float = 0.0,
        bias: bool = True,
        norm: Norm = group_norm,
    ) -> None:
        super().__init__()
        self.norm1 = norm(groups, width_in)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1, bias=bias)
        self.norm2 = norm(groups, width_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1, bias=bias)
        self.shortcut = nn.Conv2d(width_in, width_out, 1, bias=bias) if width_in != width_out else nn.Identity()

    def forward(self, x: Tensor, *code: Tensor) -> Tensor:
        # No name keeps the first convolution's output: without autograd three tensors live at once, not four.
        h = self.norm2(self.conv1(swish(self.norm1(x, *code))), *code)
        h = self.conv2(self.dropout(swish(h)))
        shortcut = self.shortcut(x)
        return h.add_(shortcut) if not torch.is_grad_enabled() else h + shortcut


class Attention(nn.Module):
    """Self-attention over all positions, with 1x1 convolutions and a residual. `(B, C, H, W)` -> the same."""

    def __init__(self, width: int, groups: int = 32, heads: int = 1, norm: Norm = group_norm) -> None:
        super().__init__()
        self.heads = heads
        self.norm = norm(groups, width)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, *code: Tensor) -> Tensor:
        h = self.norm(x, *code)
        q, k, v = (
            rearrange(layer(h), "b (n c) h w -> b n (h w) c", n=self.heads) for layer in (self.q, self.k, self.v)
        )
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(rearrange(attended, "b n (h w) c -> b (n c) h w", h=x.shape[2]))


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
