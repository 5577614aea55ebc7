"""Open-MAGVIT2's networks, and the published sizes of Open-MAGVIT2, IBQ and Cosmos."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import tokenizers_vq as tvq
from tokenizers_vq.networks.magvit2 import AdaptiveGroupNorm, Magvit2Decoder, Magvit2Encoder, PixelShuffleUpsample

NARROW = {"width": 8, "groups": 4, "multipliers": (1, 2, 3), "blocks": 2}


def parameters(*modules: torch.nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.mark.parametrize(
    ("preset", "encoder", "decoder", "codes", "grid"),
    [
        # SEED-Voken at commit b9a17ea: Open_MAGVIT2's improved_model.Encoder and Decoder, built from
        # configs/Open-MAGVIT2/gpu/imagenet_lfqgan_256_L.yaml (its 18 bits have no parameters).
        ("open-magvit2-f16", 49_751_442, 65_376_387, 2**18, 16),
        # The same commit: IBQ's model.Encoder and Decoder from configs/IBQ/gpu/imagenet_ibqgan_16384.yaml, and two
        # 1x1 convolutions of 256 channels.
        ("ibq-f16-16384", 46_752_256 + 65_792, 59_903_875 + 65_792, 16384, 16),
        # Cosmos-Tokenizer at commit 3584ae7: DiscreteImageTokenizer from networks/configs.py, encoder with quant_conv
        # and decoder with post_quant_conv; 83,723,958 in all, and 79,004,342 at a spatial compression of 8.
        ("cosmos-di16x16", 34_621_062, 49_102_896, 64000, 64),
        ("cosmos-di8x8", 32_261_254, 46_743_088, 64000, 128),
    ],
)
def test_published_sizes_are_the_references(preset: str, encoder: int, decoder: int, codes: int, grid: int) -> None:
    with torch.device("meta"):
        tokenizer = tvq.create(preset)
    assert parameters(tokenizer.encoder) == encoder
    assert parameters(tokenizer.decoder) == decoder
    layout = tokenizer.code_layout()
    assert layout.sizes == (codes,) and layout.grids == ((grid, grid),)


def test_the_norm_is_conditioned_on_mean_and_deviation_of_the_code() -> None:
    norm, x, code = AdaptiveGroupNorm(5, 8, groups=4), torch.randn(2, 8, 6, 4), torch.randn(2, 5, 3, 2)
    scale = norm.scale(torch.sqrt(code.flatten(2).var(-1) + 1e-6))
    shift = norm.bias(code.mean((2, 3)))
    expected = F.group_norm(x, 4, eps=1e-6) * scale.view(2, 8, 1, 1) + shift.view(2, 8, 1, 1)
    assert torch.allclose(norm(x, code), expected, atol=1e-6)


def test_a_code_of_one_position_has_no_deviation_rather_than_nan() -> None:
    decoder = Magvit2Decoder(dim=3, **NARROW)
    assert torch.isfinite(decoder(torch.randn(1, 3, 1, 1))).all()


def test_upsampling_lays_out_channel_groups_as_pixels() -> None:
    upsample = PixelShuffleUpsample(2)
    with torch.no_grad():
        upsample.conv.weight.zero_()
        upsample.conv.bias.copy_(torch.arange(8.0))
    assert upsample(torch.zeros(1, 2, 1, 1))[0].tolist() == [[[0, 2], [4, 6]], [[1, 3], [5, 7]]]


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_any_size_and_channels_that_the_stride_divides(channels: int) -> None:
    encoder, decoder = (
        Magvit2Encoder(dim=3, channels=channels, **NARROW),
        Magvit2Decoder(dim=3, channels=channels, **NARROW),
    )
    x = torch.randn(2, channels, 12, 20)
    z = encoder(x)
    assert z.shape == (2, 3, *encoder.grid(12, 20)) == (2, 3, 3, 5)
    y = decoder(z)
    assert y.shape == x.shape
    y.square().mean().backward()
    assert all(parameter.grad is not None for module in (encoder, decoder) for parameter in module.parameters())
    with pytest.raises(ValueError, match="height of 8 or 12"):
        encoder.grid(11, 20)
