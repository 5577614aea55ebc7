"""Evaluation of a tokenizer on a whole split: reconstruction metrics, use of the codes, spectrum, speed."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tokenizers_vq import distributed
from tokenizers_vq.devices import computing
from tokenizers_vq.evaluation import metrics
from tokenizers_vq.evaluation.measures import (
    Clock,
    Measure,
    Metric,
    UnfitImagesError,
    backbone_features,
    feature_distance,
    lpips_measure,
    lpips_name,
    lpips_network,
    pixel_measures,
)
from tokenizers_vq.evaluation.spectrum import RadialSpectrum, Spectrum
from tokenizers_vq.evaluation.usage import CodeUsage, Usage

Watch = Callable[[Tensor, Tensor, Any], None]
"""called with images, reconstructions `(B, C, H, W)` in [-1, 1] and codes of every batch"""


class Evaluation(NamedTuple):
    """Result of `evaluate`."""

    metrics: dict[str, Metric]
    usage: Usage
    spectra: tuple[Spectrum, Spectrum] | None
    """mean log spectra of the originals and of the reconstructions"""
    speed: dict[str, Any]
    """images a second of `encode` and `decode` in this process, and on what"""
    skipped: dict[str, str]
    """metrics that were left out, with the reason"""
    data: dict[str, Any]
    """what was evaluated: name, split, resize and crop, image size, channels, images"""
    tokenizer: dict[str, Any]
    """fingerprint, where it has one"""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; every number stands beside what defines it."""
        spectra = None
        if self.spectra is not None:
            originals, reconstructions = self.spectra
            spectra = {
                "cycles_per_pixel": originals.frequencies.tolist(),
                "originals_db": originals.decibels.tolist(),
                "reconstructions_db": reconstructions.decibels.tolist(),
            }
        return {
            "data": self.data,
            "tokenizer": self.tokenizer,
            "metrics": {name: metric.to_dict() for name, metric in self.metrics.items()},
            "usage": self.usage.to_dict(),
            "spectra": spectra,
            "speed": self.speed,
            "skipped": self.skipped,
        }

    def save(self, path: Path | str) -> None:
        """Write `to_dict()` as JSON, atomically."""
        from tokenizers_vq.folders import write_atomically

        write_atomically(Path(path), json.dumps(self.to_dict(), indent=2) + "\n")


