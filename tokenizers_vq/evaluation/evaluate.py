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

from tokenizers_vq import distributed, notebooks
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
from tokenizers_vq.evaluation.patch_grid import PatchGrid, patch_stride
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

    def _repr_html_(self) -> str:
        """In a notebook: the table that `tvq evaluate` prints, and what was left out."""
        from tokenizers_vq.evaluation.tables import label, rows

        name = self.data.get("name")
        images = f"{self.usage.images:,} images" + (f" of {name}" if name else "")
        left = [(f"left out {label(metric)}", "", why) for metric, why in self.skipped.items()]
        return notebooks.table([*rows(self), *left], f"Evaluation, {images}", ("metric", "value", "what it is"))

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
    run = _Run(tokenizer, _shape(tokenizer, first), autocast)
    if lpips is not None:
        run.add_lpips(lpips, lpips_trunk)
    pairs = {} if backbone is None else {"feature_distance": (backbone, layer)}
    for name, pair in (pairs | {"/".join(("feature_distance", *judge)): judge for judge in judges}).items():
        run.add_distance(name, pair, (originals or {}).get(name))
    if fid:
        run.add_fid(fid_weights)
    with eval_mode(tokenizer):
        for batch in itertools.chain([] if first is None else [first], iterator):
            seen = run.update(batch["images"])
            if watch is not None:
                watch(*seen)
    result = run.compute(data or {})
    if originals is not None:
        originals |= {name: distance.originals for name, distance in run.distances.items()}
    return result


class _Run:
    """An evaluation under way: what is measured so far, and what was left out."""

    def __init__(self, tokenizer: Any, shape: tuple[int, int, int], autocast: torch.dtype | None) -> None:
        self.tokenizer, self.shape, self.autocast = tokenizer, shape, autocast
        self.device = getattr(tokenizer, "device", torch.device("cpu"))
        height, width = shape[1:]
        self.skipped: dict[str, str] = {}
        self.tracked = pixel_measures(height, width, self.skipped)
        self.distances: dict[str, metrics.FrechetDistance] = {}
        spectra = min(height, width) >= 8
        self.spectra = (RadialSpectrum(height, width), RadialSpectrum(height, width)) if spectra else None
        layout = tokenizer.code_layout(height, width)
        self.usage = CodeUsage(layout, pixels=height * width)
        stride = patch_stride(layout, height, width)
        self.grids = None if stride is None else (PatchGrid(stride), PatchGrid(stride))
        self.clock = Clock(self.device)

    def add_lpips(self, lpips: str | nn.Module, trunk: Path | str | None) -> None:
        name = lpips_name(lpips)
        try:
            self.tracked[name] = lpips_measure(name, lpips_network(lpips, trunk, self.shape[0], self.device))
        except (UnfitImagesError, FileNotFoundError) as error:
            self.skipped[name] = str(error)

    def add_distance(self, name: str, pair: tuple[str, str], originals: metrics.FeatureStatistics | None) -> None:
        try:
            features = backbone_features(*pair, self.shape[0], self.device)
        except (UnfitImagesError, FileNotFoundError) as error:
            self.skipped[name] = str(error)
            return
        self.distances[name] = metrics.FrechetDistance(features, features.dim, originals)
        self.tracked[name] = feature_distance(self.distances[name], features, pair[0])

    def add_fid(self, weights: Path | str | None) -> None:
        inception = metrics.InceptionDistance(weights, self.device)
        definition = {**_INCEPTION, "reference": "the same images"}
        self.tracked["fid"] = Measure(inception.update, inception.compute, "", "lower", definition)

    def update(self, given: Tensor) -> tuple[Tensor, Tensor, Any]:
        """Measures one batch; gives images, reconstructions and codes."""
        images = given.to(self.device)
        if tuple(images.shape[1:]) != self.shape:
            raise ValueError(
                f"images of {'x'.join(map(str, self.shape))} and of {'x'.join(map(str, images.shape[1:]))} in one "
                "evaluation: resize and crop them to one size"
            )
        count, verbs = len(images), self.tokenizer
        with computing(self.device, self.autocast):
            codes = self.clock.time("encode", count, functools.partial(verbs.encode, images))
            decoded = self.clock.time("decode", count, functools.partial(verbs.decode, codes))
        reconstructions = decoded.float().clamp(-1, 1)
        self.usage.update(codes)
        for metric in self.tracked.values():
            metric.accumulate(images, reconstructions)
        if self.spectra is not None:
            self.spectra[0].update(images)
            self.spectra[1].update(reconstructions)
        if self.grids is not None:
            self.grids[0].update(images)
            self.grids[1].update(reconstructions)
        return images, reconstructions, codes

    def compute(self, data: Mapping[str, Any]) -> Evaluation:
        """The result. Raises `ValueError` where no process saw an image."""
        counted = self.usage.compute()
        if not counted.images:
            raise ValueError(_EMPTY)
        channels, height, width = self.shape
        common = {"clamp": [-1, 1], "image_size": [height, width]}
        results = {}
        for name, metric in self.tracked.items():
            try:
                results[name] = metric.result(common)
            except ValueError as error:
                self.skipped[name] = str(error)
        means = None if self.spectra is None else (self.spectra[0].compute(), self.spectra[1].compute())
        if means is not None:
            results["spectrum_distance"] = Metric(
                means[0].distance(means[1]), "dB", "lower", {**_SPECTRUM, **common, "images": counted.images}
            )
        self._add_patch_grid(results, common)
        precision = str(self.autocast or getattr(self.tokenizer, "dtype", torch.float32)).removeprefix("torch.")
        threads = torch.get_num_threads()
        speed = {**self.clock.rates(), "device": str(self.device), "precision": precision, "threads": threads}
        described = {**data, "image_size": [height, width], "channels": channels, "images": counted.images}
        return Evaluation(results, counted, means, speed, self.skipped, described, identity(self.tokenizer))

    def _add_patch_grid(self, results: dict[str, Metric], common: dict[str, Any]) -> None:
        """The figure beside the originals', or the reason why there is none."""
        if self.grids is None:
            self.skipped["patch_grid"] = "the codes do not stand for patches of several pixels side by side"
            return
        try:
            (original, count), (value, _) = (grid.compute() for grid in self.grids)
        except ValueError as error:
            self.skipped["patch_grid"] = str(error)
            return
        patch = {"patch": list(self.grids[0].stride), "originals": round(original, 4)}
        results["patch_grid"] = Metric(value, "", "originals", {**patch, **_PATCH_GRID, **common, "images": count})


_PATCH_GRID = {"range": [0, 1], "average": "of the absolute steps, over images, then their ratio"}
_SPECTRUM = {"window": "hann", "grey": "mean of channels", "average": "of the log power, over images"}
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
