"""Tokenizers of taming-transformers (arXiv 2012.09841): VQ, its EMA form and Gumbel, alone or inside a transformer.

Layout: a Lightning .ckpt (`state_dict`) or a plain one; the networks' keys are those of `vqgan_keys`, the codebook's
`quantize.embedding.weight`, or `quantize.embed.weight` and `quantize.proj.` (Gumbel); `loss.` holds the discriminator.
A transformer's file has all of it below `first_stage_model.`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenizers_vq.conversion.checkpoint import below, expect, read_tensors
from tokenizers_vq.conversion.given import number
from tokenizers_vq.conversion.keys import fill, rename, skip
from tokenizers_vq.conversion.patchgan import patchgan
from tokenizers_vq.conversion.vqgan_keys import (
    agree,
    class_named,
    image_side,
    network_fields,
    network_said,
    our_keys,
    shape,
)
from tokenizers_vq.discriminators.patchgan import PatchGAN
from tokenizers_vq.networks.vqgan import VqganDecoderConfig, VqganEncoderConfig
from tokenizers_vq.quantizers import VectorQuantizerConfig
from tokenizers_vq.quantizers.gumbel import GumbelQuantizerConfig
from tokenizers_vq.tokenizer import PixelRange, Tokenizer, TokenizerConfig

logger = logging.getLogger(__name__)
FIRST_STAGE = "first_stage_model."
_CODEBOOK = [
    (r"^quantize\.embed(?:ding)?\.weight$", "quantizer.weight"),
    (r"^quantize\.embedding\.cluster_size$", "quantizer.cluster_size"),
    (r"^quantize\.embedding\.embed_avg$", "quantizer.cluster_sum"),
    (r"^quantize\.proj\.", "quantizer.projection."),
]


def convert(path: Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of a file; everything that decides codes and images is read from its keys.

    From the config, where given: `resolution` (the size it is made for, cut to a multiple of the stride; 256 without)
    and Gumbel's `kl_weight`. Pixels are [-1, 1], not clamped. Raises `ValueError` for another layout, for options that
    the networks lack, and for a config that contradicts the keys.
    """
    given = first_stage_params(config)
    tensors = _first_stage(read_tensors(path, "state_dict", "model"))
    tensors = skip(tensors, r"loss\.", "losses and discriminator of its training")
    tensors = skip(tensors, r"model_ema\.", "averages that the reference does not read")
    tensors = skip(tensors, r"colorize$", "they serve to show segmentations")
    if given.get("remap") is not None or "quantize.used" in tensors:
        tensors.pop("quantize.used", None)
        logger.warning("remap (quantize.used) is left out: codes are those of the whole codebook, not of the used ones")
    if any(".to_qkv." in key for key in tensors):
        raise ValueError(f"{path} has linear attention (attn_type: linear), which the VQGAN networks lack")
    # Descendants that search otherwise would convert, and give other codes.
    if any(key.startswith("encoder.conv_blocks.") for key in tensors):
        raise ValueError(f"{path} has encoder.conv_blocks: it is not a tokenizer of taming-transformers")
    if "IBQ" in str((config or {}).get("model")) or "IBQ" in class_named(config):
        raise ValueError(f"{path}: its config names IBQ, whose codes are found otherwise: give source 'ibq'")
    expect(config, given, ("ddconfig", "n_embed", "embed_dim", "lossconfig"), path)
    ours = rename(our_keys(tensors), _CODEBOOK)
    if not class_named(config) and not {"quantizer.projection.weight", "quantizer.cluster_size"} & set(ours):
        logger.warning(
            "%s: its keys are IBQ's too and do not tell how codes are searched; taken for the nearest by distance, "
            "which a config that names the class would settle (of IBQ's file, give source 'ibq')",
            path,
        )
    if "quantizer.projection.weight" in ours:  # a 1x1 convolution
        shape(ours, "quantizer.projection.weight", path)
        ours["quantizer.projection.weight"] = ours["quantizer.projection.weight"].flatten(1)
    channels, output = shape(ours, "encoder.conv_in.weight", path)[1], shape(ours, "decoder.head.weight", path)[0]
    if channels != output:
        raise ValueError(
            f"{path} reads images of {channels} channels and gives {output}: it is not an autoencoder of images"
        )
    ddconfig = given.get("ddconfig") or {}
    if not isinstance(ddconfig, Mapping):
        raise ValueError(f"{path}: its config's ddconfig is not a mapping: give the reference's config of this model")
    for option, usual in (("tanh_out", False), ("double_z", False), ("resamp_with_conv", True)):
        if ddconfig.get(option, usual) != usual:
            raise ValueError(f"{path}: ddconfig.{option}={ddconfig[option]} is not supported by the VQGAN networks")
    encoder, quantizer = network_fields(ours, "encoder", path), _quantizer(ours, given, path)
    agree(ddconfig, network_said(encoder, channels), path)
    agree(given, {"n_embed": quantizer.num_codes, "embed_dim": quantizer.dim}, path)
    described = TokenizerConfig(
        image_size=image_side(ddconfig.get("resolution"), len(encoder["multipliers"])),
        channels=channels,
        pixels=PixelRange(clamp=False),
        encoder=VqganEncoderConfig(**encoder),
        quantizer=quantizer,
        decoder=VqganDecoderConfig(**network_fields(ours, "decoder", path)),
    )
    return fill(described.build, ours, path)


def convert_discriminator(path: Path, config: Mapping[str, Any] | None = None) -> PatchGAN | None:
    """The PatchGAN below `loss.discriminator.`, its running statistics included; None where the file holds none.

    Raises `ValueError` for one with ActNorm, or of which only a part is there.
    """
    tensors = read_tensors(path, "state_dict", "model")
    for prefix in ("loss.discriminator.", f"{FIRST_STAGE}loss.discriminator."):
        if found := below(tensors, prefix):
            return patchgan(found, path)
    return None


def first_stage_params(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Parameters of the tokenizer in a config, itself or as the first stage of a transformer or diffusion model's."""
    params = dict(config or {})
    for name in ("model", "params", "first_stage_config", "params"):
        if isinstance(params.get(name), Mapping):
            params = dict(params[name])
    return params


def _first_stage(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if not any(key.startswith(FIRST_STAGE) for key in tensors):
        return tensors
    return below(skip(tensors, rf"(?!{FIRST_STAGE})", "they belong to the model on top of the tokenizer"), FIRST_STAGE)


def _quantizer(
    ours: Mapping[str, Tensor], given: Mapping[str, Any], path: Path
) -> VectorQuantizerConfig | GumbelQuantizerConfig:
    if "quantizer.weight" not in ours:
        raise ValueError(f"{path} has no codebook (quantize.embedding.weight): it is not a VQ or Gumbel tokenizer")
    codes, dim = shape(ours, "quantizer.weight", path)
    if "quantizer.projection.weight" in ours:
        in_dim = shape(ours, "quantizer.projection.weight", path)[1]
        return GumbelQuantizerConfig(
            num_codes=codes,
            dim=dim,
            in_dim=None if in_dim == dim else in_dim,
            straight_through=True,
            kl_weight=number(given, "kl_weight", 1e-8),
        )
    if "quantizer.cluster_size" in ours:
        return VectorQuantizerConfig(num_codes=codes, dim=dim, codebook="ema")
    # The reference multiplies the codebook's term with beta, not the commitment's, unless told otherwise.
    return VectorQuantizerConfig(num_codes=codes, dim=dim, legacy_beta=True)
