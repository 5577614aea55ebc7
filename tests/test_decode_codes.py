"""What `decode` takes for codes: integers of any width, as shards hold them; never floats or booleans."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tokenizers_vq as tvq
from tokenizers_vq.encoding import BatchEncoder

SMALL = {
    "vqvae-tiny-64": ["encoder.width=16", "decoder.width=16", "quantizer.num_codes=16", "image_size=16"],
    "vqvae2-tiny-64": [],
}


@pytest.fixture(scope="module", params=SMALL)
def encoder(request: pytest.FixtureRequest) -> BatchEncoder:
    torch.manual_seed(0)
    return BatchEncoder(tvq.create(request.param, SMALL[request.param]), device="cpu")


def test_codes_of_shards_are_taken(encoder: BatchEncoder) -> None:
    tokens = torch.arange(2 * encoder.layout.length).view(2, -1) % 16
    small = tokens.numpy().astype(np.uint16)
    wanted = encoder.decode(tokens)
    assert torch.equal(encoder.decode(torch.from_numpy(small)), wanted)
    assert torch.equal(encoder.decode(small), wanted)  # type: ignore[arg-type]
    codes, layout = encoder.layout.unflatten(tokens), encoder.layout
    for kind in (torch.uint8, torch.uint16, torch.int32):
        parts = tuple(part.to(kind) for part in (codes if isinstance(codes, tuple) else (codes,)))
        given = parts if len(layout.grids) > 1 else parts[0]
        assert torch.equal(encoder.tokenizer.decode(given), encoder.tokenizer.decode(codes))


@pytest.mark.parametrize("kind", [torch.float32, torch.bool])
def test_floats_and_bools_are_refused(encoder: BatchEncoder, kind: torch.dtype) -> None:
    tokens = torch.zeros(2, encoder.layout.length, dtype=kind)
    with pytest.raises(ValueError, match=f"codes must be int64, got {kind}"):
        encoder.decode(tokens)
    with pytest.raises(ValueError, match=f"codes must be int64, got {kind}"):
        codes = encoder.layout.unflatten(tokens.long())
        parts = tuple(part.to(kind) for part in (codes if isinstance(codes, tuple) else (codes,)))
        encoder.tokenizer.decode(parts if len(parts) > 1 else parts[0])


def test_no_images_decode_to_none(encoder: BatchEncoder) -> None:
    none = torch.zeros(0, encoder.layout.length, dtype=torch.int64)
    size = encoder.image_size
    assert encoder.decode(none).shape == (0, 3, size, size)