def evaluate(
    tokenizer: Any,
    batches: Iterable[Mapping[str, Any]],
    *,
    data: Mapping[str, Any] | None = None,
    lpips: str | nn.Module | None = None,
    lpips_trunk: Path | str | None = None,
    backbone: str | None = "tf_efficientnet_lite0",
    layer: str = "head",
    judges: Sequence[tuple[str, str]] = (),
    originals: dict[str, metrics.FeatureStatistics] | None = None,
    fid: bool = False,
    fid_weights: Path | str | None = None,
    autocast: torch.dtype | None = None,
    watch: Watch | None = None,
) -> Evaluation:
    """Encode and decode every batch once, and measure.

    `tokenizer`: `encode`, `decode`, `code_layout` (a `Tokenizer`, or anything with these verbs); it is put into eval
    mode for the time. `batches`: dicts with `images` `(B, C, H, W)` in [-1, 1], all of one size; under several
    processes each brings its own share, without padding. `data`: name, split, resize, crop, as they shall stand in
    the result. `lpips`: `alex`, `vgg` or `squeeze` (`lpips_trunk`: file of its trunk), or a module of two image
    batches -> `(B,)`. `backbone` and `layer`: of the Frechet feature distance, None leaves it out.
    `judges`: further pairs of backbone and layer, each of them the metric `feature_distance/BACKBONE/LAYER`.
    `originals`: features of the originals by metric; what is not there is filled in, so that a second evaluation on
    the same images, with the same dict, spares half of the work.
    `fid`: the distance with Inception, from `fid_weights` or torch-fidelity's own.

    A metric whose weights or packages are missing is left out, its reason kept in `skipped`. Raises `ValueError` for
    unknown networks and layers, no images at all, images of several sizes, and for FID asked for without its weights.
    """
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None and distributed.world_size() == 1:
        raise ValueError(_EMPTY)
    device = getattr(tokenizer, "device", torch.device("cpu"))
    channels, height, width = _shape(tokenizer, first)
    skipped: dict[str, str] = {}
    tracked = pixel_measures(height, width, skipped)
    if lpips is not None:
        name = lpips_name(lpips)
        try:
            tracked[name] = lpips_measure(name, lpips_network(lpips, lpips_trunk, channels, device))
        except (UnfitImagesError, FileNotFoundError) as error:
            skipped[name] = str(error)
    distances: dict[str, metrics.FrechetDistance] = {}
    pairs = {} if backbone is None else {"feature_distance": (backbone, layer)}
    for name, pair in (pairs | {"/".join(("feature_distance", *judge)): judge for judge in judges}).items():
        try:
            features = backbone_features(*pair, channels, device)
            frechet = metrics.FrechetDistance(features, features.dim, (originals or {}).get(name))
            distances[name] = frechet
            tracked[name] = feature_distance(frechet, features, pair[0])
        except (UnfitImagesError, FileNotFoundError) as error:
            skipped[name] = str(error)
    if fid:
        inception = metrics.InceptionDistance(fid_weights, device)
        tracked["fid"] = Measure(
            inception.update, inception.compute, "", "lower", {**_INCEPTION, "reference": "the same images"}
        )
    spectra = (RadialSpectrum(height, width), RadialSpectrum(height, width)) if min(height, width) >= 8 else None
    usage = CodeUsage(tokenizer.code_layout(height, width), pixels=height * width)
    clock = Clock(device)
    with eval_mode(tokenizer):
        for batch in itertools.chain([] if first is None else [first], iterator):
            images = batch["images"].to(device)
            if tuple(images.shape[1:]) != (channels, height, width):
                raise ValueError(
                    f"images of {channels}x{height}x{width} and of {'x'.join(map(str, images.shape[1:]))} in one "
                    "evaluation: resize and crop them to one size"
                )
            with computing(device, autocast):
                codes = clock.time("encode", len(images), functools.partial(tokenizer.encode, images))
                decoded = clock.time("decode", len(images), functools.partial(tokenizer.decode, codes))
            reconstructions = decoded.float().clamp(-1, 1)
            usage.update(codes)
            for metric in tracked.values():
                metric.accumulate(images, reconstructions)
            if spectra is not None:
                spectra[0].update(images)
                spectra[1].update(reconstructions)
            if watch is not None:
                watch(images, reconstructions, codes)

    counted = usage.compute()
    if not counted.images:
        raise ValueError(_EMPTY)
    if originals is not None:
        originals |= {name: distance.originals for name, distance in distances.items()}
    described = {**(data or {}), "image_size": [height, width], "channels": channels, "images": counted.images}
    common = {"clamp": [-1, 1], "image_size": [height, width]}
    results = {}
    for name, metric in tracked.items():
        try:
            results[name] = metric.result(common)
        except ValueError as error:
            skipped[name] = str(error)
    means = None if spectra is None else (spectra[0].compute(), spectra[1].compute())
    if means is not None:
        definition = {
            "window": "hann",
            "grey": "mean of channels",
            "average": "of the log power, over images",
            **common,
        }
        results["spectrum_distance"] = Metric(
            means[0].distance(means[1]), "dB", "lower", {**definition, "images": counted.images}
        )
    precision = str(autocast or getattr(tokenizer, "dtype", torch.float32)).removeprefix("torch.")
    speed = {**clock.rates(), "device": str(device), "precision": precision, "threads": torch.get_num_threads()}
    return Evaluation(results, counted, means, speed, skipped, described, identity(tokenizer))


_EMPTY = "no images to evaluate: the data is empty, or every file in it is broken"
_INCEPTION = {
    "network": "Inception v3 of torch-fidelity (TF weights of 2015), pool3, 2048",
    "resize": "299x299 bilinear as TF 1",
    "rounding": "8 bits",
}


def _shape(tokenizer: Any, first: Mapping[str, Any] | None) -> tuple[int, int, int]:
    if first is not None:
        channels, height, width = first["images"].shape[1:]
        return channels, height, width
    size = tokenizer.config.image_size  # a process without a share still takes part in every sum
    height, width = (size, size) if isinstance(size, int) else size
    return tokenizer.config.channels, height, width


@contextmanager
def eval_mode(tokenizer: Any) -> Iterator[None]:
    """The tokenizer in eval mode, without autograd; back to what it was afterwards."""
    training = getattr(tokenizer, "training", False)
    if training:
        tokenizer.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if training:
            tokenizer.train()


def identity(tokenizer: Any) -> dict[str, Any]:
    """The tokenizer's fingerprint, None where it has none."""
    try:
        return {"fingerprint": tokenizer.fingerprint}
    except (AttributeError, ValueError):  # modules that no config describes have none
        return {"fingerprint": None}
