"""Scales and phi of the multi-scale quantizer; groups of the product quantizer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import tokenizers_vq as tvq
from tokenizers_vq.config import ConfigError
from tokenizers_vq.quantizers import MultiscaleQuantizer, ProductQuantizer
from tokenizers_vq.quantizers.multiscale import phi_of_scale, stretched


def test_the_published_scales_take_the_published_phis() -> None:
    # Scales 2 and 7 lie between two ticks, at 2/9 and 7/9: there the reference's rounding decides.
    assert phi_of_scale(10, 4) == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert phi_of_scale(10, 1) == [0] * 10
    assert phi_of_scale(7, 7) == list(range(7))
    assert phi_of_scale(1, 4) == [0]


def test_a_tie_goes_where_float64_rounds_it() -> None:
    assert phi_of_scale(5, 4)[2] == 2  # 1/2 lies between 13/36 and 23/36
    assert phi_of_scale(3, 4) == [0, 2, 3]


def test_a_phi_that_no_scale_takes_gets_a_gradient_of_zero() -> None:
    quantizer = MultiscaleQuantizer(scales=(1, 2, 3), num_codes=8, dim=4, phis=4)
    result = quantizer(torch.randn(2, 4, 3, 3))
    gradients = torch.autograd.grad(sum(result.losses.values()), list(quantizer.phis.parameters()))
    assert [bool(g.abs().sum() > 0) for g in gradients] == [True, True, False, False, True, True, True, True]


def test_losses_are_means_over_the_partial_sums() -> None:
    quantizer, z = MultiscaleQuantizer(scales=(1, 2, 4), num_codes=16, dim=4, phis=0, beta=0.5).eval(), torch.zeros(())
    with torch.no_grad():
        quantizer.codebook.weight.normal_()
    z = torch.randn(2, 4, 4, 4)
    result, total, wanted = quantizer(z), torch.zeros_like(z), []
    for codes in result.codes:
        vectors = quantizer.codebook.lookup(codes)
        total = total + (F.interpolate(vectors, size=(4, 4), mode="bicubic") if codes.shape[1] < 4 else vectors)
        wanted.append(F.mse_loss(total, z))
    assert torch.isclose(result.losses["codebook"], torch.stack(wanted).mean())
    assert torch.isclose(result.losses["commitment"], 0.5 * torch.stack(wanted).mean())


def test_grids_that_are_not_the_last_scale_are_refused() -> None:
    quantizer = MultiscaleQuantizer(scales=(1, (2, 3), (4, 6)), num_codes=8, dim=4)
    assert quantizer.layout((4, 6)).length == 1 + 6 + 24
    with pytest.raises(ValueError, match="scales end in a grid of 4x6, the features' is 4x4"):
        quantizer.encode(torch.zeros(1, 4, 4, 4))
    with pytest.raises(ValueError, match=r"one .* a scale"):
        quantizer.lookup(torch.zeros(1, 4, 6, dtype=torch.long))
    with pytest.raises(ConfigError, match="scales: the last must be the largest, 2x2 is not"):
        MultiscaleQuantizer(scales=(1, 3, 2))


def test_codes_of_an_image_depend_on_no_other_image() -> None:
    quantizer = MultiscaleQuantizer(scales=(1, 2, 3, 4, 6, 8), num_codes=64, dim=8).eval()
    with torch.no_grad():
        quantizer.codebook.weight.normal_(std=0.3)
    z = torch.randn(8, 8, 8, 8)
    together, alone = quantizer.encode(z), [quantizer.encode(row[None]) for row in z]
    for scale, codes in enumerate(together):
        assert torch.equal(codes, torch.cat([own[scale] for own in alone]))


def test_groups_quantize_their_own_channels() -> None:
    quantizer = ProductQuantizer(groups=2, num_codes=(16, 8), dim=6)
    z = torch.randn(3, 6, 2, 5)
    codes = quantizer.encode(z)
    other = torch.cat([z[:, :3], torch.randn(3, 3, 2, 5)], dim=1)
    assert torch.equal(quantizer.encode(other)[..., 0], codes[..., 0])
    assert quantizer.layout((2, 5)).sizes == (16, 8)
    with pytest.raises(ConfigError, match="groups: 4 groups do not divide the width 6"):
        ProductQuantizer(groups=4, dim=6)
    with pytest.raises(ConfigError, match="num_codes: 3 numbers for 2 groups"):
        ProductQuantizer(groups=2, num_codes=(8, 8, 8), dim=6)
    assert ProductQuantizer(groups=1, dim=6)(z).codes.shape == (3, 2, 5)


def test_scales_are_stretched_to_another_grid() -> None:
    published = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    grids = tuple((side, side) for side in published)
    assert stretched(grids, (16, 16)) == grids
    for grid, heights, widths in (
        # beside the scales published for 512 px: 1 2 3 4 6 9 13 18 24 32
        ((32, 32), (1, 2, 4, 6, 7, 9, 13, 18, 25, 32), (1, 2, 4, 6, 7, 9, 13, 18, 25, 32)),
        ((24, 24), (1, 2, 4, 5, 6, 8, 11, 14, 19, 24), (1, 2, 4, 5, 6, 8, 11, 14, 19, 24)),
        ((8, 8), (1, 2, 2, 3, 3, 4, 5, 6, 7, 8), (1, 2, 2, 3, 3, 4, 5, 6, 7, 8)),
        ((16, 32), published, (1, 2, 4, 6, 7, 9, 13, 18, 25, 32)),
        ((1, 4), (1,) * 10, (1, 1, 2, 2, 2, 2, 3, 3, 4, 4)),
    ):
        assert stretched(grids, grid) == tuple(zip(heights, widths, strict=True)), grid
    assert stretched(((1, 2), (4, 4), (16, 8)), (32, 8)) == ((1, 2), (6, 4), (32, 8))
    assert stretched(((1, 1),), (3, 5)) == ((3, 5),)


@torch.no_grad()
def test_a_tokenizer_is_resized_with_its_scales() -> None:
    narrow = ["encoder.width=8", "decoder.width=8", "encoder.latent_width=8", "decoder.latent_width=8", "image_size=32"]
    made = tvq.create("var-tiny-64", [*narrow, "quantizer.scales=[1, 2, 4]"]).eval()
    with pytest.raises(ValueError, match=r"the scales end in a grid of 4x4, .* with tokenizer.resized\(image_size\)"):
        made.encode(torch.zeros(1, 3, 64, 32))
    wide = made.resized((64, 32))
    assert wide.code_layout().grids == ((1, 1), (3, 2), (8, 4)) and wide.config.size == (64, 32) and not wide.training
    assert all(torch.equal(value, wide.state_dict()[name]) for name, value in made.state_dict().items())
    images = torch.randn(2, 3, 64, 32).clamp(-1, 1)
    assert wide.decode(wide.encode(images)).shape == images.shape
    again = wide.resized(32)
    assert again.code_layout().grids == ((1, 1), (2, 2), (4, 4)) and again.fingerprint == made.fingerprint
    with pytest.raises(ValueError, match="stride"):
        made.resized(33)
    with torch.device("meta"):
        plain = tvq.create("vqvae2-tiny-64").resized(32)
        assert plain.code_layout().grids == ((4, 4), (8, 8))
        for name, size, says in (
            ("vit-vqgan-tiny-64", 128, "its weights hold places of images of 64x64"),
            ("titok-tiny-64", 128, "64 codes stand for images of 64x64, got 128x128"),
            ("vqvae2-tiny-64", 33, "not divisible by"),
        ):
            with pytest.raises(ValueError, match=says):
                tvq.create(name).resized(size)
