"""PatchGAN as taming-transformers and LlamaGen write it, `main.0.weight ...`, to ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from tokenizers_vq.conversion.keys import fill
from tokenizers_vq.discriminators.patchgan import PatchGAN, PatchGANConfig

_MOST_CONVOLUTIONS = 16


def patchgan_config(tensors: Mapping[str, Tensor], path: Path) -> tuple[int, PatchGANConfig]:
    """Channels of the images, and the config, from the shapes. Raises `ValueError` for another discriminator."""
    if any(key.endswith((".loc", ".scale")) for key in tensors):
        raise ValueError(f"{path}: its discriminator has ActNorm, which ours lacks: train a new one")
    convolutions = sorted(
        int(match[1])
        for key, tensor in tensors.items()
        if (match := re.match(r"main\.(\d+)\.weight$", key)) and tensor.ndim == 4
    )
    if len(convolutions) < 3 or "main.0.weight" not in tensors:
        raise ValueError(f"{path}: its discriminator is not a PatchGAN, or only a part of one: train a new one")
    first = tensors["main.0.weight"]
    if first.ndim != 4 or 0 in first.shape or len(convolutions) > _MOST_CONVOLUTIONS:
        raise ValueError(f"{path}: its discriminator is not a PatchGAN: train a new one")
    return first.shape[1], PatchGANConfig(width=first.shape[0], layers=len(convolutions) - 2)


def patchgan(tensors: Mapping[str, Tensor], path: Path) -> PatchGAN:
    """The discriminator in eval mode. Raises `ValueError` for another one, and for missing or surplus keys."""
    channels, config = patchgan_config(tensors, path)
    # The reference lists its layers in one sequence: a convolution and an activation, then threes with a batch norm.
    blocks = config.layers + 1
    ours = {}
    for key, tensor in tensors.items():
        match = re.match(r"main\.(\d+)\.(.+)$", key)
        if match is None:
            ours[key] = tensor
            continue
        place = int(match[1])
        block, part = ((place + 1) // 3, (place + 1) % 3) if place else (0, 0)
        ours[f"head.{match[2]}" if block == blocks else f"blocks.{block}.{part}.{match[2]}"] = tensor
    return fill(lambda: config.build(channels), ours, path).eval()
