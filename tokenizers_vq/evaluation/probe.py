"""Linear probes: how well a linear classifier tells classes apart by what a tokenizer makes of images."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_vq.batch import Batch
from tokenizers_vq.codes import Quantized
from tokenizers_vq.devices import computing
from tokenizers_vq.discriminators.base import Discriminator, judge
from tokenizers_vq.evaluation.evaluate import eval_mode, identity
from tokenizers_vq.evaluation.linear import fit
from tokenizers_vq.losses.record import Record, levels

MOST = 4096
"""numbers that stand for an image in a probe; larger grids are averaged over cells"""
FEWEST = 4
"""images of a class; fewer cannot be both learned and held out"""
MEANINGS = {
    "pixels": "the images themselves",
    "encoder_features": "the encoder's output, before the quantizer",
    "code_vectors": "the vectors of the codes, which the decoder is given",
    "code_histogram": "how often each code occurs in an image, wherever it stands (square roots of shares)",
    "discriminator": "features of all layers of the discriminator (arXiv 1511.06434, section 5.1)",
}
"""what a classifier is shown, for somebody who meets it for the first time"""


class NoClassesError(ValueError):
    """Data without classes: nothing to tell apart."""


class Accuracy(NamedTuple):
    """How many of the held-out images a classifier put into their class."""

    correct: int
    images: int

    @property
    def value(self) -> float:
        """The share, 0 to 1."""
        return self.correct / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval, 95 %."""
        from scipy.stats import binomtest

        found = binomtest(self.correct, self.images).proportion_ci(0.95, method="wilson")
        return float(found.low), float(found.high)

    def to_dict(self) -> dict[str, Any]:
        return {"accuracy": self.value, "interval": list(self.interval)}


class Row(NamedTuple):
    """A probe of one thing."""

    numbers: int
    """that stand for an image"""
    trained: Accuracy
    untrained: Accuracy | None
    """of the same network with fresh weights; None where there is no network, or none can be built"""


class Probe(NamedTuple):
    """Result of `probe`."""

    rows: dict[str, Row]
    """by the names in `MEANINGS`"""
    chance: Accuracy
    """of the class that most of the learning images have"""
    classes: dict[str, int]
    """names, with the images of each"""
    learning: int
    """images that the classifiers were fitted to"""
    left_out: dict[str, str]
    """what was not probed or used, with the reason"""
    data: dict[str, Any]
    tokenizer: dict[str, Any]
    """fingerprint, where it has one"""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; every number stands beside what defines it."""
        rows = {
            name: {
                "numbers": row.numbers,
                **row.trained.to_dict(),
                "untrained": None if row.untrained is None else row.untrained.to_dict(),
                "sees": MEANINGS[name],
            }
            for name, row in self.rows.items()
        }
        return {
            "classifier": "ridge regression to one-hot classes, penalty by leave-one-out error",
            "interval": "Wilson, 95 %",
            "images": {"learning": self.learning, "held_out": self.chance.images},
            "chance": self.chance.to_dict(),
            "probes": rows,
            "classes": self.classes,
            "left_out": self.left_out,
            "data": self.data,
            "tokenizer": self.tokenizer,
        }

    def save(self, path: Path | str) -> None:
        """Write `to_dict()` as JSON, atomically."""
        from tokenizers_vq.folders import write_atomically

        write_atomically(Path(path), json.dumps(self.to_dict(), indent=2) + "\n")


def probe(
    tokenizer: Any,
    batches: Iterable[Mapping[str, Any]],
    *,
    discriminator: Discriminator | None = None,
    label_names: Sequence[str] | None = None,
    data: Mapping[str, Any] | None = None,
    held_out: float = 0.25,
    seed: int = 0,
    autocast: torch.dtype | None = None,
) -> Probe:
    """Fit linear classifiers of the labels to one part of the images, and count what they get right in the other.

    `batches`: dicts with `images` `(B, C, H, W)` in [-1, 1], all of one size, and `labels` `(B,)`, -1 for none.
    `discriminator`: its features are probed too; labels and captions that it asks for are the same for all images, so
    that they tell nothing. `held_out`: share of each class that is held out, drawn by `seed`, as is the network with
    fresh weights. `data`: as it shall stand in the result.

    Raises `ValueError`, one line, where no image has a label, for a single class, and for too few images of a class.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is a share between 0 and 1, got {held_out}")
    networks = {"trained": _Network(tokenizer, discriminator)}
    left_out: dict[str, str] = {}
    if (fresh := _fresh(networks["trained"], seed)) is None:
        left_out["untrained"] = "no config describes this tokenizer, so that it cannot be built anew"
    else:
        networks["untrained"] = fresh
    seen, labels, streams = _see(networks, batches, autocast)
    kept, classes = _classes(labels, label_names, left_out)
    labels = torch.unique(labels[kept], return_inverse=True)[1]
    held = _held_out(labels, held_out, seed)
    common = labels[~held].bincount().argmax()
    chance = Accuracy(int((labels[held] == common).sum()), int(held.sum()))
    rows = {}
    for name in MEANINGS:
        found = {
            which: _probed(views[name][kept], labels, held, streams if name == "code_histogram" else None)
            for which, views in seen.items()
            if name in views
        }
        if found:
            rows[name] = Row(*found["trained"], found["untrained"][1] if "untrained" in found else None)
    return Probe(rows, chance, classes, int((~held).sum()), left_out, dict(data or {}), identity(tokenizer))


