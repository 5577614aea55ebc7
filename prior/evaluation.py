"""Samples of a prior judged against real images: how good, how varied, of the asked class, learnt by heart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prior.conditions import ClassCondition
from prior.data import Data, read_rows
from prior.decoding import decode, open_tokenizer, refuse_part
from prior.identity import OtherOrder, check_order
from prior.measures import (
    Judge,
    Seen,
    class_score,
    density_coverage,
    nearest,
    nearest_classes,
    precision_recall,
    spread,
)
from prior.model import Prior
from prior.models import load
from prior.scoring import own_recipe
from tokenizers_vq.data import DataConfig
from tokenizers_vq.data.batches import Batches
from tokenizers_vq.data.loading import evaluation_batches
from tokenizers_vq.devices import resolve_device
from tokenizers_vq.evaluation.measures import few_images, lpips_network
from tokenizers_vq.losses.perceptual import find_trunk
from tokenizers_vq.tokenizer import Tokenizer

PRECISION_K, DENSITY_K, CLASS_K = 3, 5, 5


class Judged(NamedTuple):
    """One measure."""

    value: float
    """of the samples"""
    real: float | None
    """of as many other real images, judged as if they were samples: what is as good as it gets"""
    better: str
    """`higher`, `lower`, or "" where only being near `real` is good"""
    how: str
    """what defines it"""


class Point(NamedTuple):
    """One setting of the sampler, on the curve of quality against variety."""

    setting: str
    """such as `guidance=3`"""
    distance: float
    precision: float
    recall: float


class Evaluated(NamedTuple):
    """A prior's samples, judged."""

    measures: dict[str, Judged]
    curve: tuple[Point, ...]
    skipped: dict[str, str]
    """measures that could not be taken -> why"""
    definition: dict[str, Any]
    """what must be equal for two evaluations to be compared"""
    notes: tuple[str, ...]
    images: Tensor
    """`(n, C, H, W)` in [-1, 1]: the samples"""
    twins: tuple[tuple[Tensor, Tensor], ...]
    """samples that are nearest to a training image, each with that image"""

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return {
            "measures": {name: one._asdict() for name, one in self.measures.items()},
            "curve": [point._asdict() for point in self.curve],
            "skipped": self.skipped,
            "notes": list(self.notes),
            **self.definition,
        }


class Real(NamedTuple):
    """Real images in two halves of equal size, and what a prior is told of those of the first."""

    images: Tensor
    """`(2n, C, H, W)`; the even ones are compared with, the odd ones are the floor"""
    labels: Tensor | None
    """int64 `(2n,)`, the prior's classes; None where it is told none"""
    told: dict[str, Any]
    """a batch as `Condition.take` reads it, of the first half"""
    source: str


def evaluate(
    model: str,
    data: DataConfig,
    *,
    count: int = 500,
    sampler: Mapping[str, Any] | None = None,
    backbone: str = "tf_efficientnet_lite0",
    layer: str = "head",
    curve: Sequence[Mapping[str, Any]] | None = (),
    training: DataConfig | None = None,
    tokenizer: str | None = None,
    device: str = "auto",
    batch_size: int = 32,
) -> Evaluated:
    """Draw as many samples as there are real images in half of `data`, at most `count`, and judge them.

    They are told what the real images of the first half are. `curve`: settings of the sampler, each drawn anew; None:
    of temperature, top-p and guidance. `training`: the images that the prior learnt from; unset, a run decodes the
    codes that it learnt from. Raises `ValueError` for a prior whose condition these images do not have, fewer than 12
    images, and as `load` does.
    """
    prior = load(model).to(resolve_device(device))
    refuse_part(prior)
    made = open_tokenizer(tokenizer or prior.config.tokenizer, prior.config.fingerprint, model, prior.device)
    settings = prior.network.Sampler(**(sampler or {})).to_dict()
    judge = Judge(backbone, layer).to(prior.device)
    prior.condition.adopt(made)
    real = read_real(prior, made, data, count, batch_size)
    n = len(real.images) // 2
    seen = _see(judge, real.images, batch_size)
    first, second = seen.part(slice(0, None, 2)), seen.part(slice(1, None, 2))
    codes, images = _draw(prior, made, real, dict(sampler or {}), batch_size)
    drawn = _see(judge, images, batch_size)
    measures = _compared(judge, first, second, drawn)
    skipped: dict[str, str] = {}
    _add_classes(measures, skipped, real, (first, second, drawn))
    _add_spread(measures, skipped, real, images, prior.device)
    twins = _add_training(measures, skipped, model, (prior, made, judge), (codes, images), (drawn, second), training)
    points = []
    for setting in curves(prior) if curve is None else curve:
        _, other = _draw(prior, made, real, {**(sampler or {}), **setting}, batch_size)
        points.append(_point(setting, first, _see(judge, other, batch_size)))
    few = few_images(n, first.features.shape[1])
    definition = {
        "model": model,
        "fingerprint": prior.config.fingerprint,
        "data": real.source,
        "samples": n,
        "real_images": n,
        "backbone": backbone,
        "layer": layer,
        "features": first.features.shape[1],
        "sampler": settings,
    }
    return Evaluated(measures, tuple(points), skipped, definition, () if few is None else (few,), images, twins)


