"""R1 on real discriminators, LeCam's averages; values are compared with references in tests/golden."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tokenizers_vq.discriminators.base import Discriminator, Judgement
from tokenizers_vq.discriminators.patchgan import PatchGANConfig
from tokenizers_vq.losses.record import Record
from tokenizers_vq.losses.regularisers import R1, LeCam


class Linear(Discriminator):
    """Two scales whose gradient is known."""

    def __init__(self) -> None:
        super().__init__(PatchGANConfig(), 3, (2, 2))
        self.scale = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, *inputs: Any) -> Judgement:
        return Judgement([self.scale * inputs[0].sum((1, 2, 3)), inputs[0].sum((2, 3))], [], {})


def test_r1_sums_the_scales_and_reaches_the_weights() -> None:
    images = torch.rand(4, 3, 2, 2)
    discriminator = Linear()
    record = Record(images, images, discriminator=discriminator)
    penalty = R1()(record, discriminator, record.real, record.fake)
    assert penalty.item() == pytest.approx(0.5 * (2 + 1) ** 2 * 12)
    penalty.backward()
    assert discriminator.scale.grad is not None
    assert discriminator.scale.grad.item() == pytest.approx((2 + 1) * 12)
    assert images.grad is None


def test_lecam_of_the_paper_takes_each_logit() -> None:
    """Against averages that were set by hand; the averages move after the step, by the mean of its micro-batches."""
    lecam, record = LeCam(decay=0.75), Record(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2))
    lecam.real_average.fill_(2.0)
    lecam.fake_average.fill_(-1.0)
    real, fake = torch.tensor([[1.0], [-3.0]]), torch.tensor([[0.0], [4.0]])
    value = lecam(record, Linear(), Judgement([real], [], {}), Judgement([fake], [], {}))
    assert value.item() == ((1 + 1) ** 2 + 0) / 2 + ((2 - 0) ** 2 + 0) / 2
    assert lecam.real_average == 2 and lecam.fake_average == -1
    lecam(record, Linear(), Judgement([real + 4], [], {}), Judgement([fake], [], {}))
    lecam.after_step(Linear())
    assert lecam.real_average.item() == pytest.approx(0.75 * 2 + 0.25 * 1)  # means -1 and 3
    assert lecam.fake_average.item() == pytest.approx(0.75 * -1 + 0.25 * 2)
    lecam.after_step(Linear())  # without a judgement nothing moves
    assert lecam.real_average.item() == pytest.approx(1.75)
