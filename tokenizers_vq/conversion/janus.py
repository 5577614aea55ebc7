"""Janus' tokenizer (arXiv 2410.13848) as transformers saves it: JanusVQVAE, alone or inside the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers_vq.conversion.given import number, whole
from tokenizers_vq.conversion.keys import fill, rename
from tokenizers_vq.conversion.pretrained import read_below, vq_config, weight_files
from tokenizers_vq.conversion.vqgan_keys import network_fields, our_keys, shape
from tokenizers_vq.networks.vqgan import VqganDecoderConfig, VqganEncoderConfig
from tokenizers_vq.quantizers import VectorQuantizerConfig
from tokenizers_vq.tokenizer import PixelRange, Tokenizer, TokenizerConfig


def convert(path: Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of a folder (its shards too) or a file; only the size it is made for is read from the config.

    Codes are nearest to features as they are, but what is decoded are normalised vectors of the codebook. Pixels are
    [-1, 1], not clamped.
    """
    fields = vq_config(path, config, "janus_vqgan")
    files = weight_files(path, ["model", "pytorch_model"])
    tensors = read_below(files, "quantize.embedding.weight")
    # Its decoder counts levels from the coarsest on, as ours does, and not as its encoder and the rest of the world.
    ours = our_keys(rename(tensors, [(r"^decoder\.up\.", "decoder.levels.")]))
    ours = rename(ours, [(r"^quantize\.embedding\.weight$", "quantizer.weight")])
    encoder, decoder = (network_fields(ours, part, path) for part in ("encoder", "decoder"))
    codes, dim = shape(ours, "quantizer.weight", path)
    dropout = number(fields, "dropout", 0.0)
    described = TokenizerConfig(
        image_size=whole(fields, "num_patches", 32) * 2 ** (len(encoder["multipliers"]) - 1),
        channels=shape(ours, "encoder.conv_in.weight", path)[1],
        pixels=PixelRange(clamp=False),
        encoder=VqganEncoderConfig(**encoder, dropout=dropout),
        quantizer=VectorQuantizerConfig(num_codes=codes, dim=dim, legacy_beta=True),
        decoder=VqganDecoderConfig(**decoder, dropout=dropout, normalise_codes=True),
    )
    return fill(described.build, ours, path)
