"""Tiles: exact where the receptive field fits into the overlap, and never wrong in size or place."""

from __future__ import annotations

import pytest
import torch

import tokenizers_vq as tvq
from tokenizers_vq.encoding import BatchEncoder
from tokenizers_vq.tiling import auto_tile, encode_tiled, spans


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


@pytest.mark.parametrize(
    ("name", "overrides", "size", "tile"),
    [
        ("vit-vqgan-tiny-64", [], (512, 512), None),
        ("vit-vqgan-tiny-64", [], (64, 1024), 256),
        ("vqgan-tiny-64", ["image_size=256"], (2048, 2048), 512),
        ("vqvae-tiny-64", [], (1024, 1024), None),
        ("vqvae-tiny-64", [], (2048, 64), 1024),
        ("titok-tiny-64", [], (64, 64), None),
    ],
)
def test_auto_tiles_where_attention_or_memory_would_grow(name, overrides, size, tile) -> None:
    tokenizer = tvq.create(name, overrides)
    assert auto_tile(tokenizer, *size) == tile
    if tile:
        assert tokenizer.code_layout(tile, tile).grids[0][0] % 4 == 0


def test_auto_equals_the_tile_that_it_takes() -> None:
    tokenizer = tvq.create("vit-vqgan-tiny-64", ["encoder.layers=1", "decoder.layers=1"]).eval()
    images = torch.rand(1, 3, 64, 1024) * 2 - 1
    auto, given = (BatchEncoder(tokenizer, device="cpu", image_size=(64, 1024), tile=tile) for tile in ("auto", 256))
    tokens = auto.encode(images)
    assert torch.equal(tokens, given.encode(images))
    assert torch.equal(auto.decode(tokens), given.decode(tokens))
    with pytest.raises(ValueError, match="side in pixels, auto"):
        BatchEncoder(tokenizer, device="cpu", tile="some")  # type: ignore[arg-type]
