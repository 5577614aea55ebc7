"""BitDance's tokenizers (arXiv 2602.14041): Open-MAGVIT2's networks, 16 to 256 sign bits a position."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers_vq.conversion.checkpoint import expect, read_tensors
from tokenizers_vq.conversion.given import part, whole
from tokenizers_vq.conversion.open_magvit2 import tokenizer
from tokenizers_vq.conversion.vqgan_keys import agree
from tokenizers_vq.conversion.wetok import grouped
from tokenizers_vq.quantizers import LfqQuantizerConfig
from tokenizers_vq.tokenizer import Tokenizer

IMAGENET_CODES = 4


def convert(path: Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of a .safetensors of the text-to-image models, or of a .pt of those for ImageNet.

    Sizes are read from the keys. A position has `num_codebooks` codes, if the config says so; else a .pt four, as all
    published for ImageNet, and a .safetensors, whose reference has bits and no codes, as few as hold them. Images are
    of 256, unless the config says `image_size`. Raises `ValueError` for keys that are missing or surplus, for a config
    that contradicts them, and for decoders that draw noise (`gan_decoder`).
    """
    given = dict(config or {})
    expect(config, given, ("ddconfig", "num_codebooks", "gan_decoder", "image_size"), path)
    codes = whole(given, "num_codebooks", 0 if path.suffix == ".safetensors" else IMAGENET_CODES)

    def quantizer(bits: int) -> LfqQuantizerConfig:
        return grouped(bits, codes, path) if codes else LfqQuantizerConfig(bits=bits)

    found = tokenizer(read_tensors(path, "state_dict"), path, whole(given, "image_size", 256), quantizer)
    encoder: Any = found.config.encoder
    said = {"ch": encoder.width, "ch_mult": encoder.multipliers, "num_res_blocks": encoder.blocks}
    agree(part(given, "ddconfig"), {**said, "z_channels": found.quantizer.in_dim}, path)
    return found
