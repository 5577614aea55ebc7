"""One-D-Piece (arXiv 2501.10064): two-stage TiTok, trained with tails of its codes dropped, so that prefixes decode."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers_vq.conversion import titok
from tokenizers_vq.tokenizer import Tokenizer


def convert(path: Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of a .bin or .safetensors file, or of a folder that holds one with its `config.json`.

    As source titok's, always with the legacy order of latents, and L2-normalised unless the config says otherwise.
    `decode` takes the first codes of an image too. Raises `ValueError` as there.
    """
    return titok.convert(path, config, prefixes=True)
