"""Metrics of reconstructions: per-image values averaged over the split, and Frechet distances of feature statistics.

Every metric keeps float64 sums that add up over processes, so nothing is padded, gathered or counted twice.
Images are `(B, C, H, W)` in [-1, 1], clamped here; the results hold the definition of each number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_vq import distributed
from tokenizers_vq.devices import channels_last
from tokenizers_vq.networks.backbones import three_channels

PSNR_CAP = 100.0
"""dB of an image reproduced exactly, whose PSNR would be infinite"""
SSIM_WINDOW = 11


def joined(value: Tensor) -> Tensor:
    """Sum of `value` over processes, on the CPU; NCCL sums on the GPU only."""
    if distributed.world_size() == 1:
        return value.cpu()
    device = torch.device("cuda") if "nccl" in dist.get_backend() else torch.device("cpu")
    return distributed.sum(value.detach().to(device)).cpu()


def unit(images: Tensor) -> Tensor:
    """`(B, C, H, W)` in [-1, 1] -> float32 in [0, 1], clamped."""
    return images.float().clamp(-1, 1).add(1).div(2)


def psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """`(B,)` dB on [0, 1] with data range 1; exact copies count as `PSNR_CAP`."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    # dim 0 kept: the mean over images of the PSNR, not the PSNR of the mean error
    value = peak_signal_noise_ratio(
        unit(reconstructions), unit(images), data_range=1.0, dim=(1, 2, 3), reduction="none"
    )
    return value.clamp_max(PSNR_CAP)


def mse(images: Tensor, reconstructions: Tensor) -> Tensor:
    """`(B,)` mean squared error on [0, 1]."""
    return (unit(images) - unit(reconstructions)).square().flatten(1).mean(1)


