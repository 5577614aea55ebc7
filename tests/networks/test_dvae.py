"""DALL-E's discrete VAE: published parameter counts, sizes, what its parts compute."""

from __future__ import annotations

import pytest
import torch

import tokenizers_vq as tvq
from tokenizers_vq.networks.dvae import BottleneckBlock, DvaeDecoder, DvaeEncoder

NARROW = {"width": 8, "multipliers": (1, 2, 3), "blocks": 2}


def count(*modules: torch.nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def test_the_published_model_has_the_parameters_of_its_classes() -> None:
    # dall_e.encoder.Encoder and dall_e.decoder.Decoder of openai/DALL-E at their defaults: n_hid 256, 2 blocks a group,
    # n_init 128, vocabulary 8192. The decoder's first convolution is our codebook and the decoder's bias.
    def conv(before: int, after: int, kernel: int) -> int:
        return before * after * kernel**2 + after

    def group(before: int, after: int, kernels: tuple[int, ...]) -> int:
        total = conv(before, after, 1) if before != after else 0
        for first in (before, after):
            widths = [first, *[after // 4] * 3, after]
            total += sum(conv(*pair) for pair in zip(widths, widths[1:], kernels, strict=False))
        return total

    widths = [256, 512, 1024, 2048]
    encoder = conv(3, 256, 7) + conv(2048, 8192, 1)
    encoder += sum(group(a, b, (3, 3, 3, 1)) for a, b in zip([256, *widths], widths, strict=False))
    decoder = conv(8192, 128, 1) + conv(256, 6, 1)
    decoder += sum(group(a, b, (1, 3, 3, 3)) for a, b in zip([128, *reversed(widths)], reversed(widths), strict=False))
    with torch.device("meta"):
        tokenizer = tvq.create("dvae-f8")
    assert count(tokenizer.encoder) == encoder == 53_786_240
    assert count(tokenizer.decoder, tokenizer.quantizer) == decoder == 43_829_766
    assert tokenizer.code_layout().grids == ((32, 32),) and tokenizer.code_layout().sizes == (8192,)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_any_size_that_the_stride_divides(channels: int) -> None:
    encoder, decoder = DvaeEncoder(dim=6, channels=channels, **NARROW), DvaeDecoder(dim=6, channels=channels, **NARROW)
    for height, width in [(8, 8), (16, 24), (4, 20)]:
        pixels = torch.rand(2, channels, height, width)
        features = encoder(pixels)
        assert features.shape == (2, 6, *encoder.grid(height, width)) == (2, 6, height // 4, width // 4)
        assert decoder.render(decoder(features)).shape == pixels.shape
    with pytest.raises(ValueError, match=r"10x8 is not divisible by the stride 4.*height of 8 or 12 and a width of 8"):
        encoder.grid(10, 8)


def test_a_block_adds_a_small_part_to_its_input() -> None:
    block = BottleneckBlock(8, 8, (3, 3, 3, 1), gain=0.25)
    x = torch.randn(1, 8, 4, 4)
    whole = block(x) - x
    block.gain = 1.0
    assert torch.allclose(block(x) - x, 4 * whole, atol=1e-5)
    encoder = DvaeEncoder(dim=6, **NARROW)
    assert {part.gain for part in encoder.modules() if isinstance(part, BottleneckBlock)} == {1 / 36}


def test_the_decoder_of_one_hot_codes_is_a_convolution_first() -> None:
    decoder = DvaeDecoder(dim=6, **NARROW)
    torch.nn.init.normal_(decoder.bias)
    book, codes = torch.randn(10, 6), torch.randint(10, (2, 3, 5))
    one_hot = torch.nn.functional.one_hot(codes, 10).permute(0, 3, 1, 2).float()
    first = torch.nn.functional.conv2d(one_hot, book.T[:, :, None, None], decoder.bias)
    with torch.no_grad():
        looked_up = decoder(book[codes].permute(0, 3, 1, 2))
        decoder.bias.zero_()
        assert torch.allclose(decoder(first), looked_up, atol=1e-6)


def test_a_block_too_narrow_is_refused() -> None:
    with pytest.raises(ValueError, match="width: a level of 3 channels leaves none inside a block"):
        DvaeEncoder(dim=6, width=3, multipliers=(1, 2))
