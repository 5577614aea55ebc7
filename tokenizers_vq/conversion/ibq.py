"""IBQ as SEED-Voken publishes it: taming's networks and `quantize.embedding.weight`, searched by dot product."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers_vq.conversion.checkpoint import expect
from tokenizers_vq.conversion.given import number, part
from tokenizers_vq.conversion.keys import fill, rename
from tokenizers_vq.conversion.seed_voken import CONFIGURED, convert_discriminator, read, resolution, settings
from tokenizers_vq.conversion.vqgan_keys import class_named, network_fields, our_keys, shape
from tokenizers_vq.networks.vqgan import VqganDecoderConfig, VqganEncoderConfig
from tokenizers_vq.quantizers import IbqQuantizerConfig
from tokenizers_vq.tokenizer import PixelRange, Tokenizer, TokenizerConfig

logger = logging.getLogger(__name__)

__all__ = ["convert", "convert_discriminator"]


def convert(path: Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of a Lightning .ckpt, with the averaged weights where the file holds them.

    Sizes are read from the keys, the image size from the config (256 without). The published class overrides the
    quantizer of its base, so `l2_normalize` and `cosine_similarity` in a config change nothing, there or here. Raises
    `ValueError` for keys that are missing or surplus, and for a config that names another class; without a class a
    warning is logged, since taming's keys are the same.
    """
    named = class_named(config)
    if named and "IBQ" not in named:
        raise ValueError(f"{path}: its config names {named}, which is not IBQ: give the source that it comes from")
    if not named:
        logger.warning(
            "%s: its keys are taming's too and do not tell how codes are searched; taken for the largest dot product, "
            "which a config that names the class would settle (of taming's file, give source 'taming')",
            path,
        )
    arguments = settings(config)
    expect(config, arguments, CONFIGURED, path)
    tensors = rename(our_keys(read(path, arguments)), [(r"^quantize\.embedding\.weight$", "quantizer.weight")])
    codes, dim = shape(tensors, "quantizer.weight", path)
    lossconfig = part(part(arguments, "lossconfig"), "params")
    training: dict[str, Any] = {
        name: number(given, theirs, 0.0)
        for name, given, theirs in [
            ("beta", arguments, "beta"),
            ("entropy_temperature", arguments, "entropy_temperature"),
            ("entropy_weight", lossconfig, "entropy_loss_weight"),
        ]
        if given.get(theirs) is not None
    }
    if arguments.get("use_entropy_loss") is False:
        training["entropy_weight"] = 0.0
    dropout = number(part(arguments, "ddconfig"), "dropout", 0.0)
    described = TokenizerConfig(
        image_size=resolution(arguments),
        channels=shape(tensors, "encoder.conv_in.weight", path)[1],
        pixels=PixelRange(clamp=False),
        encoder=VqganEncoderConfig(**network_fields(tensors, "encoder", path), dropout=dropout),
        quantizer=IbqQuantizerConfig(num_codes=codes, dim=dim, **training),
        decoder=VqganDecoderConfig(**network_fields(tensors, "decoder", path), dropout=dropout),
    )
    return fill(described.build, tensors, path)
