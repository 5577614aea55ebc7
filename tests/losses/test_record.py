"""The record is lazy, computes nothing twice, and leaves the discriminator as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tokenizers_vq.discriminators.patchgan import PatchGAN
from tokenizers_vq.judgement import judge
from tokenizers_vq.losses.objectives import Hinge
from tokenizers_vq.losses.record import Record


def test_nothing_unasked_and_nothing_twice() -> None:
    calls = []

    def render(output: Tensor) -> Tensor:
        calls.append("render")
        return output * 2

    record = Record(torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4), render)
    assert calls == []
    assert record.reconstructions is record.reconstructions
    assert calls == ["render"]
    assert record.once("key", lambda: object()) is record.once("key", lambda: object())


def test_output_is_a_leaf_cut_from_the_tokenizer() -> None:
    weight = torch.ones((), requires_grad=True)
    output = weight * torch.ones(1, 3, 4, 4)
    record = Record(torch.zeros(1, 3, 4, 4), output, lambda x: x * 3)
    (gradient,) = torch.autograd.grad(record.reconstructions.sum(), record.output)
    assert gradient.eq(3).all()
    assert record.output.is_leaf
    assert weight.grad is None


def test_a_judgement_without_discriminator_says_what_to_do() -> None:
    record = Record(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32), lambda x: x)
    with pytest.raises(ValueError, match="give the recipe an `adversary`"):
        _ = record.fake


@pytest.mark.parametrize("norm", ["batch", "spectral", "none"])
def test_judging_leaves_the_discriminator_untouched(norm: str) -> None:
    discriminator = PatchGAN(3, width=4, layers=2, norm=norm)
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    record = Record(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32), lambda x: x, discriminator=discriminator)
    assert not record.real.logits[0].requires_grad
    (gradient,) = torch.autograd.grad(Hinge().generator(record.fake), record.output)
    assert gradient.abs().sum() > 0
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    assert all(torch.equal(value, before[name]) for name, value in discriminator.state_dict().items())

    other = PatchGAN(3, width=4, layers=2, norm=norm)
    other.load_state_dict(before)
    assert torch.equal(other(record.reconstructions).logits[0], record.fake.logits[0])


def test_the_discriminators_own_step_under_autocast_gets_its_gradients() -> None:
    discriminator = PatchGAN(3, width=4, layers=2)
    images = torch.rand(2, 3, 32, 32)
    record = Record(images, torch.rand_like(images), lambda x: x, discriminator=discriminator)
    with torch.autocast("cpu", torch.bfloat16):
        _ = record.real, record.fake
        Hinge().discriminator(discriminator(images), discriminator(record.reconstructions.detach())).backward()
    weights = [parameter for parameter in discriminator.parameters() if parameter.ndim == 4]
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in weights)


def test_judge_unfrozen_reaches_the_parameters() -> None:
    discriminator = PatchGAN(3, width=4, layers=2)
    judge(discriminator, None, torch.rand(2, 3, 32, 32), frozen=False).logits[0].sum().backward()
    assert all(parameter.grad is not None for parameter in discriminator.parameters())
