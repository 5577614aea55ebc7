"""Radial power spectrum of images: blur lacks power at high frequencies, grain and checkerboards have too much."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenizers_vq.evaluation.metrics import joined, unit

FLOOR = 1e-6
"""power below that of rounding to 8 bits (1 / 255^2 / 12), where differences mean nothing"""


def radial_power(images: Tensor) -> Tensor:
    """Power spectral density of grey images over spatial frequency: `(B, C, H, W)` in [-1, 1] -> float64 `(B, R)`.

    Grey is the mean over channels on [0, 1], its mean removed, under a Hann window (image edges do not wrap, and
    would leak into every frequency). Bin r of R = min(H, W) // 2 holds the frequencies that round to (r + 1) / 2R
    cycles a pixel, up to 1/2. White noise of variance v has power v in every bin.
    Raises `ValueError` for images under 8 pixels a side.
    """
    height, width = images.shape[-2:]
    bins = min(height, width) // 2
    if bins < 4:
        raise ValueError(f"a power spectrum needs images of at least 8 pixels a side, got {height}x{width}")
    grey = unit(images).double().mean(1)
    grey = grey - grey.mean((1, 2), keepdim=True)
    options: dict[str, Any] = {"periodic": False, "dtype": torch.float64, "device": grey.device}
    window = torch.outer(torch.hann_window(height, **options), torch.hann_window(width, **options))
    power = torch.fft.fft2(grey * window).abs().square() / window.square().sum()
    rows, columns = (torch.fft.fftfreq(n, dtype=torch.float64, device=grey.device) for n in (height, width))
    radius = torch.sqrt(rows[:, None] ** 2 + columns[None] ** 2)
    index = (radius * 2 * bins).round().long().flatten() - 1
    inside = (index >= 0) & (index < bins)
    index = index[inside]
    count = torch.bincount(index, minlength=bins).clamp_min(1)
    total = torch.zeros(len(images), bins, dtype=torch.float64, device=grey.device)
    return total.index_add_(1, index, power.flatten(1)[:, inside]) / count


class Spectrum(NamedTuple):
    """Mean log spectrum of a set of images."""

    frequencies: Tensor
    """float64 (R,), cycles a pixel"""
    decibels: Tensor
    """float64 (R,), mean over images of 10 log10(power + FLOOR)"""

    def distance(self, other: Spectrum) -> float:
        """Root mean square difference in dB over the bins. Raises `ValueError` for spectra of other sizes."""
        if self.decibels.shape != other.decibels.shape:
            raise ValueError("spectra of images of different sizes cannot be compared: resize one set")
        return (self.decibels - other.decibels).square().mean().sqrt().item()


class RadialSpectrum:
    """Running mean log spectrum over the images of all processes; all images of one size, `(H, W)`."""

    def __init__(self, height: int, width: int) -> None:
        bins = min(height, width) // 2
        self.frequencies = torch.arange(1, bins + 1, dtype=torch.float64) / (2 * bins)
        self.sum = torch.zeros(bins, dtype=torch.float64)
        self.count = torch.zeros((), dtype=torch.float64)

    def update(self, images: Tensor) -> None:
        """Adds images `(B, C, H, W)` in [-1, 1]."""
        self.sum += (10 * torch.log10(radial_power(images.cpu()) + FLOOR)).sum(0)
        self.count += images.shape[0]

    def compute(self) -> Spectrum:
        count = joined(self.count)
        return Spectrum(self.frequencies, joined(self.sum) / count if count else torch.full_like(self.sum, math.nan))
