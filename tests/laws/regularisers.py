"""The regularisers that law 13 is tried on: a new one gets all its laws by one line in its list."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.laws.adversaries import LABELS, PLAIN, logistic64, make_adversary
from tests.laws.law import Role
from tokenizers_vq.discriminators import ProjectionConfig, StyleGAN2Config
from tokenizers_vq.discriminators.base import Judgement, judge
from tokenizers_vq.losses.record import Record
from tokenizers_vq.losses.regularisers import (
    GradientPenalty,
    GradientPenaltyConfig,
    HistoricalAveraging,
    HistoricalAveragingConfig,
    LeCam,
    LeCamConfig,
    MatchingAwareConfig,
    OrthogonalConfig,
    R1Config,
    R2Config,
    Regulariser,
    WeightClipping,
    WeightClippingConfig,
)
from tokenizers_vq.training.adversary import Adversary


@dataclass(frozen=True)
class RegulariserCase:
    """A regulariser, and its formula in float64."""

    name: str
    config: Any
    formula: Callable[[Regulariser, Record, Judgement, Judgement], Tensor]
    """(regulariser, record, real, fake) -> its value; everything but the regulariser is float64"""
    discriminator: Any = PLAIN
    """config of the discriminator that it is tried on"""
    exempt: dict[str, str] = field(default_factory=dict)

    def adversary(self, **changes: Any) -> Adversary:
        fields = {"weight": 1.0, "every": 1, **changes}
        config = self.config.replace(**{k: v for k, v in fields.items() if k in type(self.config).model_fields})
        adversary = make_adversary(discriminator=self.discriminator, regularisers=(config,))
        for buffer in adversary.regularisers[0].buffers():  # as after some steps
            buffer.fill_(0.5)
        return adversary


def r1_64(regulariser: Regulariser, record: Record, real: Judgement, fake: Judgement) -> Tensor:
    """Half the mean squared slope, image by image."""
    assert record.discriminator is not None
    slopes = []
    for image in record.images:
        leaf = image[None].detach().requires_grad_()
        logits = judge(record.discriminator, record, leaf, frozen=False).logits
        slopes.append(torch.autograd.grad(sum(scale.sum() for scale in logits), leaf, create_graph=True)[0])
    return sum(slope.square().sum() for slope in slopes) / (2 * len(slopes))


def r2_64(regulariser: Regulariser, record: Record, real: Judgement, fake: Judgement) -> Tensor:
    """R1 of a record whose images are the reconstructions."""
    return r1_64(
        regulariser, Record(record.reconstructions, record.output, discriminator=record.discriminator), real, fake
    )


def penalty64(regulariser: Regulariser, record: Record, real: Judgement, fake: Judgement) -> Tensor:
    """Image by image: how far the mean logit's slope is from 1 at a drawn place."""
    assert record.discriminator is not None and isinstance(regulariser, GradientPenalty)
    total = torch.zeros((), dtype=torch.float64)
    places = torch.rand(len(record.images)).double()
    for image, other, a in zip(record.images, record.reconstructions, places, strict=True):
        leaf = (a * image + (1 - a) * other)[None].detach().requires_grad_()
        (logits,) = judge(record.discriminator, record, leaf, frozen=False).logits
        (slope,) = torch.autograd.grad(logits.mean(), leaf, create_graph=True)
        total = total + (slope.square().sum().sqrt() - regulariser.target).square()
    return total / len(record.images)


def clipped64(regulariser: Regulariser, record: Record, real: Judgement, fake: Judgement) -> Tensor:
    """The share of all weights that are not inside."""
    assert record.discriminator is not None and isinstance(regulariser, WeightClipping)
    weights = torch.cat([p.flatten() for p in record.discriminator.parameters()])
    return 1 - ((-regulariser.limit < weights) & (weights < regulariser.limit)).double().mean()


