"""PatchGAN beyond the recorded tensors: sizes, norms, initial weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tokenizers_vq.discriminators import PatchGANConfig
from tokenizers_vq.discriminators.patchgan import PatchGAN
from tokenizers_vq.networks.normalisation import BatchNorm2d


@pytest.mark.parametrize(("layers", "size"), [(1, 6), (2, 12), (3, 24)])
def test_smallest_image_gives_one_patch_and_smaller_is_refused(layers: int, size: int) -> None:
    discriminator = PatchGAN(3, width=4, layers=layers)
    assert discriminator(torch.rand(2, 3, size, size)).logits[0].shape == (2, 1, 1, 1)
    with pytest.raises(ValueError, match=f"at least {size}x{size}, got {size}x{size - 1}"):
        discriminator(torch.rand(2, 3, size, size - 1))


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("norm", ["batch", "spectral", "none"])
def test_shapes_and_gradients(channels: int, norm: str) -> None:
    discriminator = PatchGANConfig(width=4, layers=3, norm=norm).build(channels=channels)
    judgement = discriminator(torch.rand(2, channels, 32, 48))
    assert [tuple(logits.shape) for logits in judgement.logits] == [(2, 1, 2, 4)]
    assert [features.shape[1] for features in judgement.features] == [4, 8, 16, 32]
    judgement.logits[0].square().sum().backward()
    assert all(parameter.grad is not None for parameter in discriminator.parameters())


def test_widths_stop_doubling_at_eight() -> None:
    judgement = PatchGAN(3, width=2, layers=5)(torch.rand(1, 3, 96, 96))
    assert [features.shape[1] for features in judgement.features] == [2, 4, 8, 16, 16, 16]


def test_initial_weights_and_no_bias_before_a_batch_norm() -> None:
    discriminator = PatchGAN()
    convolutions = [module for module in discriminator.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in discriminator.modules() if isinstance(module, BatchNorm2d)]
    assert [conv.bias is not None for conv in convolutions] == [True, False, False, False, True]
    assert all(conv.weight.std().item() == pytest.approx(0.02, rel=0.1) for conv in convolutions)
    assert torch.cat([norm.weight for norm in norms]).std().item() == pytest.approx(0.02, rel=0.2)
    assert torch.cat([norm.weight for norm in norms]).mean().item() == pytest.approx(1, abs=0.01)


def test_spectral_norm_bounds_every_convolution() -> None:
    discriminator = PatchGAN(3, width=4, layers=2, norm="spectral")
    images = torch.rand(1, 3, 32, 32)
    for _ in range(200):  # one power iteration a training forward
        discriminator(images)
    discriminator.eval()
    convolutions = [module for module in discriminator.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 4
    for conv in convolutions:
        assert torch.linalg.matrix_norm(conv.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)
        assert conv.bias is not None
    assert torch.equal(discriminator(images).logits[0], discriminator(images).logits[0])