class _Network(NamedTuple):
    tokenizer: Any
    discriminator: Discriminator | None

    def views(self, batch: Batch) -> dict[str, Tensor]:
        """What each probe sees, `(B, d)`; for the histogram the codes, `(B, N)`."""
        tokenizer = self.tokenizer
        features, codes = tokenizer.encode_features(batch.images), tokenizer.encode(batch.images)
        each = isinstance(codes, tuple) and len(codes) == len(tokenizer.quantizers)  # else one has all the grids
        pairs = zip(tokenizer.quantizers, codes if each else (codes,), strict=True)
        vectors = [quantizer.lookup(part) for quantizer, part in pairs]
        found = {
            "encoder_features": _joined(levels(features)),
            "code_vectors": _joined(vectors),
            "code_histogram": tokenizer.code_layout(*batch.images.shape[-2:]).flatten(codes),
        }
        if self.discriminator is not None:
            quantized = Quantized(vectors[0] if len(vectors) == 1 else tuple(vectors), codes, {}, {})
            record = Record(batch, batch.images, features=features, quantized=quantized, tokenizer=tokenizer)
            judgement = judge(self.discriminator, record, batch.images, frozen=True)
            found["discriminator"] = _joined(judgement.features)
        return found


def _fresh(network: _Network, seed: int) -> _Network | None:
    """The same networks with weights as they begin."""
    tokenizer, discriminator = network
    if not hasattr(tokenizer, "config") or not hasattr(tokenizer.config, "build"):
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = tokenizer.config.build().to(tokenizer.device, tokenizer.dtype).eval()
        if discriminator is not None:
            other = discriminator.config.build(discriminator.channels, discriminator.image_size)
            device = next(discriminator.parameters()).device
            return _Network(fresh, other.to(device).eval())
    return _Network(fresh, None)


def _see(
    networks: Mapping[str, _Network], batches: Iterable[Mapping[str, Any]], autocast: torch.dtype | None
) -> tuple[dict[str, dict[str, Tensor]], Tensor, Tensor]:
    """What the probes of every network see, `(n, d)` by name; labels `(n,)`; the stream of each of the N codes."""
    tokenizer, discriminator = networks["trained"]
    seen: dict[str, dict[str, list[Tensor]]] = {which: {} for which in networks}
    labels: list[Tensor] = []
    with eval_mode(tokenizer), eval_mode(discriminator):
        for given in batches:
            batch = _neutral(given, tokenizer.device)
            if discriminator is not None and not labels:
                discriminator.check(batch)
            with computing(tokenizer.device, autocast):
                found = {which: network.views(batch) for which, network in networks.items()}
            found["trained"]["pixels"] = _reduced(batch.images, MOST)
            for which, views in found.items():
                for name, view in views.items():
                    seen[which].setdefault(name, []).append(view.cpu())
            labels.append(given["labels"].cpu())
    if not labels:
        raise ValueError("no images to probe: the data is empty, or every file in it is broken")
    joined = {which: {name: torch.cat(parts) for name, parts in views.items()} for which, views in seen.items()}
    return joined, torch.cat(labels), tokenizer.code_layout(*batch.images.shape[-2:]).streams()


