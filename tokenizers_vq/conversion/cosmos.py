"""NVIDIA Cosmos' discrete image tokenizers, DI8x8 and DI16x16, published as TorchScript archives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenizers_vq.conversion import torchscript
from tokenizers_vq.conversion.checkpoint import expect, read_tensors
from tokenizers_vq.conversion.given import whole, wholes
from tokenizers_vq.conversion.keys import fill, skip
from tokenizers_vq.conversion.vqgan_keys import network_fields, our_keys, shape
from tokenizers_vq.networks.cosmos import CosmosDecoderConfig, CosmosEncoderConfig
from tokenizers_vq.quantizers import FsqQuantizerConfig
from tokenizers_vq.tokenizer import PixelRange, Tokenizer, TokenizerConfig

_PUBLISHED = (8, 8, 8, 5, 5, 5)
_MOST_LEVELS = 64


def convert(path: Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of `autoencoder.jit`, of a folder with it or with `encoder.jit` and `decoder.jit`, or of a plain
    state dict.

    Sizes are read from the keys. `config` may name the reference's `levels` (else the archive's own, else the published
    8 8 8 5 5 5), `in_channels` (else 3) and `resolution` (else 1024). Published weights are bfloat16, and the reference
    computes in it; float32 here, so a few codes differ from its. Raises `ValueError` for keys that do not fit, and for
    a quantizer or patching other than FSQ and Haar.
    """
    settings = dict(config or {})
    names = ("levels", "in_channels", "resolution", "quantizer", "patch_method", "embedding_dim", "z_channels")
    expect(config, settings, names, path)
    for name, only in (("quantizer", "FSQ"), ("patch_method", "haar")):
        if settings.get(name, only) != only:
            raise ValueError(f"{path}: {name} {settings[name]!r} of the config is not published; only {only} is read")
    tensors = _read(path)
    levels = wholes(settings, "levels", _levels(tensors) or _PUBLISHED)
    ours = our_keys(
        skip(tensors, r"(encoder\.patcher|decoder\.unpatcher|quantizer|inv_quant)\.", "constants of the archive")
    )
    dim, bands = shape(ours, "encoder.quant_conv.weight", path)[0], shape(ours, "encoder.conv_in.weight", path)[1]
    if dim != len(levels):
        raise ValueError(f"{path} has codes of {dim} channels, but there are levels for {len(levels)}: give a config")
    channels = whole(settings, "in_channels", 3)
    patch = math.isqrt(bands // channels) if channels > 0 else 0
    if channels * patch**2 != bands:
        raise ValueError(
            f"{path} has {bands} bands, no square patch of {channels} channels: give in_channels in a config"
        )
    described = TokenizerConfig(
        image_size=whole(settings, "resolution", 1024),
        channels=channels,
        pixels=PixelRange(clamp=False),
        encoder=CosmosEncoderConfig(
            **network_fields(ours, "encoder", path), patch=patch, resamplings=_resamplings(ours, "encoder")
        ),
        quantizer=FsqQuantizerConfig(levels=levels, bound="atanh"),
        decoder=CosmosDecoderConfig(
            **network_fields(ours, "decoder", path), patch=patch, resamplings=_resamplings(ours, "decoder")
        ),
    )
    return fill(described.build, ours, path)


def _read(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        whole, halves = path / "autoencoder.jit", [path / "encoder.jit", path / "decoder.jit"]
        files = [whole] if whole.exists() else halves
        missing = [file.name for file in files if not file.exists()]
        if missing:
            raise FileNotFoundError(f"{path} holds neither autoencoder.jit nor {' and '.join(missing)}: download them")
    else:
        files = [path]
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= torchscript.read(file) if torchscript.is_archive(file) else read_tensors(file, "state_dict", "model")
    return tensors


def _levels(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    found = next((tensor for key, tensor in tensors.items() if key.endswith("quantizer._levels")), None)
    if found is None or found.ndim != 1 or found.is_floating_point() or len(found) > _MOST_LEVELS:
        return ()
    return tuple(map(int, found))


def _resamplings(tensors: Mapping[str, Tensor], part: str) -> int:
    return sum(key.startswith(f"{part}.levels.") and key.endswith(".resample.conv.weight") for key in tensors)
