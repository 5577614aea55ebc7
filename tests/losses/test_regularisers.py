"""R1 on real discriminators; its values are compared with a reference in tests/golden."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tokenizers_vq.discriminators.patchgan import PatchGAN
from tokenizers_vq.judgement import Discriminator, Judgement
from tokenizers_vq.losses.record import Record
from tokenizers_vq.losses.regularisers import R1


class Linear(Discriminator):
    """Two scales whose gradient is known."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, *inputs: Any) -> Judgement:
        return Judgement([self.scale * inputs[0].sum((1, 2, 3)), inputs[0].sum((2, 3))], [], {})


def test_r1_sums_the_scales_and_reaches_the_weights() -> None:
    images = torch.rand(4, 3, 2, 2)
    discriminator = Linear()
    record = Record(images, images, lambda x: x, discriminator=discriminator)
    penalty = R1()(record, discriminator, record.real, record.fake)
    assert penalty.item() == pytest.approx(0.5 * (2 + 1) ** 2 * 12)
    penalty.backward()
    assert discriminator.scale.grad is not None
    assert discriminator.scale.grad.item() == pytest.approx((2 + 1) * 12)
    assert images.grad is None


@pytest.mark.parametrize("norm", ["batch", "spectral", "none"])
def test_r1_of_patchgan_is_finite_and_leaves_buffers(norm: str) -> None:
    discriminator = PatchGAN(3, width=4, layers=2, norm=norm)
    before = {name: buffer.clone() for name, buffer in discriminator.named_buffers()}
    images = torch.rand(2, 3, 32, 32)
    record = Record(images, images, lambda x: x, discriminator=discriminator)
    R1(weight=1.0, every=1)(record, discriminator, record.real, record.fake).backward()
    weight = next(parameter for parameter in discriminator.parameters() if parameter.ndim == 4)
    assert weight.grad is not None
    assert weight.grad.isfinite().all()
    assert weight.grad.abs().sum() > 0
    assert all(torch.equal(buffer, before[name]) for name, buffer in discriminator.named_buffers())
