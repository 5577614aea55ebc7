"""Networks: parameter counts of the published configurations, sizes, channels, contracts."""

from __future__ import annotations

import pytest
import torch

import tokenizers_vq as tvq
from tokenizers_vq.networks.emu3 import Emu3Decoder, Emu3Encoder
from tokenizers_vq.networks.vit import VitDecoder, VitEncoder
from tokenizers_vq.networks.vqgan import SpatialNorm, VqganDecoder, VqganEncoder
from tokenizers_vq.networks.vqvae import VqvaeDecoder, VqvaeEncoder

NARROW = {"width": 8, "groups": 4, "multipliers": (1, 2, 2), "blocks": 1, "latent_width": 8}
FAMILIES = {
    "vqgan": lambda c: (VqganEncoder(dim=4, channels=c, **NARROW), VqganDecoder(dim=4, channels=c, **NARROW)),
    "movq": lambda c: (
        VqganEncoder(dim=4, channels=c, **NARROW),
        VqganDecoder(dim=4, channels=c, **NARROW, norm="spatial", heads=2, attention=(1,)),
    ),
    "vqgan with adaptive kernels": lambda c: (
        VqganEncoder(dim=4, channels=c, **NARROW),
        VqganDecoder(dim=4, channels=c, **NARROW, kernels=3, heads=2, attention=(1,), attention_score="l2"),
    ),
    "emu3": lambda c: tuple(
        part(dim=4, channels=c, frames=2, **{**NARROW, "latent_width": None}) for part in (Emu3Encoder, Emu3Decoder)
    ),
    "vqvae": lambda c: (VqvaeEncoder(dim=4, channels=c, width=8), VqvaeDecoder(dim=4, channels=c, width=8)),
    "vit": lambda c: tuple(
        part(dim=4, channels=c, image_size=(8, 16), patch=4, width=16, layers=2, heads=2)
        for part in (VitEncoder, VitDecoder)
    ),
    "vit with overlap": lambda c: (
        VitEncoder(dim=4, channels=c, image_size=(8, 16), patch=4, width=16, layers=2, heads=2),
        VitDecoder(dim=4, channels=c, image_size=(8, 16), patch=4, width=16, layers=1, heads=2, overlap=3),
    ),
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


@pytest.mark.parametrize(
    ("preset", "encoder", "decoder", "printed"),
    # Encoder: patches 192 d + d, positions 1024 d, blocks 12 d^2 + 13 d, norm 2 d, tanh head 8 d^2 + 5 d, and the
    # factorisation 32 d + 32; the decoder's head gives 2C channels. The paper prints 32M, 91M and 599M for an encoder
    # without saying what it counts: small comes to 4 M less, large (heads of 80 wide) to 45 M more.
    [
        ("vit-vqgan-small", 27_959_328, 28_057_984, 32e6),
        ("vit-vqgan-base", 90_737_696, 90_885_504, 91e6),
        ("vit-vqgan-large", 27_959_328, 644_639_104, 599e6),
    ],
)
def test_the_published_vits_have_their_parameters(preset: str, encoder: int, decoder: int, printed: float) -> None:
    with torch.device("meta"):
        tokenizer = tvq.create(preset)
    assert parameters(tokenizer.encoder) == encoder
    assert parameters(tokenizer.decoder) == decoder
    assert tokenizer.code_layout().grids == ((32, 32),) and tokenizer.code_layout().sizes == (8192,)
    assert abs(decoder / printed - 1) < 0.13


def test_by_hand_an_encoders_parameters_are_its_parts() -> None:
    d, layers, patch, dim, positions = 512, 8, 8, 32, 1024
    block = 4 * d * d + 4 * d + 8 * d * d + 5 * d + 4 * d
    head = 8 * d * d + 5 * d
    embedding = 3 * patch**2 * d + d + positions * d
    with torch.device("meta"):
        encoder = VitEncoder(dim=dim)
    assert parameters(encoder) == embedding + layers * block + 2 * d + head + dim * d + dim


def test_heads_of_64_make_the_large_vit_smaller() -> None:
    with torch.device("meta"):
        encoder = VitEncoder(dim=32, width=1280, layers=32, heads=16, head_width=64)
    assert parameters(encoder) == 602_425_376


@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_positions_interpolate_to_other_sizes(positions: str) -> None:
    encoder = VitEncoder(dim=4, image_size=(16, 32), patch=4, width=32, layers=1, heads=2, positions=positions)
    own = encoder.trunk._positions((4, 8))
    assert own is encoder.trunk.positions
    larger = encoder.trunk._positions((8, 16))
    assert larger.shape == (1, 128, 32)
    back = torch.nn.functional.interpolate(
        larger.reshape(1, 8, 16, 32).permute(0, 3, 1, 2), size=(4, 8), mode="bilinear", antialias=True
    )
    assert (
        torch.nn.functional.cosine_similarity(back.flatten(), own.reshape(4, 8, 32).permute(2, 0, 1).flatten(), 0) > 0.9
    )


def test_encoder_and_decoder_may_differ_in_size() -> None:
    tokenizer = tvq.create("vit-vqgan-tiny-64", ["encoder.layers=1", "decoder.width=64", "decoder.heads=4"])
    assert tokenizer.decode(tokenizer.encode(torch.zeros(1, 3, 64, 64))).shape == (1, 3, 64, 64)


@pytest.mark.parametrize(("overrides", "message"), [
    (["encoder.heads=3"], "encoder.heads: 3 heads do not divide the width 128"),
    (["pixels.low=0.0"], r"pixels: a logit-Laplace decoder needs pixels inside \(0, 1\)"),
    (["encoder.positions=sincos", "encoder.width=126"], "encoder.width: sincos positions need a width divisible by 4"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tvq.create("vit-vqgan-tiny-64", overrides)


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
        tolerance = (
            1e-6 if family.startswith("vit") else 0.0
        )  # its products may be another library's, which round otherwise
        assert torch.allclose(decoder(encoder(pixels)), with_graph, rtol=0, atol=tolerance)


def test_a_spatial_norm_reads_the_code_at_its_place() -> None:
    norm = SpatialNorm(3, 2, 4)
    x, code = torch.randn(2, 4, 6, 8), torch.randn(2, 3, 3, 4)
    shown = torch.nn.functional.interpolate(code, size=(6, 8), mode="nearest")
    expected = torch.nn.functional.group_norm(x, 2, eps=1e-6) * norm.scale(shown) + norm.bias(shown)
    assert torch.allclose(norm(x, code), expected, atol=1e-6)


def test_emu3s_first_frame_sees_no_later_one() -> None:
    _, decoder = FAMILIES["emu3"](3)
    clip = torch.randn(1, 4, 5, 2, 2)
    later = torch.cat([clip[:, :, :3], torch.randn(1, 4, 2, 2, 2)], dim=2)
    layer = decoder.time_up[0]
    assert torch.allclose(layer(clip)[:, :, :3], layer(later)[:, :, :3], atol=1e-6)


@pytest.mark.parametrize("half", [False, True])
def test_fused_attention_is_left_where_a_cpu_computes_in_bfloat16(half: bool) -> None:
    attention = VitEncoder(dim=4, image_size=(16, 16), patch=4, width=16, layers=1, heads=2).trunk.blocks[0].attn
    tokens = torch.randn(2, 16, 16)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        assert attention.fused is not half
        ours = attention(tokens)
        attention.may_fuse = False
        assert not attention.fused
        assert torch.allclose(attention(tokens), ours, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_features_are_linear_in_the_encoders_last_weight(family: str) -> None:
    encoder = FAMILIES[family](3)[0].eval()
    size = (2, 3, 16, 32) if family != "vit" else (2, 3, 8, 16)
    pixels, weight, found = torch.rand(size), encoder.last, []
    before = weight.detach().clone()
    with torch.no_grad():
        for factor in (0.0, 1.0, 2.0):
            weight.copy_(factor * before)
            found.append(encoder(pixels))
    torch.testing.assert_close(found[2] - found[1], found[1] - found[0], rtol=1e-3, atol=1e-5)
    assert not torch.allclose(found[1], found[0])
