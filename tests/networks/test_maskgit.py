"""MaskGIT's VQGAN: its shortcut, its size, and images of any size."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

import tokenizers_vq as tvq
from tokenizers_vq.networks.maskgit import MaskgitDecoder, MaskgitEncoder

SMALL = {"width": 8, "multipliers": (1, 3, 2), "blocks": 2, "groups": 4}


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def block(width_in: int, width_out: int) -> int:
    """Two norms, two 3x3 without bias, and where the width changes the 1x1 on the output."""
    shortcut = width_out**2 if width_in != width_out else 0
    return 2 * width_in + 2 * width_out + 9 * width_in * width_out + 9 * width_out**2 + shortcut


def coder(widths: list[int], blocks: int) -> int:
    """Levels that take `widths[i]` to `widths[i + 1]`, and the middle is left to the caller."""
    return sum(block(before, width) + (blocks - 1) * block(width, width) for before, width in pairwise(widths))


def decoder_parameters() -> int:
    """The published decoder, counted by hand."""
    first = 9 * 256 * 512 + 512
    up = coder([512, 512, 256, 256, 128, 128], 2) + sum(9 * width**2 + width for width in (512, 256, 256, 128))
    return first + 2 * block(512, 512) + up + 2 * 128 + 9 * 128 * 3 + 3


def test_the_published_sizes_parameters_are_the_references() -> None:
    # By arithmetic from the classes Encoder, Decoder and VectorQuantizer of bytedance/1d-tokenizer at be0b076,
    # modeling/modules/maskgit_vqgan.py, at the configuration of modeling/titok.py; recorded cases hold the classes.
    with torch.device("meta"):
        tokenizer = tvq.create("maskgit-f16-1024")
    encoder = 27 * 128 + coder([128, 128, 128, 256, 256, 512], 2) + 2 * block(512, 512) + 2 * 512 + 512 * 256 + 256
    assert parameters(tokenizer.encoder) == encoder
    assert parameters(tokenizer.decoder) == decoder_parameters()
    assert parameters(tokenizer) == encoder + 1024 * 256 + decoder_parameters() == 54_515_587


@pytest.mark.parametrize("shortcut", ["output", "input"])
def test_where_the_width_changes_the_shortcut_reads_what_its_name_says(shortcut: str) -> None:
    encoder = MaskgitEncoder(dim=4, shortcut=shortcut, **SMALL)
    changing = encoder.levels[1][0]
    assert changing.shortcut.weight.shape[:2] == (24, 24 if shortcut == "output" else 8)
    x = torch.randn(2, 8, 6, 10)
    h = changing.conv2(F.silu(changing.norm2(changing.conv1(F.silu(changing.norm1(x))))))
    expected = h + changing.shortcut(h if shortcut == "output" else x)
    assert torch.allclose(changing(x), expected, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(changing(x.clone()), expected, atol=1e-6)  # in place there


def test_any_size_that_the_stride_divides() -> None:
    encoder, decoder = MaskgitEncoder(dim=4, channels=5, **SMALL), MaskgitDecoder(dim=4, channels=5, **SMALL)
    with torch.no_grad():
        features = encoder(torch.randn(1, 5, 12, 20))
        assert features.shape == (1, 4, *encoder.grid(12, 20)) == (1, 4, 3, 5)
        assert decoder(features).shape == (1, 5, 12, 20)
    with pytest.raises(ValueError, match="not divisible by the stride 4"):
        encoder.grid(14, 20)
    with pytest.raises(ValueError, match="3 groups do not divide"):
        MaskgitEncoder(dim=4, **{**SMALL, "groups": 3})
