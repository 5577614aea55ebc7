"""Chameleon's tokenizer (arXiv 2405.09818): transformers' ChameleonVQVAE, which only encodes, or Meta's own file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers_vq.conversion import taming
from tokenizers_vq.conversion.checkpoint import read_config
from tokenizers_vq.conversion.given import number, whole
from tokenizers_vq.conversion.keys import fill, rename
from tokenizers_vq.conversion.pretrained import read_below, vq_config, weight_files
from tokenizers_vq.conversion.vqgan_keys import network_fields, our_keys, shape
from tokenizers_vq.networks.absent import AbsentDecoderConfig
from tokenizers_vq.networks.vqgan import VqganEncoderConfig
from tokenizers_vq.quantizers import VectorQuantizerConfig
from tokenizers_vq.tokenizer import PixelRange, Tokenizer, TokenizerConfig

ORIGINAL = "vqgan.ckpt"
"""Meta's file, in taming's layout, with vqgan.yaml beside it"""
ADVICE = (
    "transformers leaves Chameleon's decoder out; convert the original checkpoint (tokenizer/vqgan.ckpt of Meta's "
    "release) with source chameleon to decode"
)


def convert(path: Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of a folder (its shards too) or a file of transformers, or of Meta's vqgan.ckpt.

    From transformers `decode` raises, since its files hold no decoder. From the config only the size it is made for is
    read (512 without). Pixels are [-1, 1] (transformers' image processor multiplies by 0.0078, and so ends at 0.989),
    not clamped.
    """
    if (path / ORIGINAL).is_file():
        path = path / ORIGINAL
    files = weight_files(path, ["model", "pytorch_model"])
    tensors = read_below(files, "quantize.embedding.weight")
    if path.is_file() and any(key.startswith("decoder.") for key in tensors):
        beside = path.with_suffix(".yaml")
        config = read_config(beside) if config is None and beside.is_file() else config
        return taming.convert(path, config or {"ddconfig": {"resolution": 512}})
    fields = vq_config(path, config, "chameleon_vqgan")
    rules = [(r"^quantize\.embedding\.weight$", "quantizer.weight"), (r"^decoder\.post_quant_conv\.", "decoder.head.")]
    ours = rename(our_keys(tensors), rules)
    codes, dim = shape(ours, "quantizer.weight", path)
    encoder = network_fields(ours, "encoder", path)
    stride = 2 ** (len(encoder["multipliers"]) - 1)
    described = TokenizerConfig(
        image_size=-(-whole(fields, "resolution", 512) // stride) * stride,
        channels=shape(ours, "encoder.conv_in.weight", path)[1],
        pixels=PixelRange(clamp=False),
        encoder=VqganEncoderConfig(**encoder, dropout=number(fields, "dropout", 0.0)),
        quantizer=VectorQuantizerConfig(num_codes=codes, dim=dim, legacy_beta=True),
        decoder=AbsentDecoderConfig(latent_width=shape(ours, "decoder.head.weight", path)[0], advice=ADVICE),
    )
    return fill(described.build, ours, path)
