"""Layers that several discriminators share: blurred halving, residual blocks, norms."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from tokenizers_vq import distributed
from tokenizers_vq.batch import Batch
from tokenizers_vq.config import Config
from tokenizers_vq.networks.normalisation import BatchNorm2d

Width = Annotated[int, Field(ge=1, le=4096)]
NormName = Literal["batch", "group", "none", "virtual", "spectral"]
Downsampling = Literal["stride", "blur"]
M = TypeVar("M", bound=nn.Module)


class ConvolutionFields(Config):
    """Norm and halving, which the discriminators of 4x4 convolutions share."""

    norm: NormName = "batch"
    """batch, group, virtual (arXiv 1606.03498: half of a kept batch, half of the current one), spectral norm of every
    convolution (arXiv 1802.05957), or none"""
    downsampling: Downsampling = "stride"
    """stride of the convolutions, or blur: they keep the size, and a blur before every second pixel halves it"""
    reference_size: Annotated[int, Field(ge=2)] = 16
    """images of the reference batch that virtual batch norm keeps"""


def bounded(module: M, spectral: bool = True) -> M:
    """`module` with spectral norm (Miyato et al., arXiv 1802.05957) where `spectral` says so."""
    if spectral:
        spectral_norm(module)
    return module


def halvings(height: int, width: int, smallest: int = 4) -> int:
    """How often the shorter side can be halved before it is less than `smallest`, which is a power of two."""
    return max(min(height, width) // smallest, 1).bit_length() - 1


class Blur(nn.Module):
    """`(B, C, H, W)` -> every second pixel of it blurred by [1, 3, 3, 1] (Zhang, arXiv 1904.11486).

    `padding`: pixels before and after each axis; `edge` repeats the outermost ones instead of zeros.
    """

    taps: Tensor

    def __init__(self, padding: tuple[int, int] = (1, 1), edge: bool = False) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("taps", taps.outer(taps)[None, None], persistent=False)
        self.padding, self.mode = (*padding, *padding), "replicate" if edge else "constant"

    def forward(self, features: Tensor) -> Tensor:
        channels = features.shape[1]
        padded = F.pad(features, self.padding, mode=self.mode)
        return F.conv2d(padded, self.taps.expand(channels, 1, 4, 4), stride=2, groups=channels)


class DownBlock(nn.Module):
    """`(B, C, H, W)` -> `(B, D, H // 2, W // 2)`: two 3x3 convolutions behind activations, beside a linear shortcut.

    SAGAN's and BigGAN's block; `first` leaves out the activation before the first convolution, as on pixels.
    `slope`: of the activations below zero.
    """

    def __init__(
        self, channels: int, width: int, *, slope: float = 0.0, spectral: bool = True, first: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = bounded(nn.Conv2d(channels, width, 3, padding=1), spectral)
        self.conv2 = bounded(nn.Conv2d(width, width, 3, padding=1), spectral)
        # The second convolution's bias serves both branches.
        self.skip = bounded(nn.Conv2d(channels, width, 1, bias=False), spectral)
        self.slope, self.first = slope, first

    def forward(self, features: Tensor) -> Tensor:
        hidden = features if self.first else F.leaky_relu(features, self.slope)
        hidden = self.conv2(F.leaky_relu(self.conv1(hidden), self.slope))
        return F.avg_pool2d(hidden, 2) + self.skip(F.avg_pool2d(features, 2))


class VirtualNorm(nn.Module):
    """Virtual batch norm: statistics of a reference batch and of the current one, half each (arXiv 1606.03498).

    `(R + B, C, H, W)` -> the same shape; the first `rows` = R are the reference, normalised by their own statistics.
    With several processes the current batch is that of all.
    """

    def __init__(self, width: int, rows: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.rows, self.eps = rows, eps

    def forward(self, features: Tensor) -> Tensor:
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        reference, current = wide[: self.rows], wide[self.rows :]
        own, own_variance = reference.mean((0, 2, 3)), reference.var((0, 2, 3), correction=0)
        mean = distributed.mean(current.mean((0, 2, 3)))
        variance = distributed.mean((current - mean.view(1, -1, 1, 1)).square().mean((0, 2, 3)))
        # Of a mixture of the two, half each: means apart add to its variance.
        mixed = ((own + mean) / 2, (own_variance + variance) / 2 + ((own - mean) / 2).square())
        normed = [self._normed(reference, own, own_variance), self._normed(current, *mixed)]
        return torch.cat(normed).to(features.dtype)

    def _normed(self, features: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        scale = self.weight.to(features.dtype) * (variance + self.eps).rsqrt()
        shift = self.bias.to(features.dtype) - mean * scale
        return features * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


class Reference(nn.Module):
    """The reference batch of virtual batch norm: the first images that the discriminator sees in train mode.

    Those of all processes, repeated where they are fewer than `rows`. Until then a batch is its own reference.
    """

    images: Tensor
    kept: Tensor

    def __init__(self, rows: int, channels: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.rows = rows
        self.register_buffer("images", torch.zeros(rows, channels, *image_size))
        self.register_buffer("kept", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        """`(B, C, H, W)` -> `(rows + B, C, H, W)`, the reference first."""
        with torch.no_grad():
            reference = self.images
            if distributed.world_size() == 1 or not self.kept:
                every = of_all(images.detach())
                fresh = every[torch.arange(self.rows, device=images.device) % len(every)]
                reference = torch.where(self.kept > 0, self.images, fresh)
            if self.training:
                self.images.copy_(reference)
                self.kept.fill_(1)
        return torch.cat([reference.to(images.dtype), images])


def features_of(blocks: Iterable[nn.Module], images: Tensor, reference: Reference | None) -> list[Tensor]:
    """What each block makes of images `(B, C, H, W)`, one after the other, without the rows of the reference batch."""
    images = images if reference is None else reference(images)
    features = []
    for block in blocks:
        images = block(images)
        features.append(images if reference is None else images[reference.rows :])
    return features


def of_all(rows: Tensor) -> Tensor:
    """The rows of all processes, which hold equally many, one of each in turn; gradients flow to every process."""
    processes = distributed.world_size()
    every = rows.new_zeros(len(rows) * processes, *rows.shape[1:])
    every[distributed.rank() :: processes] = rows
    return distributed.sum(every)


def norms(name: NormName, width: int, rows: int) -> list[nn.Module]:
    """The norm behind a convolution of `width` channels; empty where there is none. `rows`: of the reference."""
    if name == "batch":
        norm = BatchNorm2d(width)
        nn.init.normal_(norm.weight, 1.0, 0.02)
        return [norm]
    if name == "group":
        # torch's own: the one that trains faster on a CPU has no second derivative.
        return [nn.GroupNorm(_groups(width), width)]
    return [VirtualNorm(width, rows)] if name == "virtual" else []


def _groups(width: int) -> int:
    """At most 32, of four channels or more where there are as many."""
    return next(n for n in range(min(max(width // 4, 1), 32), 0, -1) if width % n == 0)


def has_norm(name: NormName) -> bool:
    """Whether a layer follows the convolution that makes its bias useless."""
    return name in ("batch", "group", "virtual")


def check_reference(kind: str, norm: NormName, batch: Batch) -> None:
    """Raises `ValueError` for a batch of one under virtual batch norm."""
    if norm == "virtual" and len(batch.images) < 2:
        raise ValueError(
            f"adversary.discriminator.norm: {kind} with virtual batch norm needs two images or more a process and "
            "micro-batch, got 1: raise `batch_size`, lower `accumulate`, or take norm=group"
        )