def orthogonal64(regulariser: Regulariser, record: Record, real: Judgement, fake: Judgement) -> Tensor:
    """Pair by pair of filters."""
    assert record.discriminator is not None
    total = torch.zeros((), dtype=torch.float64)
    for name, weight in record.discriminator.named_parameters():
        filters = weight.flatten(1) if name.endswith("weight") else weight[:0]
        for i, one in enumerate(filters):
            total = total + sum((one @ other).square() for j, other in enumerate(filters) if j != i)
    return total


def history64(regulariser: Regulariser, record: Record, real: Judgement, fake: Judgement) -> Tensor:
    """The squared distance of all weights to their averages."""
    assert record.discriminator is not None and isinstance(regulariser, HistoricalAveraging)
    weights = torch.cat([p.flatten() for p in record.discriminator.parameters()])
    return (weights - regulariser.average.double()).square().sum()


def matching64(regulariser: Regulariser, record: Record, real: Judgement, fake: Judgement) -> Tensor:
    """The logistic loss of images with their labels, and with those of the images before."""
    assert record.discriminator is not None and record.batch.labels is not None
    batch = record.batch._replace(labels=torch.cat([record.batch.labels[-1:], record.batch.labels[:-1]]))
    wrong = Record(batch, record.output, discriminator=record.discriminator)
    (r,), (f,) = real.logits, judge(record.discriminator, wrong, record.images, frozen=False).logits
    return logistic64(r, f)


def lecam64(regulariser: Regulariser, record: Record, real: Judgement, fake: Judgement) -> Tensor:
    """Squares of what lies beyond the average of the other side."""
    assert isinstance(regulariser, LeCam)
    (r,), (f,) = real.logits, fake.logits
    if regulariser.config.compare == "means":
        r, f = r.mean(), f.mean()
    above, below = r - regulariser.fake_average.double(), regulariser.real_average.double() - f
    return F.relu(above).square().mean() + F.relu(below).square().mean()


_DRAWN = {"processes": "each process draws where between its images and reconstructions it looks"}

REGULARISERS = Role(
    "regulariser",
    [
        RegulariserCase("r1", R1Config(), r1_64),
        RegulariserCase("r1-stylegan2", R1Config(), r1_64, StyleGAN2Config(width=1 / 64, stddev_group=1)),
        RegulariserCase("lecam", LeCamConfig(), lecam64),
        RegulariserCase("lecam-means", LeCamConfig(compare="means"), lecam64),
        RegulariserCase("r2", R2Config(), r2_64),
        RegulariserCase("gradient-penalty", GradientPenaltyConfig(), penalty64, exempt=_DRAWN),
        RegulariserCase("gradient-penalty-zero", GradientPenaltyConfig(target=0.0), penalty64, exempt=_DRAWN),
        RegulariserCase(
            "weight-clipping",
            WeightClippingConfig(limit=0.1),
            clipped64,
            exempt={
                "gradient": "a share has no slope: it moves weights after the step, not by a loss",
                "lazy": "it adds nothing to the loss",
            },
        ),
        RegulariserCase("orthogonal", OrthogonalConfig(), orthogonal64),
        RegulariserCase("historical-averaging", HistoricalAveragingConfig(), history64),
        RegulariserCase(
            "matching-aware",
            MatchingAwareConfig(),
            matching64,
            ProjectionConfig(discriminator=PLAIN, num_classes=LABELS),
            {"processes": "conditions go round within the images of each process"},
        ),
    ],
    {
        "value": "equals its formula in float64",
        "gradient": "its gradient at the discriminator's weights is that of finite differences",
        "precision": "float32, finite and near float32's value in bf16 autocast",
        "pure": "computing it changes no buffer of the discriminator and leaves no gradient at the images",
        "lazy": "over as many steps, any `every` adds up to the same loss",
        "processes": "two processes equal one: gradients, buffers",
        "state": "state round-trips, values bitwise equal; its config is of the union and can be written and read",
    },
    "test_adversaries.py",
)
