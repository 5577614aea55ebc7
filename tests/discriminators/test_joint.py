"""BiGAN's joint discriminator: what it sees beside the image, and tokenizers that it cannot stand beside."""

from __future__ import annotations

import pytest
import torch

import tokenizers_vq as tvq
from tests.laws.adversaries import DIM, PLAIN, make_adversary, make_record
from tokenizers_vq.discriminators import AugmentedConfig, JointConfig, SeveralConfig
from tokenizers_vq.losses.record import Record


def test_it_sees_the_image_above_its_mixed_features() -> None:
    wrapper = JointConfig(discriminator=PLAIN, dim=DIM, width=2).build(3, (32, 32))
    record = make_record(wrapper)
    assert record.quantized is not None
    images, features = wrapper.inputs(record, record.reconstructions)
    assert images is record.reconstructions and features is record.quantized.features and not features.requires_grad
    above = wrapper.mix(features).repeat_interleave(4, 2).repeat_interleave(4, 3)
    expected = wrapper.inner(torch.cat([images, above], 1)).logits[0]
    torch.testing.assert_close(wrapper(images, features).logits[0], expected)


@pytest.mark.parametrize(
    ("preset", "problem"),
    [
        ("titok-tiny-64", "one grid of rows and columns, this tokenizer has 64: take pair"),
        ("vqvae2-tiny-64", r"one grid of rows and columns, this tokenizer has 8x8 \+ 16x16: take pair"),
        ("lfq-tiny-64", "dim: this tokenizer's quantized features have 10 channels, dim is 8: set dim=10"),
    ],
)
def test_other_tokenizers_are_refused_also_inside_wrappers(preset: str, problem: str) -> None:
    with torch.device("meta"):
        tokenizer = tvq.create(preset)
    joint = JointConfig(discriminator=PLAIN, dim=8)
    config = AugmentedConfig(discriminator=SeveralConfig(discriminators=(PLAIN, joint)))
    with pytest.raises(ValueError, match=problem):
        config.build(3, (32, 32)).check_tokenizer(tokenizer)


def test_a_run_asks_before_step_0() -> None:
    with pytest.raises(ValueError, match=f"have {DIM} channels, dim is 9: set dim={DIM}"):
        make_adversary(discriminator=JointConfig(discriminator=PLAIN, dim=9))
    record = Record(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32))
    with pytest.raises(ValueError, match="without a tokenizer there are none"):
        JointConfig(discriminator=PLAIN, dim=8).build(3, (32, 32)).inputs(record, record.images)
