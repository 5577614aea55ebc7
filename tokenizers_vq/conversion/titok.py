"""TiTok as 1d-tokenizer publishes it, two-stage (`pixel_decoder.`, `pixel_quantize.`) or single-stage."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenizers_vq.conversion.checkpoint import below, expect, read_tensors
from tokenizers_vq.conversion.given import number
from tokenizers_vq.conversion.keys import fill, joined, rename, skip
from tokenizers_vq.conversion.maskgit import decoder_tensors, folder_config, network_fields, wanted, weights_file
from tokenizers_vq.conversion.vqgan_keys import agree
from tokenizers_vq.networks.maskgit import MaskgitDecoderConfig
from tokenizers_vq.networks.titok import TitokDecoderConfig, TitokEncoderConfig, TitokProxyDecoderConfig
from tokenizers_vq.quantizers import VectorQuantizerConfig
from tokenizers_vq.tokenizer import PixelRange, Tokenizer, TokenizerConfig

HEAD_WIDTH = 64  # of all three published sizes


def convert(path: Path, config: Mapping[str, Any] | None = None, prefixes: bool = False) -> Tokenizer:
    """The tokenizer of a .bin or .safetensors file, or of a folder that holds one with its `config.json`.

    Sizes are read from the keys, whether one stage or two as well. From the config (`model.vq_model`): `use_l2_norm`,
    `is_legacy`, `commitment_cost`, the decoder's patch; without, they are those of the published models: two-stage ones
    are legacy and L2-normalised, single-stage ones neither. Pixels are [0, 1], clamped on decoding. `prefixes`: they
    were trained with tails dropped (One-D-Piece), and are legacy and L2-normalised in either stage. Raises `ValueError`
    for keys that are missing or surplus, for a config that contradicts them, and for a file of stage 1 alone.
    """
    config = folder_config(path, config)
    path, given = weights_file(path), _vq_model(config)
    names = ("codebook_size", "token_size", "num_latent_tokens", "use_l2_norm", "is_legacy", "quantize_mode", "dataset")
    expect(config, {**given, **(config or {})}, names, path)
    tensors = skip(read_tensors(path, "state_dict", "model"), r"quantize\.embed_prob", "a statistic of training")
    if given.get("quantize_mode", "vq") != "vq":
        raise ValueError(f"{path}: quantize_mode {given['quantize_mode']} has no codes; only vq models are tokenizers")
    book = wanted(tensors, "quantize.embedding.weight", path)
    two_stage = "decoder.ffn.2.weight" in tensors
    if two_stage and "pixel_decoder.conv_in.weight" not in tensors:
        raise ValueError(
            f"{path} predicts MaskGIT's codes but holds no pixel_decoder: it is of stage 1, give one of stage 2"
        )
    legacy = bool(given.get("is_legacy", two_stage or prefixes))
    if legacy != (two_stage or prefixes):
        raise ValueError(
            f"{path}: the config says is_legacy: {str(legacy).lower()}, but its decoder "
            f"{'predicts codes' if two_stage else 'gives pixels'}: give the config that belongs to these weights"
        )
    embed = wanted(tensors, "encoder.patch_embed.weight", path)
    if embed.ndim != 4:
        raise ValueError(f"{path}: encoder.patch_embed.weight is {tuple(embed.shape)}, no convolution's weight")
    channels, patch = embed.shape[1:3]
    size = _image_size(tensors, patch, config, path)
    decoder_patch = _decoder_patch(tensors, size, path)
    trunk = _trunk_fields(below(tensors, "decoder."), decoder_patch, path) | ({"tail_dropout": 1.0} if prefixes else {})
    decoder: TitokDecoderConfig | TitokProxyDecoderConfig = TitokDecoderConfig(**trunk)
    if two_stage:
        codes, dim = wanted(tensors, "pixel_quantize.embedding.weight", path).shape
        proxy = MaskgitDecoderConfig(**network_fields(below(tensors, "pixel_decoder."), "up", path))
        decoder = TitokProxyDecoderConfig(**trunk, proxy_codes=codes, proxy_dim=dim, proxy=proxy)
    said = {"codebook_size": book.shape[0], "token_size": book.shape[1], "num_latent_tokens": trunk["tokens"]}
    agree(given, {**said, "vit_enc_patch_size": patch, "vit_dec_patch_size": decoder_patch}, path)
    described = TokenizerConfig(
        image_size=size,
        channels=channels,
        pixels=PixelRange(low=0.0, high=1.0),
        encoder=TitokEncoderConfig(**_trunk_fields(below(tensors, "encoder."), patch, path), legacy_reshape=legacy),
        quantizer=VectorQuantizerConfig(
            num_codes=book.shape[0],
            dim=book.shape[1],
            distance="cosine" if given.get("use_l2_norm", legacy) else "euclidean",
            beta=number(given, "commitment_cost", 0.25),
        ),
        decoder=decoder,
    )
    return fill(described.build, _ours(tensors, two_stage), path)


def _vq_model(config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The fields of `model.vq_model`, or of a config that is that part alone."""
    return _part(config, "model", "vq_model")


