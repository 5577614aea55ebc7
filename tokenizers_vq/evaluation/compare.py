"""Tokenizers and image codecs side by side on the same images: bits, distortion, use of the codes, speed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tokenizers_vq.evaluation import metrics
from tokenizers_vq.evaluation.codecs import Codec, TokenizerCodec, png, versions
from tokenizers_vq.evaluation.evaluate import eval_mode, identity
from tokenizers_vq.evaluation.measures import (
    Clock,
    Measure,
    Metric,
    UnfitImagesError,
    backbone_features,
    feature_distance,
    few_images,
    lpips_measure,
    lpips_name,
    lpips_network,
    pixel_measures,
)
from tokenizers_vq.evaluation.usage import CodeUsage, Usage

HEADERS_MATTER = 256
"""pixels a side below which the headers of image files outweigh what they hold"""


class Shown(NamedTuple):
    """One picture of the page."""

    media_type: str
    data: bytes
    """the file"""
    bits_per_pixel: float | None
    """of this image; None for the original"""
    psnr: float | None


class Example(NamedTuple):
    """An image that is shown."""

    key: str
    original: Shown
    rows: list[Shown]
    """one for each row of the comparison"""


class Row(NamedTuple):
    """A tokenizer, or a codec at one quality."""

    name: str
    family: str
    bits_per_pixel: float
    entropy_bits_per_pixel: float | None
    """of tokenizers: at the unigram entropy of the codes of these images"""
    metrics: dict[str, Metric]
    usage: Usage | None
    speed: dict[str, Any]
    definition: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "family": self.family,
            "bits_per_pixel": self.bits_per_pixel,
            "bits_per_pixel_unigram_entropy": self.entropy_bits_per_pixel,
            "metrics": {name: metric.to_dict() for name, metric in self.metrics.items()},
            "usage": None if self.usage is None else self.usage.to_dict(),
            "speed": self.speed,
            "definition": self.definition,
        }


class Comparison(NamedTuple):
    """Result of `compare`."""

    rows: list[Row]
    data: dict[str, Any]
    skipped: dict[str, str]
    """metrics that no row has, with the reason"""
    left_out: dict[str, str]
    """codecs that are no row, with the reason"""
    notes: list[str]
    """what must be known before the numbers are compared"""
    versions: dict[str, str]
    examples: list[Example]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form without the pictures; every number stands beside what defines it."""
        return {
            "data": self.data,
            "rows": [row.to_dict() for row in self.rows],
            "skipped": self.skipped,
            "left_out": self.left_out,
            "notes": self.notes,
            "versions": self.versions,
            "definitions": _DEFINITIONS,
            "examples": [example.key for example in self.examples],
        }


_DEFINITIONS = {
    "bits_per_pixel": "mean over images; tokenizers: log2(number of codes) a code, image codecs: the whole file",
    "bits_per_pixel_unigram_entropy": "tokenizers: what an ideal order-0 entropy coder would need that knows the "
    "histogram of the codes of these very images; the histogram itself is not counted, which flatters few images",
    "speed": "images a second in batches, files in memory, without the first batch where there are several; image "
    "codecs take one image after the other",
}


class _Under(NamedTuple):
    """A row under way."""

    codec: Codec
    measures: dict[str, Measure]
    clock: Clock
    usage: CodeUsage | None
    bits: metrics.Mean


