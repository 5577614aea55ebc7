"""FVQ (arXiv 2509.10140): LlamaGen's keys and networks, codes compared as they are, in training behind a bridge."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers_vq.conversion.checkpoint import read_tensors
from tokenizers_vq.conversion.llamagen import arguments_of, convert_discriminator, tokenizer
from tokenizers_vq.conversion.vqgan_keys import shape
from tokenizers_vq.quantizers import VectorQuantizerConfig, VqBridgeQuantizerConfig
from tokenizers_vq.tokenizer import Tokenizer

__all__ = ["convert", "convert_discriminator"]

_BRIDGE = "quantize.qbridge."
_RULES = [
    (r"^quantize\.qbridge\.x_embedder\.proj\.", "quantizer.bridge.embed."),
    (r"^quantize\.qbridge\.final_layer\.linear\.", "quantizer.bridge.head."),
    (r"^quantize\.qbridge\.blocks\.(\d+)\.(?:attn|mlp)\.", r"quantizer.bridge.blocks.\1."),
]


def convert(path: Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of a file, in the format of training, with its bridge, or that of VQGAN, where it is folded away.

    A bridge stays, so that training can go on; `save_pretrained` folds it. A config may say `codebook_l2_norm` (false
    in all that is published, unlike LlamaGen's) and `image_size` (256); where it does not, a training checkpoint's
    `args` do. Pixels are [-1, 1], not clamped. Raises `ValueError` for another layout, a config that contradicts the
    keys, and the bridge with positions of the repository's other script, which is to be folded there.
    """
    given = {"codebook_l2_norm": False, **arguments_of(path), **(config or {})}
    distance: Any = "cosine" if given["codebook_l2_norm"] else "euclidean"
    tensors = read_tensors(path, "ema", "model", "state_dict")
    bridge = {key for key in tensors if key.startswith(_BRIDGE)}
    if not bridge:
        return tokenizer(
            path, config, given, lambda codes, dim: VectorQuantizerConfig(num_codes=codes, dim=dim, distance=distance)
        )
    layers = 1 + max(
        (int(m[1]) for key in bridge if (m := re.match(r".*\.blocks\.(\d+)\.attn\.qkv\.", key))), default=-1
    )
    embed = f"{_BRIDGE}x_embedder.proj.weight"
    if not layers or embed not in bridge or any("pos_embed" in key or "adaLN" in key for key in bridge):
        raise ValueError(
            f"{path} has a bridge that is not of patches and plain attention: fold it with the reference's "
            "convert_fullvq2vq.py first, and convert what that writes"
        )
    if distance == "cosine":
        raise ValueError(f"{path}: codebook_l2_norm is not supported with a bridge: no published model has both")
    width, _, *sides = shape(tensors, embed, path)
    if len(sides) != 2 or sides[0] != sides[1]:
        raise ValueError(f"{path}: {embed} is no convolution of square patches")

    def quantizer(codes: int, dim: int) -> VqBridgeQuantizerConfig:
        return VqBridgeQuantizerConfig(num_codes=codes, dim=dim, width=width, layers=layers, patch=sides[0])

    return tokenizer(path, config, given, quantizer, _RULES, flat=("quantizer.bridge.embed.weight",))
