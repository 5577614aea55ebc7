"""pix2pix's pairs: what the condition is."""

from __future__ import annotations

import pytest
import torch

from tests.laws.adversaries import PLAIN, make_record
from tokenizers_vq.discriminators import PairConfig
from tokenizers_vq.discriminators.pair import blurred
from tokenizers_vq.losses.record import Record


def test_the_condition_is_the_image_blurred_by_the_tokenizers_stride() -> None:
    wrapper = PairConfig(discriminator=PLAIN).build(3, (32, 32))
    record = make_record(wrapper)
    images, condition = wrapper.inputs(record, record.reconstructions)
    assert images is record.reconstructions
    assert record.tokenizer is not None and record.tokenizer.encoder.grid(32, 32) == (8, 8)
    assert torch.equal(condition, blurred(record.images, 4.0)) and not condition.requires_grad
    assert wrapper.inputs(record, record.images)[1] is condition  # made once
    logits = wrapper(images, condition).logits[0]
    assert torch.equal(logits, wrapper.inner(torch.cat([images, condition], 1)).logits[0])


def test_blur_by_hand() -> None:
    impulse = torch.zeros(1, 2, 41, 41, dtype=torch.float64)
    impulse[..., 20, 20] = 1
    spread = blurred(impulse, 6.0)[0, 1]
    offsets = torch.arange(-20, 21, dtype=torch.float64)
    deviation = ((spread.sum(0) * offsets.square()).sum()).sqrt().item()
    assert spread.sum().item() == pytest.approx(1) and deviation == pytest.approx(3.0, rel=0.02)
    flat = torch.full((1, 1, 8, 8), 0.7)
    torch.testing.assert_close(blurred(flat, 16.0), flat)  # the kernel is wider than the image
    assert torch.equal(blurred(impulse, 0.0), impulse)


def test_outside_a_tokenizer_the_blur_is_given() -> None:
    record = Record(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32))
    with pytest.raises(ValueError, match="has no stride to blur by: give its `blur`"):
        PairConfig(discriminator=PLAIN).build(3, (32, 32)).inputs(record, record.images)
    plain = PairConfig(discriminator=PLAIN, blur=0.0).build(3, (32, 32))
    assert torch.equal(plain.inputs(record, record.output)[1], record.images)