class _Lpips:
    """An LPIPS network that sees the originals of a batch once, however many rows there are."""

    def __init__(self, network: Any) -> None:
        self.network = network
        self.originals: Any = None

    def __call__(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        if not hasattr(self.network, "features"):
            return self.network(images, reconstructions)
        if self.originals is None:
            self.originals = self.network.features(images)
        return self.network.distance(self.originals, self.network.features(reconstructions)).sum(dim=1)


def _shown(images: Tensor, keys: Sequence[str], places: Sequence[int]) -> dict[int, Example]:
    """Images of a batch that go onto the page, by their places in it."""
    return {place: Example(keys[place], Shown("image/png", png(images[place]), None, None), []) for place in places}


def compare(
    codecs: Sequence[Codec],
    batches: Iterable[Mapping[str, Any]],
    *,
    data: Mapping[str, Any] | None = None,
    count: int | None = None,
    lpips: str | nn.Module | None = None,
    lpips_trunk: Path | str | None = None,
    backbone: str | None = "tf_efficientnet_lite0",
    layer: str = "head",
    left_out: Mapping[str, str] | None = None,
    examples: int = 8,
) -> Comparison:
    """Every codec on every batch, in one pass over the data; one process.

    `batches`: dicts with `images` `(B, C, H, W)` in [-1, 1], all of one size, and `keys`. `count`: how many images
    there are, where that is known: the `examples` are spread evenly over them, else they are the first. `left_out`:
    codecs that could not be had, with the reason, for the record. Metrics as `evaluate` takes them; one whose weights
    are missing is left out of all rows, its reason kept in `skipped`.

    Raises `ValueError`, before anything is computed, for no codec, two of one name, no images at all, or a tokenizer
    that cannot take their size or channels.
    """
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise ValueError("no images to compare on: the data is empty, or every file in it is broken")
    shape = tuple(first["images"].shape[1:])
    _check(codecs, shape)
    networks = _Networks(codecs, shape)
    networks.add_lpips(lpips, lpips_trunk)
    networks.add_backbone(backbone, layer)
    rows = [networks.start(codec, *shape[1:]) for codec in codecs]
    places = set(range(examples)) if count is None else set(_spread(count, examples))
    found: list[Example] = []
    seen, jpegs = 0, 0
    with torch.no_grad():
        for batch in itertools.chain([first], iterator):
            images, keys = batch["images"], batch.get("keys") or [""] * len(batch["images"])
            if tuple(images.shape[1:]) != shape:
                raise ValueError(
                    f"images of {shape} and of {tuple(images.shape[1:])} in one comparison: cut them to one size"
                )
            on_device = networks.originals_of(images)
            shown = _shown(images, keys, [index for index in range(len(images)) if seen + index in places])
            for row in rows:
                _add(row, images, on_device, shown)
            found += shown.values()
            seen += len(images)
            jpegs += sum(key.lower().endswith((".jpg", ".jpeg")) for key in keys)
    channels, height, width = shape
    common, skipped = {"clamp": [-1, 1], "image_size": [height, width]}, networks.skipped
    described = {**(data or {}), "image_size": [height, width], "channels": channels, "images": seen}
    finished = [_finish(row, height * width, common, skipped) for row in rows]
    notes = _other_sizes(codecs, (height, width))
    notes += _notes(min(height, width), seen, networks.features, jpegs, finished)
    return Comparison(finished, described, skipped, dict(left_out or {}), notes, versions(), found)


_NO_LPIPS = "no network was chosen or found: give --lpips squeeze, alex or vgg, and --lpips-trunk FILE"


class _Networks:
    """What judges all rows: each network sees the originals of a batch once."""

    def __init__(self, codecs: Sequence[Codec], shape: tuple[int, ...]) -> None:
        devices = (codec.device for codec in codecs if isinstance(codec, TokenizerCodec))
        self.device, self.channels = next(devices, torch.device("cpu")), shape[0]
        self.lpips: tuple[str, _Lpips] | None = None
        self.features: metrics.BackboneFeatures | None = None
        self.originals: metrics.FeatureStatistics | None = None
        self.backbone = ""
        self.skipped: dict[str, str] = {}
        pixel_measures(shape[1], shape[2], self.skipped)  # says what all rows lack

    def add_lpips(self, lpips: str | nn.Module | None, trunk: Path | str | None) -> None:
        if lpips is None:
            self.skipped["lpips"] = _NO_LPIPS
            return
        try:
            self.lpips = lpips_name(lpips), _Lpips(lpips_network(lpips, trunk, self.channels, self.device))
        except (UnfitImagesError, FileNotFoundError) as error:
            self.skipped[lpips_name(lpips)] = str(error)

    def add_backbone(self, backbone: str | None, layer: str) -> None:
        if backbone is None:
            self.skipped["feature_distance"] = "no backbone was chosen"
            return
        self.backbone = backbone
        try:
            self.features = backbone_features(backbone, layer, self.channels, self.device)
            self.originals = metrics.FeatureStatistics(self.features.dim)
        except (UnfitImagesError, FileNotFoundError) as error:
            self.skipped["feature_distance"] = str(error)

    def originals_of(self, images: Tensor) -> Tensor:
        """`images` on the device, seen by the networks as this batch's originals."""
        on_device = images.to(self.device)
        if self.lpips is not None:
            self.lpips[1].originals = None
        if self.features is not None and self.originals is not None:
            self.originals.update(self.features(on_device.float().clamp(-1, 1)))
        return on_device

    def start(self, codec: Codec, height: int, width: int) -> _Under:
        """A row of the table, nothing measured yet."""
        measures = pixel_measures(height, width, {})
        if self.lpips is not None:
            measures[self.lpips[0]] = lpips_measure(*self.lpips)
        if self.features is not None:
            frechet = metrics.FrechetDistance(self.features, self.features.dim, self.originals)
            measures["feature_distance"] = feature_distance(frechet, self.features, self.backbone)
        usage = None
        if isinstance(codec, TokenizerCodec):
            usage = CodeUsage(codec.layout(height, width), pixels=height * width, positions=False)
        return _Under(codec, measures, Clock(codec.device), usage, metrics.Mean())


def _other_sizes(codecs: Sequence[Codec], size: tuple[int, int]) -> list[str]:
    """A note for every size that tokenizers were made for, other than that of the images."""
    made: dict[tuple[int, int], list[str]] = {}
    for codec in codecs:
        config = getattr(codec.tokenizer, "config", None) if isinstance(codec, TokenizerCodec) else None
        own = getattr(config, "image_size", size)
        own = own if isinstance(own, tuple) else (own, own)
        if own != size:
            made.setdefault(own, []).append(codec.name)
    return [
        f"{', '.join(names)}: made for images of {own[0]}x{own[1]}, compared here at {size[0]}x{size[1]}: quality "
        "can be lower than at the size of training."
        for own, names in made.items()
    ]


def _check(codecs: Sequence[Codec], shape: tuple[int, ...]) -> None:
    channels, height, width = shape
    if not codecs:
        raise ValueError("nothing to compare: name a tokenizer or a codec")
    names = [codec.name for codec in codecs]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two rows are called '{double}': give them different names")
    for codec in codecs:
        if isinstance(codec, TokenizerCodec):
            codec.layout(height, width)
            if codec.channels != channels:
                raise ValueError(f"{codec.name} takes images of {codec.channels} channels, these have {channels}")


def _spread(count: int, wanted: int) -> list[int]:
    """Places of `wanted` of `count` images, evenly spread, each in the middle of its share."""
    wanted = min(count, wanted)
    return [(2 * place + 1) * count // (2 * wanted) for place in range(wanted)]


def _add(row: _Under, images: Tensor, on_device: Tensor, shown: Mapping[int, Example]) -> None:
    codec = row.codec
    source = on_device if codec.device == on_device.device else images
    with eval_mode(codec.tokenizer if isinstance(codec, TokenizerCodec) else None):
        coded = row.clock.time("encode", len(images), partial(codec.encode, source))
        decoded = row.clock.time("decode", len(images), partial(codec.decode, coded))
    bits = codec.bits(coded)
    row.bits.update(bits)
    if row.usage is not None:
        row.usage.update(coded[0])
    moved = decoded.to(on_device.device)
    for measure in row.measures.values():
        measure.accumulate(on_device, moved)
    for index, example in shown.items():
        psnr = metrics.psnr(on_device[index : index + 1], moved[index : index + 1]).item()
        media_type, data = codec.picture(coded, decoded, index)
        example.rows.append(Shown(media_type, data, bits[index].item() / images[0, 0].numel(), psnr))


def _finish(row: _Under, pixels: int, common: dict[str, Any], skipped: dict[str, str]) -> Row:
    codec = row.codec
    found = {}
    for name, measure in row.measures.items():
        try:
            found[name] = measure.result(common)
        except ValueError as error:
            skipped[name] = str(error)
    usage = None if row.usage is None else row.usage.compute()
    speed = {
        **row.clock.rates(),
        "device": str(codec.device),
        "precision": codec.precision,
        "threads": codec.threads,
    }
    return Row(
        codec.name,
        codec.family,
        row.bits.compute()[0] / pixels,
        None if usage is None else usage.entropy_bits_per_pixel,
        found,
        usage,
        speed,
        codec.to_dict() | (identity(codec.tokenizer) if isinstance(codec, TokenizerCodec) else {}),
    )


def _notes(
    side: int, count: int, features: metrics.BackboneFeatures | None, jpegs: int, rows: Sequence[Row]
) -> list[str]:
    notes = []
    files = any(row.usage is None for row in rows)
    if side < HEADERS_MATTER and files:
        notes.append(
            f"At {side} px a file's header outweighs what the file holds: the image codecs look worse than they are. "
            f"Compare at {HEADERS_MATTER} px and up."
        )
    if features is not None and (note := few_images(count, features.dim)):
        notes.append(f"Feature distance: {note}")
    if jpegs and any(row.family == "JPEG" for row in rows):
        notes.append(
            f"{jpegs:,} of {count:,} images were JPEG files before. Where they were not resized, JPEG near the quality "
            "that they were saved in repeats its own rounding and looks better than it is."
        )
    if len(rows) > 1 and any(row.usage is not None for row in rows) and files:
        notes.append(
            "Tokenizers spend the same bits on every image; image codecs spend more on busy ones, and their bits are "
            "means over images."
        )
    return notes
