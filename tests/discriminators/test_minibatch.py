"""Minibatch discrimination by hand, and where it cannot stand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.laws.adversaries import INNER, make_adversary, make_record
from tokenizers_vq.batch import Batch
from tokenizers_vq.config import ConfigError
from tokenizers_vq.discriminators import AugmentedConfig, MinibatchConfig, UNetConfig
from tokenizers_vq.discriminators.minibatch import closeness
from tokenizers_vq.losses.regularisers import GradientPenaltyConfig, R1Config, R2Config


def test_closeness_by_hand() -> None:
    # Three images, two spaces of two dimensions.
    places = torch.tensor([[[0.0, 0.0], [5.0, 1.0]], [[1.0, -2.0], [5.0, 1.0]], [[0.0, 0.5], [4.0, 1.0]]])
    expected = [
        [math.exp(-3) + math.exp(-0.5), 1 + math.exp(-1)],
        [math.exp(-3) + math.exp(-3.5), 1 + math.exp(-1)],
        [math.exp(-0.5) + math.exp(-3.5), 2 * math.exp(-1)],
    ]
    torch.testing.assert_close(closeness(places), torch.tensor(expected))
    alike = torch.ones(5, 3, 2)
    assert torch.equal(closeness(alike), torch.full((5, 3), 4.0)), "an image is none of the others"


def test_it_raises_all_logits_of_an_image_by_what_its_features_tell() -> None:
    wrapper = MinibatchConfig(discriminator=UNetConfig(width=4), kernels=6, dim=2).build(3, (32, 32)).eval()
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        plain, told = wrapper.inner(images), wrapper(images)
        pooled = plain.features[-1].mean((2, 3))
        amount = torch.zeros(4)
        for i in range(4):
            for b in range(6):
                places = pooled @ wrapper.spaces[:, b]
                near = sum(math.exp(-(places[i] - places[j]).abs().sum().item()) for j in range(4) if j != i)
                amount[i] += wrapper.weight[b] * near
    for before, after in zip(plain.logits, told.logits, strict=True):
        torch.testing.assert_close(after - before, amount.view(4, *[1] * (before.ndim - 1)).expand_as(before))
    assert all(map(torch.equal, plain.features, told.features))


def test_a_batch_of_one_is_refused() -> None:
    wrapper = AugmentedConfig(discriminator=MinibatchConfig(discriminator=INNER)).build(3, (32, 32))
    wrapper.check(make_record(wrapper).batch)
    with pytest.raises(ValueError) as error:
        wrapper.check(Batch(torch.zeros(1, 3, 32, 32)))
    assert str(error.value) == (
        "adversary.discriminator.discriminator: minibatch compares images with others of their micro-batch, which "
        "holds one: raise `batch_size`, lower `accumulate`, or take minibatch out"
    )


@pytest.mark.parametrize("regulariser", [GradientPenaltyConfig(), R1Config(), R2Config()], ids=lambda r: r.kind)
def test_penalties_on_an_images_own_slope_are_refused(regulariser: Any) -> None:
    config = AugmentedConfig(discriminator=MinibatchConfig(discriminator=INNER))
    with pytest.raises(ConfigError) as error:
        make_adversary(discriminator=config, regularisers=(regulariser,))
    path = "adversary.discriminator.discriminator"
    assert str(error.value) == (
        f"{path}: {regulariser.kind} is about each image's own logits, which minibatch discrimination mixes over the "
        f"batch: take minibatch out of {path}, or the penalty"
    )
