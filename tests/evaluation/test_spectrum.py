"""Radial power spectra: known values, and the order of distortions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tokenizers_vq.evaluation.spectrum import RadialSpectrum, radial_power


def spectrum_of(images: torch.Tensor):
    spectrum = RadialSpectrum(*images.shape[-2:])
    for part in images.split(3):
        spectrum.update(part)
    return spectrum.compute()


def natural(count: int = 8, size: int = 64) -> torch.Tensor:
    """Noise with power falling as 1 / f^2, as photographs have it."""
    rows, columns = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None]
    fall = 1 / (rows.square() + columns.square()).sqrt().clamp_min(1 / size)
    images = torch.fft.irfft2(torch.fft.rfft2(torch.randn(count, 3, size, size)) * fall)
    return (images / images.std() * 0.3).clamp(-1, 1)


@pytest.mark.parametrize("shape", [(64, 64), (32, 48), (33, 33)])
def test_white_noise_has_its_variance_everywhere(shape: tuple[int, int]) -> None:
    images = torch.randn(200, 1, *shape) * 0.2
    power = radial_power(images).mean(0)
    assert power.shape == (min(shape) // 2,)
    # on [0, 1] the variance is a quarter of 0.2^2; the lowest bin loses what goes with the mean
    assert torch.allclose(power[2:], torch.full_like(power[2:], 0.01), rtol=0.1)


def test_a_wave_stands_at_its_frequency() -> None:
    wave = torch.cos(2 * torch.pi * 10 / 64 * torch.arange(64.0)).expand(1, 1, 64, 64) * 0.5
    spectrum = spectrum_of(wave)
    assert spectrum.frequencies[spectrum.decibels.argmax()].item() == pytest.approx(10 / 64)


def test_the_more_blurred_is_the_farther() -> None:
    images = natural()
    original = spectrum_of(images)
    blurred = [F.avg_pool2d(images, n, stride=1, padding=n // 2, count_include_pad=False) for n in (3, 7)]
    grain = images + 0.1 * torch.randn_like(images)
    near, far, grainy = (spectrum_of(other) for other in (*blurred, grain))
    assert original.distance(original) == 0
    assert 0 < original.distance(near) < original.distance(far)
    assert near.decibels[-1] < original.decibels[-1] < grainy.decibels[-1]


def test_sizes_that_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="8 pixels"):
        radial_power(torch.zeros(1, 3, 6, 64))
    with pytest.raises(ValueError, match="different sizes"):
        spectrum_of(natural(2, 64)).distance(spectrum_of(natural(2, 32)))
