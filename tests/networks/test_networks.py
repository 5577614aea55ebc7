"""Networks: parameter counts of the published configurations, sizes, channels, contracts."""

from __future__ import annotations

import pytest
import torch

import tokenizers_vq as tvq
from tokenizers_vq.networks.vqgan import VqganDecoder, VqganEncoder
from tokenizers_vq.networks.vqvae import VqvaeDecoder, VqvaeEncoder

NARROW = {"width": 8, "groups": 4, "multipliers": (1, 2, 2), "blocks": 1, "latent_width": 8}
FAMILIES = {
    "vqgan": lambda c: (VqganEncoder(dim=4, channels=c, **NARROW), VqganDecoder(dim=4, channels=c, **NARROW)),
    "vqvae": lambda c: (VqvaeEncoder(dim=4, channels=c, width=8), VqvaeDecoder(dim=4, channels=c, width=8)),
}


def parameters(*modules: torch.nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def test_the_f16_vqgan_has_the_parameters_of_tamings_classes() -> None:
    # taming.modules.diffusionmodules.model.Encoder and Decoder at commit 3ba01b2, built from
    # configs/imagenet_vqgan.yaml, and VQModel's two 1x1 convolutions of 256 channels.
    with torch.device("meta"):
        tokenizer = tvq.create("vqgan-f16-1024")
    convolution = 256 * 256 + 256
    assert parameters(tokenizer.encoder) == 29_298_176 + convolution
    assert parameters(tokenizer.decoder) == 42_449_795 + convolution


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_any_size_that_the_stride_divides(family: str, channels: int) -> None:
    encoder, decoder = FAMILIES[family](channels)
    for height, width in [(8, 8), (16, 24), (4, 20)]:
        pixels = torch.rand(2, channels, height, width)
        features = encoder(pixels)
        assert features.shape == (2, 4, *encoder.grid(height, width)) == (2, 4, height // 4, width // 4)
        assert decoder.render(decoder(features)).shape == pixels.shape


@pytest.mark.parametrize("family", FAMILIES)
def test_other_sizes_are_refused_with_the_nearest_ones(family: str) -> None:
    encoder, _ = FAMILIES[family](3)
    with pytest.raises(ValueError, match=r"10x8 is not divisible by the stride 4.*height of 8 or 12 and a width of 8"):
        encoder.grid(10, 8)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_is_the_last_linear_map(family: str) -> None:
    _, decoder = FAMILIES[family](3)
    features = torch.rand(1, 4, 2, 2)
    with torch.no_grad():
        before = decoder(features)
        decoder.head.weight.mul_(2)
        decoder.head.bias.mul_(2)
        assert torch.allclose(decoder(features), before * 2, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_autograd_in_place_operations_change_no_value(family: str) -> None:
    encoder, decoder = FAMILIES[family](3)
    pixels = torch.rand(1, 3, 16, 16)
    with_graph = decoder(encoder(pixels))
    with torch.no_grad():
        assert torch.equal(decoder(encoder(pixels)), with_graph)
