"""Tiles: exact where the receptive field fits into the overlap, and never wrong in size or place."""

from __future__ import annotations

import pytest
import torch

import tokenizers_vq as tvq
from tokenizers_vq.encoding import BatchEncoder
from tokenizers_vq.tiling import encode_tiled, spans


@pytest.mark.parametrize("length", [1, 7, 8, 9, 12, 13, 31, 64])
@pytest.mark.parametrize("tile", [4, 8, 11])
def test_spans_cover_once_with_context(length, tile) -> None:
    kept = [place for span in spans(length, tile) for place in range(span.first, span.last)]
    assert kept == list(range(length))
    for low, high, first, last in spans(length, tile):
        assert 0 <= low <= first < last <= high <= length
        assert high - low == min(tile, length)
        assert first - low >= min(tile // 4, first)
        assert high - last >= min(tile // 4, length - last)


@pytest.mark.parametrize("size", [(96, 160), (88, 64), (64, 64)])
def test_tiles_of_a_convolutional_network_are_exact(size) -> None:
    # VQ-VAE has neither normalisation nor attention; 16 px of context a side cover its receptive field
    tokenizer = tvq.create("vqvae-tiny-64", ["encoder.width=16", "decoder.width=16"]).eval()
    images = torch.rand(2, 3, *size) * 2 - 1
    whole = BatchEncoder(tokenizer, device="cpu", precision="fp32", image_size=size)
    tiled = BatchEncoder(tokenizer, device="cpu", precision="fp32", image_size=size, tile=64)
    tokens = whole.encode(images)
    assert (tiled.encode(images) == tokens).float().mean() > 0.999  # ties may turn with the order of sums
    torch.testing.assert_close(tiled.decode(tokens), whole.decode(tokens), atol=1e-5, rtol=0)


def test_tiles_that_do_not_fit_are_refused() -> None:
    tokenizer = tvq.create("vqvae-tiny-64", ["encoder.width=16", "decoder.width=16"]).eval()
    images = torch.zeros(1, 3, 64, 64)
    with pytest.raises(ValueError, match="30"):
        encode_tiled(tokenizer, images, 30)
    with pytest.raises(ValueError, match="leaves no overlap"):
        encode_tiled(tokenizer, images, 8)
