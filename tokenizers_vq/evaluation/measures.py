"""Metrics as an evaluation accumulates them, each with its definition, and the clock beside them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tokenizers_vq.evaluation import metrics

AIMS = {"higher": "higher is better", "lower": "lower is better", "originals": "best where the originals' is"}
"""what each value of `Metric.better` means"""
SIGNS = {"higher": "↑", "lower": "↓", "originals": "≈"}
"""the same, for the heads of columns"""


class Metric(NamedTuple):
    """One number and what defines it."""

    value: float
    unit: str
    better: str
    """`higher`, `lower`, or `originals`: less than theirs is no better, such as the steps of blurred borders"""
    definition: dict[str, Any]
    """everything that must be equal for two such numbers to be compared"""

    def to_dict(self) -> dict[str, Any]:
        return {"value": self.value, "unit": self.unit, "better": self.better, **self.definition}


class Measure(NamedTuple):
    """A metric under way."""

    accumulate: Callable[[Tensor, Tensor], None]
    """takes images and reconstructions `(B, C, H, W)` in [-1, 1]"""
    compute: Callable[[], tuple[float, int]]
    """the value and the number of images"""
    unit: str
    better: str
    definition: dict[str, Any]

    def result(self, common: dict[str, Any]) -> Metric:
        """The metric, defined by `common` too. Raises `ValueError` where there are too few images."""
        value, count = self.compute()
        return Metric(value, self.unit, self.better, {**self.definition, **common, "images": count})


def mean_of(values: Callable[[Tensor, Tensor], Tensor], unit: str, better: str, definition: dict[str, Any]) -> Measure:
    """Mean over all images of `values(images, reconstructions) -> (B,)`."""
    mean = metrics.Mean()

    def accumulate(images: Tensor, reconstructions: Tensor) -> None:
        mean.update(values(images, reconstructions))

    return Measure(accumulate, mean.compute, unit, better, {**definition, "average": "per image, then mean"})


def pixel_measures(height: int, width: int, skipped: dict[str, str]) -> dict[str, Measure]:
    """PSNR, SSIM and MSE; SSIM is `skipped` for images smaller than its window."""
    on_unit: dict[str, Any] = {"range": [0, 1]}
    psnr = {**on_unit, "data_range": 1, "cap": f"{metrics.PSNR_CAP:g} dB"}
    measures = {"psnr": mean_of(metrics.psnr, "dB", "higher", psnr)}
    if min(height, width) >= metrics.SSIM_WINDOW:
        window = {"window": "gaussian", "size": metrics.SSIM_WINDOW, "sigma": 1.5, "border": "left out"}
        measures["ssim"] = mean_of(metrics.ssim, "", "higher", {**on_unit, "data_range": 1, **window})
    else:
        skipped["ssim"] = f"needs images of at least {metrics.SSIM_WINDOW} pixels a side, these are {height}x{width}"
    measures["mse"] = mean_of(metrics.mse, "", "lower", on_unit)
    return measures


def lpips_name(lpips: str | nn.Module) -> str:
    """`lpips_` and the net."""
    return f"lpips_{lpips if isinstance(lpips, str) else getattr(lpips, 'key', (type(lpips).__name__,))[0]}"


def lpips_network(lpips: str | nn.Module, trunk: Path | str | None, channels: int, device: torch.device) -> Any:
    """The network of a net's name, or the module itself, on `device`.

    Raises `ValueError` for an unknown name or channels that it cannot take, `FileNotFoundError` for lack of weights.
    """
    from tokenizers_vq.losses.perceptual import LpipsNetwork

    if isinstance(lpips, str) and lpips not in ("alex", "vgg", "squeeze"):
        raise ValueError(f"no LPIPS net '{lpips}': choose from alex, vgg, squeeze")
    _needs_colour(channels)
    network: Any = LpipsNetwork(lpips, trunk) if isinstance(lpips, str) else lpips  # type: ignore[arg-type]
    return network.to(device)


def lpips_measure(name: str, network: Callable[[Tensor, Tensor], Tensor]) -> Measure:
    """Mean LPIPS; `name` as `lpips_name` gives it."""
    from tokenizers_vq.networks.backbones import three_channels

    def distance(images: Tensor, reconstructions: Tensor) -> Tensor:
        pair = [three_channels(part.float().clamp(-1, 1), None, "LPIPS") for part in (images, reconstructions)]
        return network(*pair).flatten()

    net = name.removeprefix("lpips_")
    return mean_of(distance, "", "lower", {"net": net, "version": "0.1", "range": [-1, 1]})


def backbone_features(
    backbone: str, layer: str, channels: int, device: torch.device | str = "cpu"
) -> metrics.BackboneFeatures:
    """What the feature distance compares. Raises `ValueError` or `FileNotFoundError` where it is not available."""
    from tokenizers_vq.networks.backbones import Backbone

    _needs_colour(channels)
    return metrics.BackboneFeatures(Backbone(backbone), layer).to(device)


def few_images(count: int, features: int) -> str | None:
    """What to say of a Frechet distance of `features` over `count` images; None where there are enough."""
    if count > features:
        return None
    return (
        f"{count:,} images for {features:,} features. With fewer images than features it is biased upward: compare it "
        "between the rows here, with nothing else."
    )


def feature_distance(distance: metrics.FrechetDistance, features: metrics.BackboneFeatures, backbone: str) -> Measure:
    """A Frechet distance between `features`, with their definition."""
    definition = {
        "backbone": backbone,
        "layer": features.layer,
        "features": features.dim,
        "pooling": "mean over positions",
        "resize": f"{features.size}x{features.size} bicubic, antialiased",
        "reference": "the same images",
        "note": "Frechet distance of these features: no FID; compare equal numbers of images only",
    }
    return Measure(distance.update, distance.compute, "", "lower", definition)


class UnfitImagesError(ValueError):
    """A metric whose network cannot take the images; others can be measured."""


def _needs_colour(channels: int) -> None:
    if channels not in (1, 3):
        raise UnfitImagesError(f"its network takes 1 or 3 channels, these images have {channels}")


class Clock:
    """Images a second by verb. The first batch warms up and counts only where it is the only one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.spans: dict[str, list[tuple[int, float]]] = {"encode": [], "decode": []}

    def time(self, verb: str, count: int, run: Callable[[], Any]) -> Any:
        self._wait()
        start = time.perf_counter()
        result = run()
        self._wait()
        self.spans[verb].append((count, time.perf_counter() - start))
        return result

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def rates(self) -> dict[str, float | None]:
        rates: dict[str, float | None] = {}
        for verb, spans in self.spans.items():
            timed = spans[1:] or spans
            seconds = sum(span for _, span in timed)
            rates[f"{verb}_images_per_second"] = sum(count for count, _ in timed) / seconds if seconds else None
        return rates