def read_real(prior: Prior, tokenizer: Tokenizer, data: DataConfig, count: int, batch_size: int) -> Real:
    """At most `2 count` images, evenly spread, an even number of them. Raises `ValueError` for fewer than 12."""
    parts = prior.condition.parts.values()
    columns = tuple(part.column for part in parts if isinstance(part, ClassCondition) and part.column)
    config = data.replace(class_columns=columns, limit=min(2 * count, data.limit or 2 * count))
    size, channels = tokenizer.config.size, tokenizer.config.channels
    batches = evaluation_batches(config, image_size=size, channels=channels, batch_size=batch_size)
    found = list(batches)
    total = sum(len(batch["images"]) for batch in found) // 2 * 2
    if total < 12:
        raise ValueError(f"{config.path}: {total} images are too few to be split into halves and compared; give 12")
    images = torch.cat([batch["images"] for batch in found])[:total]
    labels = torch.cat([batch["labels"] for batch in found])[:total]
    captions = None
    if found[0]["captions"] is not None:
        captions = [one for batch in found for one in batch["captions"]][:total:2]
    classes = {}
    for place, name in enumerate(columns):
        numbers = [row[place] for batch in found for row in batch["classes"]]
        classes[name] = torch.tensor(numbers[:total:2])
    known = next((part for part in parts if isinstance(part, ClassCondition) and part.column is None), None)
    labels = labels if known is None else renumbered(labels, batches, known, config.path)
    told = {"labels": labels[::2], "captions": captions, "classes": classes, "label_names": batches.label_names}
    return Real(images, labels if known is not None else None, told, batches.about.description)


def renumbered(labels: Tensor, batches: Batches, condition: ClassCondition, path: str) -> Tensor:
    """Labels of the data as the prior's classes, by their names. Raises `ValueError` where there are none or others."""
    if bool((labels < 0).all()):
        raise ValueError(f"{path} has no classes, and the prior is told one: give a folder for each class, or a column")
    own, theirs = condition.label_names, batches.label_names
    if own is None or theirs is None:
        return labels
    numbers = {name: number for number, name in enumerate(own)}
    unknown = [theirs[label] for label in labels.unique().tolist() if label >= 0 and theirs[label] not in numbers]
    if unknown:
        raise ValueError(f"{path} has images of the class '{unknown[0]}', which the prior does not know")
    table = torch.tensor([numbers.get(name, -1) for name in theirs] + [-1])
    return table[labels]


def _see(judge: Judge, images: Tensor, batch_size: int) -> Seen:
    device = next(judge.backbone.buffers()).device
    return judge.see(part.to(device) for part in images.split(batch_size))


def _draw(
    prior: Prior, tokenizer: Tokenizer, real: Real, settings: dict[str, Any], batch_size: int
) -> tuple[Tensor, Tensor]:
    """Codes `(n, N)` and images, told what the first half of the real images is."""
    n = len(real.images) // 2
    sampler = prior.network.Sampler(**settings)
    told = prior.condition.take({**real.told, "keys": [], "views": []}) if prior.condition.noun else None
    codes, images = [], []
    for first in range(0, n, batch_size):
        rows = slice(first, min(first + batch_size, n))
        drawn = prior.sample(rows.stop - first, _rows(told, rows), sampler, first=first)
        codes.append(drawn.cpu())
        images.append(decode(tokenizer, prior, drawn))
    return torch.cat(codes), torch.cat(images)


def _rows(told: Any, rows: slice) -> Any:
    """What some rows are told, of a value for all or a list, or of these by name."""
    if isinstance(told, Mapping):
        return {name: _rows(value, rows) for name, value in told.items()}
    return told if told is None else told[rows]


def _compared(judge: Judge, first: Seen, second: Seen, drawn: Seen) -> dict[str, Judged]:
    """What needs no classes."""
    floor = second.distance(first)
    space = f"{judge.name} {judge.layer}, {first.features.shape[1]} features"
    measures = {"feature_distance": Judged(drawn.distance(first), floor, "lower", f"Frechet distance, {space}; no FID")}
    pairs = (
        (("precision", "recall"), precision_recall, PRECISION_K),
        (("density", "coverage"), density_coverage, DENSITY_K),
    )
    for names, measure, k in pairs:
        found, other = (measure(first.features, part.features, k) for part in (drawn, second))
        for name, value, real in zip(names, found, other, strict=True):
            measures[name] = Judged(value, real, "higher", f"k = {k}, {space}")
    how = f"exp of the mean KL of {judge.name}'s {judge.classes} classes"
    measures[judge.score_name] = Judged(class_score(drawn.logits), class_score(second.logits), "", how)
    return measures


