"""LlamaGen's tokenizers (arXiv 2406.06525): `encoder.conv_blocks.0.res.0.`, L2-normalised codes, no config file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers_vq.conversion import pickles
from tokenizers_vq.conversion.checkpoint import expect, read_tensors, tensors_of
from tokenizers_vq.conversion.keys import fill, rename, skip
from tokenizers_vq.conversion.patchgan import patchgan
from tokenizers_vq.conversion.vqgan_keys import agree, image_side, network_fields, our_keys, shape
from tokenizers_vq.discriminators.patchgan import PatchGAN
from tokenizers_vq.networks.vqgan import VqganDecoderConfig, VqganEncoderConfig
from tokenizers_vq.quantizers import VectorQuantizerConfig
from tokenizers_vq.tokenizer import PixelRange, Tokenizer, TokenizerConfig


def convert(path: Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of a file; its averaged weights (`ema`) where it has them, as the reference prefers.

    A config may say `codebook_l2_norm` (true in all that is published) and `image_size` (256); where it does not, a
    training checkpoint's `args` do. Pixels are [-1, 1], not clamped. Raises `ValueError` for another layout, and for a
    config that contradicts the keys.
    """
    given = {**arguments_of(path), **(config or {})}
    distance: Any = "cosine" if given.get("codebook_l2_norm", True) else "euclidean"

    def quantizer(codes: int, dim: int) -> VectorQuantizerConfig:
        return VectorQuantizerConfig(num_codes=codes, dim=dim, distance=distance)

    return tokenizer(path, config, given, quantizer)


def tokenizer(
    path: Path,
    config: Mapping[str, Any] | None,
    given: Mapping[str, Any],
    quantizer: Callable[[int, int], Any],
    rules: Sequence[tuple[str, str]] = (),
    flat: Sequence[str] = (),
) -> Tokenizer:
    """Of LlamaGen's networks; `quantizer`: the config of so many codes of a width.

    `rules`: for its keys; `flat`: convolutions of it, by our keys, that are linear layers here. Raises as `convert`.
    """
    names = ("codebook_size", "codebook_embed_dim", "codebook_l2_norm", "encoder_ch_mult", "z_channels", "image_size")
    expect(config, config or {}, names, path)
    tensors = read_tensors(path, "ema", "model", "state_dict")
    if not any(key.startswith("encoder.conv_blocks.") for key in tensors):
        raise ValueError(f"{path} has no encoder.conv_blocks: it is not a tokenizer of LlamaGen")
    tensors = skip(tensors, r"quantize\.codebook_used$", "statistics of training")
    ours = rename(our_keys(tensors), [(r"^quantize\.embedding\.weight$", "quantizer.weight"), *rules])
    ours.update({key: ours[key].flatten(1) for key in flat if key in ours})
    codes, dim = shape(ours, "quantizer.weight", path)
    encoder, decoder = (network_fields(ours, part, path) for part in ("encoder", "decoder"))
    said = {"encoder_ch_mult": encoder["multipliers"], "z_channels": encoder["latent_width"]}
    agree(config, {"codebook_size": codes, "codebook_embed_dim": dim, **said}, path)
    described = TokenizerConfig(
        image_size=image_side(given.get("image_size"), len(encoder["multipliers"])),
        channels=shape(ours, "encoder.conv_in.weight", path)[1],
        pixels=PixelRange(clamp=False),
        encoder=VqganEncoderConfig(**encoder),
        quantizer=quantizer(codes, dim),
        decoder=VqganDecoderConfig(**decoder),
    )
    return fill(described.build, ours, path)


def arguments_of(path: Path) -> dict[str, Any]:
    """What the trainer's command line says in a checkpoint of the two things that its tensors do not tell."""
    content = pickles.read(path) if path.suffix != ".safetensors" else {}
    arguments = content.get("args") if isinstance(content, Mapping) else None
    said = arguments.attributes() if isinstance(arguments, pickles.Inert) else arguments
    if not isinstance(said, Mapping):
        return {}
    wanted = (("codebook_l2_norm", bool), ("image_size", int))
    return {name: said[name] for name, kind in wanted if type(said.get(name)) is kind}


def convert_discriminator(path: Path, config: Mapping[str, Any] | None = None) -> PatchGAN | None:
    """The PatchGAN of a training checkpoint's `discriminator`; None where the file holds none, as published ones."""
    content = pickles.read(path) if path.suffix != ".safetensors" else {}
    state = content.get("discriminator") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping):
        return None
    return patchgan(tensors_of(state, path), path)
