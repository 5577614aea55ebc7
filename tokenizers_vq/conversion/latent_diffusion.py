"""VQ autoencoders of latent-diffusion (arXiv 2112.10752), alone or inside a diffusion model's file: taming's layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers_vq.conversion import taming
from tokenizers_vq.conversion.taming import convert_discriminator
from tokenizers_vq.quantizers.gumbel import GumbelQuantizerConfig
from tokenizers_vq.tokenizer import Tokenizer

__all__ = ["convert", "convert_discriminator"]


def convert(path: Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """As `taming.convert`; raises `ValueError` for Gumbel's files too, which latent-diffusion has none of.

    The reference takes taming's quantizer, beta on the codebook's term included. Its interface quantizes again before
    decoding, which leaves looked-up codes as they are.
    """
    tokenizer = taming.convert(path, config)
    if isinstance(tokenizer.config.quantizer, GumbelQuantizerConfig):
        raise ValueError(f"{path} holds a Gumbel tokenizer, which latent-diffusion lacks: give source 'taming'")
    return tokenizer