def _neutral(given: Mapping[str, Any], device: torch.device) -> Batch:
    """The batch with one label and one caption for all: a discriminator told of the class would give it away."""
    images = given["images"].to(device)
    labels = torch.zeros(len(images), dtype=torch.int64, device=device)
    return Batch(images, given.get("keys", ()), labels, [("a picture",)] * len(images))


def _reduced(maps: Tensor, most: int) -> Tensor:
    """`(B, C, *grid)` -> float32 `(B, d)`, averaged over cells of the grid where more than `most` numbers would be."""
    maps = maps.float()
    if maps.ndim > 2 and maps[0].numel() > most:
        grid = maps.shape[2:]
        share = (most / maps[0].numel()) ** (1 / len(grid))
        cells = [max(math.floor(side * share), 1) for side in grid]
        flat = len(cells) == 1
        maps = F.adaptive_avg_pool1d(maps, cells[0]) if flat else F.adaptive_avg_pool2d(maps, (cells[0], cells[1]))
    return maps.flatten(1)


def _joined(maps: Sequence[Tensor]) -> Tensor:
    return torch.cat([_reduced(each, MOST // len(maps)) for each in maps], dim=1)


def _histogram(codes: Tensor, streams: Tensor, held: Tensor) -> Tensor:
    """Codes `(n, N)` -> `(n, d)`: square roots of the shares of those that are most frequent where it is learned."""
    places, total = torch.empty_like(codes), 0
    for stream in streams.unique():
        found, places[:, streams == stream] = torch.unique(codes[:, streams == stream], return_inverse=True)
        places[:, streams == stream] += total
        total += len(found)
    counts = places[~held].flatten().bincount(minlength=total)
    chosen = counts.argsort(descending=True, stable=True)[: min(MOST, int((counts > 0).sum()))]
    columns = torch.full((total,), len(chosen))
    columns[chosen] = torch.arange(len(chosen))
    shares = torch.zeros(len(codes), len(chosen) + 1)
    shares.scatter_add_(1, columns[places], torch.full(places.shape, 1 / places.shape[1]))
    return shares[:, :-1].sqrt()


def _probed(view: Tensor, labels: Tensor, held: Tensor, streams: Tensor | None) -> tuple[int, Accuracy]:
    """How many numbers an image is, and the accuracy on what is held out; with `streams`, of a histogram of codes."""
    view = view if streams is None else _histogram(view, streams, held)
    ridge = fit(view[~held], labels[~held], int(labels.max()) + 1, standardise=streams is None)
    right = ridge.predict(view[held]) == labels[held]
    return view.shape[1], Accuracy(int(right.sum()), len(right))


def _classes(labels: Tensor, names: Sequence[str] | None, left_out: dict[str, str]) -> tuple[Tensor, dict[str, int]]:
    """Indices of the images to use, and the classes with the images of each. Raises `ValueError` where they are few."""
    if (labels < 0).all():
        raise NoClassesError(f"none of the {len(labels)} images has a class")
    found, counts = labels[labels >= 0].unique(return_counts=True)
    called = {int(label): names[label] if names and label < len(names) else str(int(label)) for label in found}
    if len(found) == 1:
        raise ValueError(
            f"all {int(counts[0])} images are of one class, '{called[int(found[0])]}': a probe tells two or more apart"
        )
    enough = found[counts >= FEWEST]
    if len(enough) < 2:
        raise ValueError(
            f"too few images: a probe needs two classes of {FEWEST} images or more, and of {len(found)} classes "
            f"{len(enough)} {'has' if len(enough) == 1 else 'have'} as many: give more images"
        )
    if without := int((labels < 0).sum()):
        left_out["images without a class"] = f"{without} of {len(labels)}"
    if len(enough) < len(found):
        left_out["classes"] = f"{len(found) - len(enough)} of {len(found)}, with fewer than {FEWEST} images each"
    kept = torch.isin(labels, enough).nonzero().flatten()
    return kept, {called[int(label)]: int((labels == label).sum()) for label in enough}


def _held_out(labels: Tensor, share: float, seed: int) -> Tensor:
    """bool `(n,)`: in every class the share, rounded, that a seeded draw holds out, one image at the least."""
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(int(labels.max()) + 1):
        own = (labels == label).nonzero().flatten()
        count = min(max(round(share * len(own)), 1), len(own) - 1)
        held[own[torch.randperm(len(own), generator=generator)[:count]]] = True
    return held
