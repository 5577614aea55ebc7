"""VQ-VAE-2 as rosinality/vq-vae-2-pytorch publishes it: `enc_b.blocks.0.weight`, `quantize_t.embed` of (D, K)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenizers_vq.conversion.checkpoint import expect, read_tensors
from tokenizers_vq.conversion.keys import fill, rekey, rename
from tokenizers_vq.hierarchical import HierarchicalConfig
from tokenizers_vq.networks.vqvae2 import Vqvae2DecoderConfig, Vqvae2EncoderConfig
from tokenizers_vq.quantizers.vector import VectorQuantizerConfig
from tokenizers_vq.tokenizer import PixelRange, Tokenizer

_PARTS = {
    "enc_t": "encoder.levels.0",
    "enc_b": "encoder.levels.1",
    "dec_t": "encoder.heads.1.up",
    "dec": "decoder.up",
}
_RULES = [
    (r"^quantize_conv_t\.", "encoder.heads.0.quant_conv."),
    (r"^quantize_conv_b\.", "encoder.heads.1.quant_conv."),
    (r"^upsample_t\.", "decoder.join.upsample.0.0."),
    (r"^quantize_t\.", "quantizer.0."),
    (r"^quantize_b\.", "quantizer.1."),
    (r"\.embed$", ".weight"),
    (r"\.embed_avg$", ".cluster_sum"),
]


def convert(path: Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of a plain state dict of `VQVAE`, also one that `DataParallel` prefixed with `module.`.

    Everything is read from the keys but the image size (config: `image_size` or `size`; 256 without). Decoding does not
    clamp, as the reference does not. Raises `ValueError` for keys that are missing or surplus.
    """
    read = read_tensors(path, "state_dict", "model")
    for key, tensor in read.items():
        if key.endswith((".embed", ".embed_avg")) and tensor.ndim != 2:
            raise ValueError(f"{path}: {key} is {tuple(tensor.shape)}, not (D, K): it is of another layout")
    plain = _plain(read)
    tensors = rekey(rename(read, _RULES), lambda key: _our_key(key, plain))
    for key, tensor in tensors.items():
        if re.match(r"quantizer\.\d\.(weight|cluster_sum)$", key):
            tensors[key] = tensor.T.contiguous()
    first = _wanted(tensors, "encoder.levels.1.strided.0.weight", path)
    # A level without residual blocks has no tensor that tells their width.
    inner = "encoder.levels.1.blocks.0.conv1.weight"
    blocks = [int(found[1]) for key in tensors if (found := re.match(r"encoder\.levels\.1\.blocks\.(\d+)\.", key))]
    fields: dict[str, Any] = {
        "width": _wanted(tensors, "encoder.levels.1.conv.weight", path).shape[0],
        "blocks": 1 + max(blocks, default=-1),
        **({"block_width": _wanted(tensors, inner, path).shape[0]} if inner in tensors else {}),
    }
    books = [_wanted(tensors, f"quantizer.{level}.weight", path) for level in (0, 1)]
    given = config or {}
    expect(config, given, ("image_size", "size", "channel", "n_res_block", "n_embed", "embed_dim"), path)
    described = HierarchicalConfig(
        image_size=given.get("image_size", given.get("size", 256)),
        channels=first.shape[1],
        pixels=PixelRange(clamp=False),
        encoder=Vqvae2EncoderConfig(**fields),
        quantizers=tuple(
            VectorQuantizerConfig(num_codes=book.shape[0], dim=book.shape[1], codebook="ema") for book in books
        ),
        decoder=Vqvae2DecoderConfig(**fields),
    )
    return fill(described.build, tensors, path)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, dict[int, int]]:
    """For each part, the places of its convolutions outside residual blocks -> which of them it is."""
    found: dict[str, set[int]] = {part: set() for part in _PARTS}
    for key in tensors:
        if match := re.match(r"(enc_t|enc_b|dec_t|dec)\.blocks\.(\d+)\.(?!conv\.)", key):
            found[match[1]].add(int(match[2]))
    return {part: {place: index for index, place in enumerate(sorted(places))} for part, places in found.items()}


def _our_key(key: str, plain: Mapping[str, Mapping[int, int]]) -> str:
    """The reference numbers a part's modules in one row, activations included; ours are named by what they do."""
    found = re.match(r"(enc_t|enc_b|dec_t|dec)\.blocks\.(\d+)\.(.+)$", key)
    if found is None or not plain[found[1]]:
        return key
    part, place, rest = found[1], int(found[2]), found[3]
    ours, last = _PARTS[part], len(plain[part]) - 1
    if rest.startswith("conv."):
        block = place - 1 - (max(plain[part]) if part.startswith("enc") else min(plain[part]))
        return f"{ours}.blocks.{block}." + rest.replace("conv.1.", "conv1.").replace("conv.3.", "conv2.")
    index = plain[part][place]
    if part.startswith("enc"):
        return f"{ours}.conv.{rest}" if index == last else f"{ours}.strided.{index}.{rest}"
    if index == 0:
        return f"{ours}.conv.{rest}"
    return f"{ours}.head.{rest}" if index == last else f"{ours}.strided.{index - 1}.{rest}"


def _wanted(tensors: Mapping[str, Tensor], key: str, path: Path) -> Tensor:
    if key not in tensors:
        raise ValueError(f"{path} has no tensor for {key}: it is not a VQ-VAE-2 of rosinality/vq-vae-2-pytorch")
    if tensors[key].ndim < 2 or 0 in tensors[key].shape:
        raise ValueError(f"{path}: {key} is {tuple(tensors[key].shape)}, expected a weight or a codebook")
    return tensors[key]
