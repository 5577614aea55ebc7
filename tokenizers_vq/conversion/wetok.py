"""WeTok (arXiv 2508.05599): Open-MAGVIT2's networks and files, sign bits in groups, each a code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers_vq.conversion.checkpoint import expect
from tokenizers_vq.conversion.given import whole
from tokenizers_vq.conversion.open_magvit2 import convert_discriminator, entropy_weights, tokenizer
from tokenizers_vq.conversion.seed_voken import CONFIGURED, read, resolution, settings
from tokenizers_vq.quantizers import LfqQuantizerConfig
from tokenizers_vq.tokenizer import Tokenizer

__all__ = ["convert", "convert_discriminator"]


def convert(path: Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of a Lightning .ckpt, with the averaged weights where the file holds them and uses them.

    No file says how many codes a position has, so a config must: `num_codebooks`, or `n_embed`, the codes of one.
    Sizes are read from the keys, the image size from the config (256 without). Raises `ValueError` for keys that are
    missing or surplus, without those numbers, and for decoders that draw noise.
    """
    arguments = settings(config)
    expect(config, arguments, (*CONFIGURED, "num_codebooks"), path)

    def quantizer(bits: int) -> LfqQuantizerConfig:
        return grouped(bits, _codes(arguments, bits, path), path, **entropy_weights(arguments))

    return tokenizer(read(path, arguments), path, resolution(arguments), quantizer)


def _codes(arguments: Mapping[str, Any], bits: int, path: Path) -> int:
    """Codes at one position."""
    codes, size = whole(arguments, "num_codebooks", 0), whole(arguments, "n_embed", 0)
    if codes < 1 and size < 2:
        raise ValueError(
            f"{path} does not say how many codes its {bits} bits make: give its config, or one with num_codebooks"
        )
    found = codes if codes > 0 else bits // (size.bit_length() - 1)
    if size and found > 0 and bits % found == 0 and size != 2 ** (bits // found):
        raise ValueError(
            f"{path}: the config says {found} codebooks of {size} codes, its tensors {bits} bits: give the config that "
            "belongs to them"
        )
    return found


def grouped(bits: int, codes: int, path: Path, **fields: Any) -> LfqQuantizerConfig:
    """Sign bits in as many groups as codes, all of one distribution. Raises `ValueError` where they do not divide."""
    if codes < 1 or bits % codes:
        raise ValueError(f"{path}: {codes} codebooks do not divide its {bits} bits: give the config that belongs to it")
    width = bits // codes
    group: dict[str, Any] = {"entropy_group": width, "entropy_mixed": True} if width <= 18 else {}
    return LfqQuantizerConfig(bits=bits, code_bits=width, **group, **fields)
