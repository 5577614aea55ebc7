"""RQ-VAE (kakaobrain/rq-vae-transformer; arXiv 2203.01941): taming's network, codes of several levels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenizers_vq.conversion import pickles
from tokenizers_vq.conversion.checkpoint import below, expect, read_tensors, tensors_of
from tokenizers_vq.conversion.given import number, part, whole, wholes
from tokenizers_vq.conversion.keys import fill, skip
from tokenizers_vq.conversion.patchgan import patchgan
from tokenizers_vq.conversion.vqgan_keys import network_fields, our_keys, shape
from tokenizers_vq.discriminators.patchgan import PatchGAN
from tokenizers_vq.networks.vqgan import VqganDecoderConfig, VqganEncoderConfig
from tokenizers_vq.quantizers.residual import ResidualQuantizerConfig
from tokenizers_vq.quantizers.vector import VectorQuantizerConfig
from tokenizers_vq.tokenizer import PixelRange, Tokenizer, TokenizerConfig

_STATE = {"weight": "weight", "cluster_size_ema": "cluster_size", "embed_ema": "cluster_sum"}


def convert(path: Path, config: dict[str, Any] | None) -> Tokenizer:
    """The tokenizer of `arch` in the published YAML; without it, from the keys, for images of 256 px.

    The moving averages are kept for training; the table's last row, a padding that no code names, is left out. Images
    in [-1, 1] both ways, not clamped. Averaged weights (`state_dict_ema`) are read where there are no others. Raises
    `ValueError` for latents that the reference merges into one code, and for other levels than the config's.
    """
    arch = part(config or {}, "arch") or config or {}
    hparams, network = part(arch, "hparams"), part(arch, "ddconfig")
    expect(config, arch, ("hparams", "ddconfig"), path)
    read = read_tensors(path, "state_dict", "state_dict_ema", "model")
    tensors = skip(read, r"discriminator\.|loss\.", "parts of the training alone")
    latent, code = (wholes(hparams, name, ()) for name in ("latent_shape", "code_shape"))
    if latent and code and latent[:2] != code[:2]:
        raise ValueError(
            f"{path}: codes of several merged positions (latent_shape {list(latent)}, code_shape {list(code)}) are not "
            "supported: no published model has them"
        )
    ours = our_keys({key: tensor for key, tensor in tensors.items() if not key.startswith("quantizer.")})
    books = _codebooks(tensors, path)
    alike = all(_equal(books[0], book) for book in books)
    shared = bool(hparams.get("shared_codebook", len(books) > 1 and alike))
    if shared and not alike:
        raise ValueError(
            f"{path}: its codebooks differ, but the config has shared_codebook: give the YAML of this file"
        )
    levels = (code or (len(books),))[-1]
    if levels != len(books) and not (shared and len(books) == 1):  # safetensors keeps what is shared once
        raise ValueError(f"{path} holds {len(books)} codebooks, the config's code_shape names {levels}: give its YAML")
    for level, book in enumerate(books[:1] if shared else books):
        ours |= {f"quantizer.codebooks.{level}.{name}": tensor for name, tensor in book.items()}
    decay = hparams.get("decay")
    decay = decay[0] if isinstance(decay, (list, tuple)) and decay else decay
    configs = tuple(
        VectorQuantizerConfig(
            num_codes=len(book["weight"]),
            dim=book["weight"].shape[1],
            codebook="ema",
            beta=number(hparams, "latent_loss_weight", 0.25),
            decay=number({"decay": decay}, "decay", 0.99),
        )
        for book in books
    )
    quantizer = ResidualQuantizerConfig(levels=levels, shared=shared, book=configs[0] if shared else configs)
    described = TokenizerConfig(
        image_size=whole(network, "resolution", 256),
        channels=shape(ours, "encoder.conv_in.weight", path)[1],
        pixels=PixelRange(clamp=False),
        encoder=VqganEncoderConfig(**network_fields(ours, "encoder", path)),
        quantizer=quantizer,
        decoder=VqganDecoderConfig(**network_fields(ours, "decoder", path)),
    )
    return fill(described.build, ours, path)


def convert_discriminator(path: Path, config: dict[str, Any] | None) -> PatchGAN | None:
    """The PatchGAN that the reference saves beside the tokenizer; None where the file holds none."""
    if path.suffix == ".safetensors":
        tensors = below(read_tensors(path), "discriminator.")
    else:
        content = pickles.read(path)
        held = content.get("discriminator") if isinstance(content, Mapping) else None
        tensors = tensors_of(held, path) if isinstance(held, Mapping) and held else {}
    return patchgan(tensors, path) if tensors else None


def _codebooks(tensors: dict[str, Tensor], path: Path) -> list[dict[str, Tensor]]:
    """Each level's tensors by our names, without the row of padding."""
    levels = {int(match[1]) for key in tensors if (match := re.match(r"quantizer\.codebooks\.(\d+)\.", key))}
    books = [below(tensors, f"quantizer.codebooks.{level}.") for level in sorted(levels)]
    for level, found in enumerate(sorted(levels) or [-1]):
        if level != found or "weight" not in books[level]:
            raise ValueError(
                f"{path} has no quantizer.codebooks.{level}.weight: it is of another layout, give its source"
            )
    return [
        {_STATE.get(name, name): tensor[:-1] if name == "weight" else tensor for name, tensor in book.items()}
        for book in books
    ]


def _equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left["weight"].shape == right["weight"].shape and torch.equal(left["weight"], right["weight"])
