"""GigaGAN's pyramid and the U-Net: which logits there are, and what they see."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tokenizers_vq.discriminators import MultiscaleConfig, UNetConfig


def test_logits_of_each_pair_of_input_scale_and_later_output_scale() -> None:
    torch.manual_seed(0)
    discriminator = MultiscaleConfig(width=4, scales=3).build(3, (32, 48))
    images = torch.rand(2, 3, 32, 48)
    judgement = discriminator(images)
    pairs = [(i, j) for j in (1, 2, 3) for i in range(j)]
    assert [tuple(logits.shape) for logits in judgement.logits] == [(2, 1, 32 >> j, 48 >> j) for _, j in pairs]
    assert [tuple(f.shape[1:]) for f in judgement.features] == [(4, 16, 24), (8, 8, 12), (16, 4, 6)]
    halved = discriminator.halve(images)
    for (i, j), logits in zip(pairs, judgement.logits, strict=True):
        entering = [images, halved, discriminator.halve(halved)][i]
        hidden: Tensor = discriminator.stems[i](entering)
        for block in discriminator.blocks[i:j]:
            hidden = block(hidden)
        alone = discriminator.heads[j - 1](torch.nn.functional.leaky_relu(hidden, 0.2))
        torch.testing.assert_close(logits, alone)


def test_the_pyramid_is_antialiased() -> None:
    discriminator = MultiscaleConfig(width=4, scales=2).build(1, (32, 32))
    chequered = (torch.arange(32)[:, None] + torch.arange(32)).remainder(2).float()[None, None]
    halved = discriminator.halve(chequered)[..., 1:-1, 1:-1]
    assert torch.allclose(halved, torch.full_like(halved, 0.5))


def test_sides_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"with 4 scales needs sides that are multiples of 16 from 32, got 16x32"):
        MultiscaleConfig().build(3, (16, 32))
    with pytest.raises(ValueError, match=r"unet of depth 3 needs sides that are multiples of 8, got 32x36"):
        UNetConfig().build(3, (32, 36))


@pytest.mark.parametrize("depth", [1, None])
def test_unet_gives_one_logit_an_image_and_one_a_pixel(depth: int | None) -> None:
    judgement = UNetConfig(width=4, depth=depth).build(3, (32, 48))(torch.rand(2, 3, 32, 48))
    assert [tuple(logits.shape) for logits in judgement.logits] == [(2, 1), (2, 1, 32, 48)]
    assert tuple(judgement.features[-1].shape[-2:]) == ((16, 24) if depth else (4, 6))


def test_a_pixels_logit_looks_at_its_neighbourhood_most() -> None:
    torch.manual_seed(0)
    discriminator = UNetConfig(width=8).build(3, (32, 32))
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    discriminator(images).logits[1][0, 0, 8, 8].backward()
    assert images.grad is not None
    slope = images.grad.abs().sum(1)[0]
    assert slope[4:13, 4:13].mean() > 3 * slope[20:, 20:].mean()
