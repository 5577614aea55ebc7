"""Every recorded tokenizer: converted, its codes equal the reference's, latents and images within their tolerance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import SHARED, shared
from tokenizers_vq.conversion import SOURCES, convert
from tokenizers_vq.quantizers import MultiscaleQuantizer
from tokenizers_vq.tokenizer import Tokenizer


def cases() -> list[str]:
    """`family/case` of every recorded tokenizer; one that skips where there are none beside the checkout."""
    if not SHARED.exists():
        return ["none"]
    return sorted(
        f"{path.parent.parent.name}/{path.parent.name}"
        for path in (SHARED / "golden").glob("*/*/io.safetensors")
        if path.parent.parent.name in SOURCES
    )


def source(folder: Path) -> tuple[Path, Path | None]:
    """The checkpoint of a case and its config, as a user has them."""
    weights = [folder / name for name in ("weights.safetensors", "model.ckpt", "model.pt") if (folder / name).exists()]
    if not weights:
        return folder, None  # a folder of diffusers, with its config inside
    return weights[0], next((path for path in (folder / "config.yaml", folder / "config.json") if path.exists()), None)


def as_recorded(latents: Tensor, recorded: Tensor) -> Tensor:
    """Our `(B, D, *grid)` in the reference's axis order, which may be (B, N, D) or channels-last."""
    if latents.shape == recorded.shape:
        return latents
    last = latents.movedim(1, -1)
    return last.reshape(recorded.shape) if last.shape[-1] == recorded.shape[-1] else latents.reshape(recorded.shape)


def reference_parameters(tokenizer: Tokenizer, family: str) -> int:
    """Parameters of ours, counted as the reference counts them."""
    count = sum(parameter.numel() for parameter in tokenizer.parameters())
    if family == "rqvae":  # its moving averages are parameters there, with a row of padding
        books = [book.weight for book in tokenizer.quantizer.codebooks]
        count += sum(book.numel() + book.shape[1] for book in books)
    return count


def latent_error(features: Tensor | tuple[Tensor, ...], io: dict[str, Tensor]) -> Tensor | None:
    """Largest difference of our features, of several grids coarse first, to the recorded ones; None without any."""
    parts = features if isinstance(features, tuple) else (features,)
    recorded = [io[key] for key in ("latents", "latents_top", "latents_bottom") if key in io]
    if not recorded:
        return None
    pairs = list(zip(parts, recorded, strict=True))
    return torch.stack([(as_recorded(ours, theirs) - theirs).abs().max() for ours, theirs in pairs]).max()


def recorded_codes(io: dict[str, Tensor]) -> list[Tensor]:
    """The recorded codes, coarse first; empty where there are `bits` alone, more than an integer holds."""
    return [io[key] for key in sorted(key for key in io if key.startswith("codes"))]


def check_bits(tokenizer: Tokenizer, parts: tuple[Tensor, ...], io: dict[str, Tensor]) -> None:
    """The signs of the codes' own vectors are the recorded bits, `(B, *grid, d)` of each grid."""
    quantizer = tokenizer.quantizer
    books = quantizer.books if isinstance(quantizer, MultiscaleQuantizer) else [quantizer]
    recorded = [io[key] for key in sorted(key for key in io if key.startswith("bits"))]
    for book, ours, theirs in zip(books, parts, recorded, strict=True):
        assert torch.equal(book.lookup(ours).movedim(1, -1) > 0, theirs > 0)


@pytest.mark.parametrize("case", cases())
def test_a_converted_tokenizer_is_the_reference(case: str) -> None:
    folder = shared("golden" if case == "none" else f"golden/{case}")
    io, meta = load_file(folder / "io.safetensors"), json.loads((folder / "meta.json").read_text())
    if "noise" in io:
        with pytest.raises(ValueError, match="its decoder takes noise beside the 12 channels of a code"):
            convert(folder.parent.name, *source(folder))
        return
    tokenizer = convert(folder.parent.name, *source(folder))
    codes = tokenizer.encode(io["images"])
    parts = codes if isinstance(codes, tuple) else (codes,)
    recorded = recorded_codes(io)
    assert len(parts) == len(recorded) or "bits" in io or "bits_00" in io
    for ours, theirs in zip(parts, recorded, strict=bool(recorded)):
        assert torch.equal(ours, theirs.reshape(ours.shape))
    if "bits" in io or "bits_00" in io:
        check_bits(tokenizer, parts, io)

    tolerance = meta["tolerance_images"]
    with torch.no_grad():
        features = tokenizer.encode_features(io["images"])
    difference = latent_error(features, io)
    assert difference is None or difference <= meta.get("tolerance_latents", tolerance)
    for length in meta.get("prefixes", ()):
        theirs = io[f"images_out_prefix_{length:02d}"].clamp(0, 1) * 2 - 1
        assert (tokenizer.decode(parts[0][:, :length]) - theirs).abs().max() <= tolerance
    decoded = tokenizer.decode(codes)
    assert (decoded - io.get("images_out_mapped", io["images_out"])).abs().max() <= tolerance
    assert reference_parameters(tokenizer, folder.parent.name) == meta["n_parameters"]