def ssim(images: Tensor, reconstructions: Tensor) -> Tensor:
    """`(B,)` structural similarity, Gaussian window 11, sigma 1.5, data range 1 (Wang et al. 2004).

    Averaged over the places where the whole window fits, as in the paper; torchmetrics' own mean takes in the border.
    Raises `ValueError` for images smaller than the window.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(images.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs images of at least {SSIM_WINDOW} pixels a side, got {tuple(images.shape[-2:])}")
    _, similarity = structural_similarity_index_measure(
        unit(reconstructions),
        unit(images),
        sigma=1.5,
        kernel_size=SSIM_WINDOW,
        reduction="none",
        data_range=1.0,
        return_full_image=True,
    )
    border = SSIM_WINDOW // 2
    return similarity[..., border:-border, border:-border].flatten(1).mean(1)


class Mean:
    """Mean of per-image values over all images of all processes."""

    def __init__(self) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64)

    def update(self, values: Tensor) -> None:
        """Adds `(B,)` values."""
        self.sums += torch.tensor([values.detach().double().cpu().sum().item(), float(values.numel())])

    def compute(self) -> tuple[float, int]:
        """The mean and the number of images (NaN for none)."""
        total, count = joined(self.sums).tolist()
        return (total / count if count else math.nan), int(count)


def frechet_distance(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """Squared 2-Wasserstein distance of two Gaussians, in float64 (Dowson and Landau 1982).

    With A = F F^T and B = G G^T the trace of (A B)^(1/2) is the nuclear norm of F^T G: symmetric decompositions only,
    so covariances of fewer samples than dimensions, which are singular, stay exact and real.
    """
    return _distance(mean_a, _factor(covariance_a), mean_b, _factor(covariance_b))


def _factor(covariance: Tensor) -> Tensor:
    """`(D, R)` of numerical rank R, whose product with its transpose is the covariance."""
    values, vectors = torch.linalg.eigh(covariance.double())
    kept = values > values.max() * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()


def _distance(mean_a: Tensor, factor_a: Tensor, mean_b: Tensor, factor_b: Tensor) -> float:
    overlap = torch.linalg.svdvals(factor_a.T @ factor_b).sum()
    traces = factor_a.square().sum() + factor_b.square().sum()
    distance = (mean_a.double() - mean_b.double()).square().sum() + traces - 2 * overlap
    return max(distance.item(), 0.0)


class FeatureStatistics:
    """Running mean and covariance of features, in float64."""

    def __init__(self, dim: int) -> None:
        self.count = torch.zeros((), dtype=torch.float64)
        self.sum = torch.zeros(dim, dtype=torch.float64)
        self.outer = torch.zeros(dim, dim, dtype=torch.float64)
        self._gaussian: tuple[Tensor, Tensor, int] | None = None

    def update(self, features: Tensor) -> None:
        """Adds features `(B, D)`."""
        features = features.detach().double().cpu()
        self.count += features.shape[0]
        self.sum += features.sum(0)
        self.outer += features.T @ features
        self._gaussian = None

    def compute(self) -> tuple[Tensor, Tensor, int]:
        """Mean `(D,)`, unbiased covariance `(D, D)` and number of images of all processes.

        Raises `ValueError` for fewer than two images.
        """
        count, total, outer = joined(self.count), joined(self.sum), joined(self.outer)
        if count < 2:
            raise ValueError("a Frechet distance needs at least two images")
        mean = total / count
        covariance = (outer - count * torch.outer(mean, mean)) / (count - 1)
        return mean, (covariance + covariance.T) / 2, int(count)

    def gaussian(self) -> tuple[Tensor, Tensor, int]:
        """As `compute`, with a factor of the covariance in its place, kept: many distances may start here."""
        if self._gaussian is None:
            mean, covariance, count = self.compute()
            self._gaussian = mean, _factor(covariance), count
        return self._gaussian


class FrechetDistance:
    """Frechet distance between the features of images and of their reconstructions.

    `extract` maps images `(B, C, H, W)` in [-1, 1] to features `(B, D)`. `originals`: statistics of the originals'
    features that the caller keeps up to date, shared by many distances.
    """

    def __init__(
        self, extract: Callable[[Tensor], Tensor], dim: int, originals: FeatureStatistics | None = None
    ) -> None:
        self.extract, self.shared = extract, originals is not None
        self.originals, self.reconstructions = originals or FeatureStatistics(dim), FeatureStatistics(dim)

    def update(self, images: Tensor, reconstructions: Tensor) -> None:
        with torch.no_grad():
            if not self.shared:
                self.originals.update(self.extract(images.float().clamp(-1, 1)))
            self.reconstructions.update(self.extract(reconstructions.float().clamp(-1, 1)))

    def compute(self) -> tuple[float, int]:
        """The distance and the number of images on each side."""
        mean_a, factor_a, count = self.originals.gaussian()
        mean_b, factor_b, _ = self.reconstructions.gaussian()
        return _distance(mean_a, factor_a, mean_b, factor_b), count


class InceptionDistance:
    """FID through torchmetrics and torch-fidelity's Inception (pool3, 2048), on images rounded to 8 bits.

    `weights`: a file of torch-fidelity's Inception weights; None takes its own cache or download.
    Raises `ValueError` where the extra or the weights are missing.
    """

    def __init__(self, weights: Path | str | None = None, device: torch.device | str = "cpu") -> None:
        from torchmetrics.image.fid import FrechetInceptionDistance

        path = None if weights is None else str(weights)
        try:
            self.metric = FrechetInceptionDistance(feature=2048, feature_extractor_weights_path=path).to(device)
        except ModuleNotFoundError:
            raise ValueError("FID needs torch-fidelity: pip install 'tokenizers-vq[fid]'") from None
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"FID needs torch-fidelity's Inception weights, which are not available ({reason}); give their file, "
                "or leave FID out: the feature distance with a named backbone is reported anyway"
            ) from None
        self.count = torch.zeros((), dtype=torch.float64)
        self.device = device

    def update(self, images: Tensor, reconstructions: Tensor) -> None:
        for batch, real in ((images, True), (reconstructions, False)):
            rounded = unit(batch).mul(255).round().to(torch.uint8)
            self.metric.update(three_channels(rounded, None, "FID").to(self.device), real=real)
        self.count += images.shape[0]

    def compute(self) -> tuple[float, int]:
        """The distance (torchmetrics joins processes) and the number of images on each side."""
        return float(self.metric.compute()), int(joined(self.count))


class BackboneFeatures(nn.Module):
    """Features of one layer of a backbone, averaged over positions: `(B, C, H, W)` in [-1, 1] -> `(B, D)`.

    `layer`: `head` (what the classifier reads; in EfficientNets after the last convolution and activation), or the
    name of a submodule, such as `blocks.4`. Images are resized to `size` x `size`, bicubic, antialiased.
    `network` has `layers(images, names) -> dict`, as `networks.backbones.Backbone`.
    Raises `ValueError` for a layer that the backbone does not have.
    """

    def __init__(self, network: Any, layer: str = "head", size: int = 224) -> None:
        super().__init__()
        self.network, self.layer, self.size = channels_last(network.eval()), layer, size
        with torch.no_grad():
            self.dim = self(torch.zeros(1, 3, size, size)).shape[1]

    def forward(self, images: Tensor) -> Tensor:
        images = three_channels(images.float(), None, "feature distance")
        resized = F.interpolate(images, (self.size, self.size), mode="bicubic", antialias=True)
        features = self.network.layers(resized, [self.layer])[self.layer]
        # tokens stand in the middle of (B, N, D), positions at the end of (B, D, h, w)
        return (
            features.mean(1) if features.ndim == 3 else features.flatten(2).mean(2) if features.ndim == 4 else features
        )
