"""The record is lazy, computes nothing twice, and leaves the discriminator as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import tokenizers_vq as tvq
from tokenizers_vq.batch import Batch
from tokenizers_vq.discriminators.base import Judgement, judge
from tokenizers_vq.discriminators.patchgan import PatchGAN
from tokenizers_vq.losses.record import Record, levels


def test_nothing_unasked_and_nothing_twice() -> None:
    calls = []

    class Counting(PatchGAN):
        def forward(self, images: Tensor) -> Judgement:
            calls.append(images)
            return super().forward(images)

    images, output = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    record = Record(images, output, discriminator=Counting(3, (8, 8), width=4, layers=1))
    assert calls == []
    assert record.real is record.real
    assert calls == [images]
    assert record.reconstructions is record.reconstructions
    assert record.once("key", lambda: object()) is record.once("key", lambda: object())


def test_output_is_a_leaf_cut_from_the_tokenizer() -> None:
    weight = torch.ones((), requires_grad=True)
    output = weight * torch.ones(1, 3, 4, 4)
    record = Record(torch.zeros(1, 3, 4, 4), output)
    (gradient,) = torch.autograd.grad(3 * record.reconstructions.sum(), record.output)
    assert gradient.eq(3).all()
    assert record.output.is_leaf
    assert weight.grad is None


@pytest.mark.parametrize("preset", ["vqvae-tiny-64", "vqvae2-tiny-64"])
def test_leaves_are_the_output_and_the_features_of_every_grid(preset: str) -> None:
    tokenizer = tvq.create(preset, ["image_size=16"])
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    out = tokenizer(images, render=False)
    record = Record(
        Batch(images, keys=["a", "b"]), out.output, features=out.features, quantized=out.quantized, tokenizer=tokenizer
    )
    assert record.batch.keys == ["a", "b"] and record.batch.labels is None and record.batch.captions is None
    assert len(record.leaves) == 1 + len(levels(out.features))
    for leaf, value in zip(record.leaves, (out.output, *levels(out.features)), strict=True):
        assert leaf.is_leaf and leaf.requires_grad and torch.equal(leaf, value)
    assert record.quantized is not None
    detached = [*levels(record.quantized.features), *record.quantized.losses.values()]
    assert not any(tensor.requires_grad for tensor in detached)
    torch.testing.assert_close(record.reconstructions, tokenizer.render(out.output))
    assert torch.equal(record.pixels, tokenizer.to_pixels(images))


def test_outside_a_tokenizer_images_and_an_output_are_enough() -> None:
    images, output = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    record = Record(images, output)
    assert record.leaves == (record.output,) and record.features is None and record.quantized is None
    assert torch.equal(record.reconstructions, output) and record.pixels is images


def test_a_judgement_without_discriminator_says_what_to_do() -> None:
    record = Record(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="add an `adversary` to the recipe"):
        _ = record.fake


def test_judge_unfrozen_reaches_the_parameters() -> None:
    discriminator = PatchGAN(3, width=4, layers=2)
    judge(discriminator, None, torch.rand(2, 3, 32, 32), frozen=False).logits[0].sum().backward()
    assert all(parameter.grad is not None for parameter in discriminator.parameters())
