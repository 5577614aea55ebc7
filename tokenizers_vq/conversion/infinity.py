"""Infinity's tokenizers (arXiv 2412.04431): VQGAN's networks without attention, multi-scale sign bits, no phi."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers_vq.conversion.checkpoint import expect, read_tensors
from tokenizers_vq.conversion.keys import fill, rename, skip
from tokenizers_vq.conversion.vqgan_keys import network_fields, our_keys, shape
from tokenizers_vq.networks.vqgan import VqganDecoderConfig, VqganEncoderConfig
from tokenizers_vq.quantizers import BsqQuantizerConfig, MultiscaleQuantizerConfig
from tokenizers_vq.quantizers.schedules import infinity_scales
from tokenizers_vq.tokenizer import Tokenizer, TokenizerConfig

_ORIGINAL: dict[tuple[int, int], tuple[Any, ...]] = {
    (16, 16): (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    (32, 32): (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    (64, 64): (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
    (36, 64): (1, 2, 3, 4, 6, (9, 12), (13, 16), (18, 24), (24, 32), (32, 48), (36, 64)),
}
"""scales by the last, of `schedule_mode: original`"""


def convert(path: Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of an `infinity_vae_*.pth`, or of its tensors.

    Sizes are read from the keys, but for the scales, which no file holds: `scale_schedule` of the config lists them as
    heights and widths; else they are those of `image_size` (256) in the reference's table, `schedule_mode: dynamic` (as
    all published) or `original`. `resized` gives those of other images. Images in [-1, 1] both ways, clamped by
    `decode`. Raises `ValueError` for keys that are missing or surplus, and for sizes that the tables do not have.
    """
    given = dict(config or {})
    expect(config, given, ("scale_schedule", "schedule_mode", "image_size"), path)
    tensors = skip(read_tensors(path, "vae", "state_dict"), r"quantizer?\.lfq\.mask$", "the places of bits in a code")
    plain = rename(tensors, [(r"\.conv\.(weight|bias)$", r".\1"), (r"\.norm\.(weight|bias)$", r".\1")])
    plain = rename(plain, [(r"\.(down|up)sample\.(weight|bias)$", r".\1sample.conv.\2")])
    ours = our_keys(plain)
    bits = shape(ours, "encoder.conv_out.weight", path)[0]
    encoder, decoder = (_network(ours, part, path) for part in ("encoder", "decoder"))
    stride = 2 ** (len(encoder["multipliers"]) - 1)
    scales = _scales(given, stride, path)
    last = scales[-1] if isinstance(scales[-1], tuple) else (scales[-1], scales[-1])
    described = TokenizerConfig(
        image_size=last[0] * stride if last[0] == last[1] else (last[0] * stride, last[1] * stride),
        channels=shape(ours, "encoder.conv_in.weight", path)[1],
        encoder=VqganEncoderConfig(**encoder),
        quantizer=MultiscaleQuantizerConfig(
            scales=scales,
            book=BsqQuantizerConfig(bits=bits, first_channel="most", beta=0.25),
            phis=0,
            enlarging="bilinear",
            confine="each",
            schedule="infinity",
        ),
        decoder=VqganDecoderConfig(**decoder),
    )
    return fill(described.build, ours, path)


def _network(tensors: Mapping[str, Any], part: str, path: Path) -> dict[str, Any]:
    fields = network_fields(tensors, part, path)
    widths = [fields["width"] * multiplier for multiplier in fields["multipliers"]]
    groups = {24 if width % 32 else 32 for width in widths}  # the reference's, by each level's width
    if len(groups) > 1 or any(width % min(groups) for width in widths):
        raise ValueError(f"{path}: levels of {widths} channels have norms of 24 and 32 groups, which is not supported")
    return {**fields, "groups": groups.pop(), "quant_kernel": 0, "latent_width": None}


def _scales(given: Mapping[str, Any], stride: int, path: Path) -> tuple[Any, ...]:
    listed, mode = given.get("scale_schedule"), given.get("schedule_mode", "dynamic")
    if listed is not None:
        # With the reference's frames in front too: (1, h, w).
        rows = [tuple(scale)[-2:] for scale in listed if isinstance(scale, (list, tuple))]
        sides = [side for row in rows for side in row]
        paired = rows and len(rows) == len(listed) and len(sides) == 2 * len(rows)
        if not paired or not all(type(side) is int for side in sides):
            raise ValueError(
                f"{path}: scale_schedule must list heights and widths, [[1, 1], [2, 2]] say, got {listed!r}"
            )
        return tuple(height if height == width else (height, width) for height, width in rows)
    size = given.get("image_size", 256)
    pair = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, (list, tuple)) else ()
    if len(pair) != 2 or not all(type(side) is int and side > 0 and side % stride == 0 for side in pair):
        raise ValueError(f"{path}: image_size must be a side, or height and width, that {stride} divides, got {size!r}")
    last = (pair[0] // stride, pair[1] // stride)
    found = infinity_scales(last) if mode == "dynamic" else _ORIGINAL.get(last) if mode == "original" else None
    if found is None:
        raise ValueError(
            f"{path}: schedule_mode {mode!r} has no scales that end in {last[0]}x{last[1]}: list them as "
            "scale_schedule in a config, [[1, 1], [2, 2]] say"
        )
    return tuple(s if isinstance(s, int) or s[0] != s[1] else s[0] for s in found)