def _part(config: Any, *names: str) -> Mapping[str, Any]:
    """The part of a config below `names`, or of one that begins further down; empty where there is none."""
    for name in names:
        config = config.get(name, config) if isinstance(config, Mapping) else {}
    return config if isinstance(config, Mapping) else {}


def _image_size(tensors: Mapping[str, Tensor], patch: int, config: Mapping[str, Any] | None, path: Path) -> int:
    """Side of the images: the encoder has a position a patch, of square images."""
    patches = wanted(tensors, "encoder.positional_embedding", path).shape[0] - 1
    size = math.isqrt(patches) * patch
    given = _part(config, "dataset", "preprocessing").get("crop_size")
    given = size if given is None else given
    if not isinstance(given, int) or given // patch * patch != size or math.isqrt(patches) ** 2 != patches:
        raise ValueError(
            f"{path} has positions for {patches} patches of {patch} pixels, which is no image of {given}x{given}: "
            "give the config that belongs to these weights"
        )
    return size


def _decoder_patch(tensors: Mapping[str, Tensor], size: int, path: Path) -> int:
    patches = math.isqrt(wanted(tensors, "decoder.positional_embedding", path).shape[0] - 1)
    if patches < 1 or size % patches:
        raise ValueError(
            f"{path}: its decoder has positions for {patches}x{patches} patches of images of {size}x{size}"
        )
    return size // patches


def _trunk_fields(tensors: Mapping[str, Tensor], patch: int, path: Path) -> dict[str, Any]:
    tokens, width = wanted(tensors, "latent_token_positional_embedding", path).shape
    mlp = wanted(tensors, "transformer.0.mlp.c_fc.weight", path).shape[0]
    layers = 1 + max(int(match[1]) for key in tensors if (match := re.match(r"transformer\.(\d+)\.", key)))
    if width % HEAD_WIDTH:
        raise ValueError(f"{path}: the width {width} of its tokens holds no whole number of heads of {HEAD_WIDTH}")
    return {
        "tokens": tokens,
        "patch": patch,
        "width": width,
        "layers": layers,
        "heads": width // HEAD_WIDTH,
        "mlp": None if mlp == 4 * width else mlp,
    }


_TRUNK = [
    (r"^(encoder|decoder)\.class_embedding$", r"\1.trunk.class_token"),
    (r"^(encoder|decoder)\.positional_embedding$", r"\1.trunk.positions"),
    (r"^(encoder|decoder)\.latent_token_positional_embedding$", r"\1.trunk.latent_positions"),
    (r"^(encoder|decoder)\.ln_pre\.", r"\1.trunk.norm_in."),
    (r"^(encoder|decoder)\.ln_post\.", r"\1.trunk.norm."),
    (r"^(encoder|decoder)\.transformer\.", r"\1.trunk.blocks."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"^latent_tokens$", "encoder.latents"),
    (r"^encoder\.patch_embed\.", "encoder.embed."),
    (r"^encoder\.conv_out\.", "encoder.quant_conv."),
    (r"^quantize\.embedding\.weight$", "quantizer.weight"),
    (r"^decoder\.decoder_embed\.", "decoder.post_quant_conv."),
    (r"^decoder\.conv_out\.", "decoder.head."),
    (r"^decoder\.ffn\.2\.", "decoder.logits."),
    (r"^pixel_quantize\.embedding\.weight$", "decoder.codebook"),
]


def _ours(tensors: Mapping[str, Tensor], two_stage: bool) -> dict[str, Tensor]:
    plain = {key: value for key, value in tensors.items() if not key.startswith("pixel_decoder.")}
    ours = rename(plain, [*_TRUNK, (r"^decoder\.ffn\.0\.", "decoder.expand." if two_stage else "decoder.to_pixels.")])
    # Patches and 1x1 convolutions are linear layers here.
    for name in ("encoder.embed", "encoder.quant_conv", "decoder.expand", "decoder.to_pixels", "decoder.logits"):
        if f"{name}.weight" in ours and ours[f"{name}.weight"].ndim > 1:
            ours[f"{name}.weight"] = ours[f"{name}.weight"].flatten(1)
    proxy = decoder_tensors(below(tensors, "pixel_decoder."))
    return joined(("", "", ours), ("decoder.proxy.", "pixel_decoder.", proxy))