def _add_classes(
    measures: dict[str, Judged], skipped: dict[str, str], real: Real, seen: tuple[Seen, Seen, Seen]
) -> None:
    """Share of the samples that look like the asked class."""
    first, second, drawn = seen
    if real.labels is None:
        skipped["asked_class"] = "the prior is told no class"
        return
    references = (first.features, real.labels[::2])
    shares = [
        float((nearest_classes(part.features, *references, CLASS_K) == labels).double().mean())
        for part, labels in ((drawn, real.labels[::2]), (second, real.labels[1::2]))
    ]
    how = f"share whose class is that of most of the {CLASS_K} nearest real images"
    measures["asked_class"] = Judged(shares[0], shares[1], "higher", how)


def _add_spread(
    measures: dict[str, Judged], skipped: dict[str, str], real: Real, images: Tensor, device: torch.device
) -> None:
    """LPIPS between samples of one class."""
    name = "spread_within_class" if real.labels is not None else "spread"
    try:
        trunk = find_trunk("squeeze")
        if trunk is None:
            skipped[name] = "the trunk of LPIPS squeeze is not at hand: name its file in TVQ_LPIPS_SQUEEZE"
            return
        network = lpips_network("squeeze", trunk, images.shape[1], device)
    except ValueError as error:
        skipped[name] = str(error)
        return

    @torch.inference_mode()
    def distance(one: Tensor, other: Tensor) -> Tensor:
        wide = [part.to(device).expand(-1, 3, -1, -1) for part in (one, other)]
        return network(*wide).flatten().cpu()

    labels = torch.zeros(len(real.images), dtype=torch.int64) if real.labels is None else real.labels
    found = spread(images, labels[::2], distance)
    other = spread(real.images[1::2], labels[1::2], distance)
    if found is None:
        skipped[name] = "no class has two samples"
        return
    measures[name] = Judged(found, other, "", "mean LPIPS squeeze of pairs of one class, at most 200 pairs")


def _add_training(
    measures: dict[str, Judged],
    skipped: dict[str, str],
    model: str,
    parts: tuple[Prior, Tokenizer, Judge],
    made: tuple[Tensor, Tensor],
    seen: tuple[Seen, Seen],
    training: DataConfig | None,
    most: int = 1000,
) -> tuple[tuple[Tensor, Tensor], ...]:
    """Nearest training images, and samples whose codes are those of one."""
    prior, tokenizer, judge = parts
    (codes, images), (drawn, other) = made, seen
    learnt, size = None, tokenizer.config.size
    if training is not None:
        config = training.replace(limit=min(most, training.limit or most))
        batches = evaluation_batches(
            config, image_size=size, channels=tokenizer.config.channels, batch_size=32, prefer=("train",)
        )
        learnt = torch.cat([batch["images"] for batch in batches])
    elif (recipe := own_recipe(model)) is not None:
        try:
            kept = Data(recipe)
            check_order(Path(model), kept)
        except (FileNotFoundError, OtherOrder) as error:
            skipped["copies"] = skipped["nearest_training"] = str(error)
            return ()
        measures["copies"] = Judged(_copies(codes, kept), None, "lower", "share whose codes are a training image's")
        rows = kept.rows[:: max(1, -(-len(kept.rows) // most))]
        tokens = read_rows(kept.shards, rows)["tokens"]
        learnt = torch.cat([decode(tokenizer, prior, part) for part in tokens.split(32)])
    if learnt is None:
        skipped["copies"] = skipped["nearest_training"] = f"{model} does not know its training images: give --training"
        return ()
    shown = _see(judge, learnt, 32).features
    near = nearest(drawn.features, shown)
    reference = float(nearest(other.features, shown).distances.median())
    how = f"median distance to the nearest of {len(learnt):,} training images; far below: learnt by heart"
    measures["nearest_training"] = Judged(float(near.distances.median()), reference, "", how)
    closest = near.distances.argsort()[:16].tolist()
    return tuple((images[row], learnt[near.indices[row]]) for row in closest)


def _copies(codes: Tensor, kept: Data) -> float:
    """Share of samples all of whose codes are those of a training row."""
    wanted = {row.tobytes() for row in codes.numpy()}
    found: set[bytes] = set()
    for part in kept.parts:
        for first in range(0, len(part.rows), 4096):
            tokens = part.shards[part.rows[first : first + 4096]]
            found |= wanted & {row.tobytes() for row in tokens.numpy()}
    return sum(row.tobytes() in found for row in codes.numpy()) / len(codes)


def _point(setting: Mapping[str, Any], real: Seen, drawn: Seen) -> Point:
    quality = precision_recall(real.features, drawn.features, PRECISION_K)
    name = ", ".join(f"{field}={value:g}" for field, value in setting.items())
    return Point(name, drawn.distance(real), quality.quality, quality.variety)


def curves(prior: Prior) -> list[dict[str, Any]]:
    """The settings of a curve: temperature, top-p, and guidance where it can be had."""
    found: list[dict[str, Any]] = [{"temperature": value} for value in (0.6, 0.8, 1.0, 1.2)]
    found += [{"top_p": value} for value in (0.7, 0.9)]
    if prior.condition.noun and prior.condition.guidable:
        found += [{"guidance": value} for value in (1.5, 3.0, 6.0)]
    return found
