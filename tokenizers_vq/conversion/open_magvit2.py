"""Open-MAGVIT2 as SEED-Voken publishes it: `encoder.down. encoder.mid_block. decoder.adaptive.`, no convolution at
the codes, no stored codebook."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenizers_vq.conversion.checkpoint import expect
from tokenizers_vq.conversion.given import number
from tokenizers_vq.conversion.keys import fill, rekey, rename
from tokenizers_vq.conversion.seed_voken import CONFIGURED, convert_discriminator, read, resolution, settings
from tokenizers_vq.conversion.vqgan_keys import shape
from tokenizers_vq.networks.magvit2 import Magvit2DecoderConfig, Magvit2EncoderConfig
from tokenizers_vq.quantizers import LfqQuantizerConfig
from tokenizers_vq.tokenizer import PixelRange, Tokenizer, TokenizerConfig

__all__ = ["convert", "convert_discriminator"]

_RULES = [
    (r"^encoder\.down\.", "encoder.levels."),
    (r"\.(down|up)sample\.conv1\.", ".resample.conv."),
    (r"\.downsample\.", ".resample."),
    (r"\.block\.(\d+)\.", r".blocks.\1."),
    (r"\.mid_block\.", ".middle."),
    (r"\.nin_shortcut\.", ".shortcut."),
    (r"\.norm_out\.", ".norm."),
    (r"\.gamma\.", ".scale."),
    (r"\.beta\.", ".bias."),
    (r"^decoder\.conv_out\.", "decoder.head."),
]


def convert(path: Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of a Lightning .ckpt, with the averaged weights where the file holds them.

    Sizes are read from the keys, the image size from the config (256 without). Raises `ValueError` for keys that are
    missing or surplus.
    """
    arguments = settings(config)
    expect(config, arguments, CONFIGURED, path)

    def quantizer(bits: int) -> LfqQuantizerConfig:
        weights: dict[str, Any] = dict(entropy_weights(arguments))
        return LfqQuantizerConfig(bits=bits, entropy_group=min(bits, 18), **weights)

    return tokenizer(read(path, arguments), path, resolution(arguments), quantizer)


def entropy_weights(arguments: Mapping[str, Any]) -> dict[str, float]:
    """Weights inside the entropy term, as far as the config says them."""
    return {
        name: number(arguments, theirs, 0.0)
        for name, theirs in [
            ("sample_entropy", "sample_minimization_weight"),
            ("batch_entropy", "batch_maximization_weight"),
        ]
        if arguments.get(theirs) is not None
    }


def tokenizer(
    tensors: Mapping[str, Tensor], path: Path, image_size: int, quantizer: Callable[[int], LfqQuantizerConfig]
) -> Tokenizer:
    """Of Open-MAGVIT2's networks with sign bits, as many as the encoder's features are wide; `quantizer`: of so many.

    Raises `ValueError` for keys that are missing or surplus, and for a decoder that takes noise beside the code.
    """
    finest = _count(tensors, r"decoder\.up\.(\d+)\.") - 1

    def counted(key: str) -> str:
        return re.sub(
            r"^decoder\.(up|adaptive)\.(\d+)\.",
            lambda match: f"decoder.levels.{finest - int(match[2])}.{'adaptive.' if match[1] == 'adaptive' else ''}",
            key,
        )

    ours = rename(rekey(tensors, counted), _RULES)
    for key in ("encoder.conv_in.weight", "encoder.conv_out.weight", "decoder.levels.0.blocks.0.conv1.weight"):
        if key not in ours:
            raise ValueError(
                f"{path} has no tensor for {key}: it is not an Open-MAGVIT2 checkpoint, give its own source"
            )
    bits, channels = shape(ours, "encoder.conv_out.weight", path)[0], shape(ours, "encoder.conv_in.weight", path)[1]
    if shape(ours, "decoder.conv_in.weight", path)[1] == 2 * bits:
        raise ValueError(
            f"{path}: its decoder takes noise beside the {bits} channels of a code, so a code has many images: only "
            "models whose decoder draws nothing are converted"
        )
    described = TokenizerConfig(
        image_size=image_size,
        channels=channels,
        pixels=PixelRange(clamp=False),
        encoder=Magvit2EncoderConfig(**_fields(ours, "encoder", path)),
        quantizer=quantizer(bits),
        decoder=Magvit2DecoderConfig(**_fields(ours, "decoder", path)),
    )
    return fill(described.build, ours, path)


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max((int(match[1]) for key in tensors if (match := re.match(pattern, key))), default=-1)


def _fields(tensors: Mapping[str, Tensor], part: str, path: Path) -> dict[str, Any]:
    levels = _count(tensors, rf"{part}\.levels\.(\d+)\.blocks\.")
    widths = [shape(tensors, f"{part}.levels.{i}.blocks.0.conv1.weight", path)[0] for i in range(levels)]
    if not widths:
        raise ValueError(f"{path} has no residual blocks of {part}: it is not an Open-MAGVIT2 checkpoint")
    if part == "decoder":  # ours run from the coarsest on
        widths = widths[::-1]
    base = shape(tensors, "encoder.conv_in.weight", path)[0]
    if any(width % base for width in widths):
        if part == "encoder":
            raise ValueError(f"{path}: the widths {widths} of the encoder's levels are not multiples of {base}")
        base = math.gcd(*widths)
    return {
        "width": base,
        "multipliers": tuple(width // base for width in widths),
        "blocks": _count(tensors, rf"{part}\.levels\.0\.blocks\.(\d+)\."),
    }
