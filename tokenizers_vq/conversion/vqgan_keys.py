"""Keys of VQGAN's networks as taming-transformers and its many descendants write them, to ours, and what they tell.

Shared layout: `encoder.down.0.block.0.`, `.attn.0.`, `.downsample.`, `mid.block_1. mid.attn_1. mid.block_2.`,
`decoder.up.0.` (0 = full size), `quant_conv. post_quant_conv.`. LlamaGen's `conv_blocks.0.res.0.` and `mid.0.`, whose
decoder counts from the coarsest level on, and VAR's joint `qkv` are read too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenizers_vq.config import MOST_LEVELS
from tokenizers_vq.conversion.keys import rekey, rename

_RULES = [
    (r"^encoder\.(?:down|conv_blocks)\.", "encoder.levels."),
    (r"^decoder\.conv_blocks\.", "decoder.levels."),
    (r"^((?:en|de)coder\.levels\.\d+)\.(?:block|res)\.", r"\1.blocks."),
    (r"^((?:en|de)coder\.levels\.\d+)\.attn\.", r"\1.attention."),
    (r"^((?:en|de)coder\.levels\.\d+)\.(?:down|up)sample\.", r"\1.resample."),
    (r"^((?:en|de)coder)\.mid\.block_1\.", r"\1.middle.0."),
    (r"^((?:en|de)coder)\.mid\.attn_1\.", r"\1.middle.1."),
    (r"^((?:en|de)coder)\.mid\.(\d+)\.", r"\1.middle.\2."),
    (r"^((?:en|de)coder\..*)\.nin_shortcut\.", r"\1.shortcut."),
    (r"^((?:en|de)coder\..*)\.proj_out\.", r"\1.out."),
    (r"^((?:en|de)coder)\.norm_out\.", r"\1.norm."),
    (r"^decoder\.conv_out\.", "decoder.head."),
    (r"^quant_conv\.", "encoder.quant_conv."),
    (r"^post_quant_conv\.", "decoder.post_quant_conv."),
]


def our_keys(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` with the keys of encoder, decoder and the two convolutions at the codes as ours; others stay."""
    finest = max((int(match[1]) for key in tensors if (match := re.match(r"decoder\.up\.(\d+)\.", key))), default=0)
    attended = {
        part for part in ("encoder", "decoder") if any(key.startswith(f"{part}.mid.attn_1.") for key in tensors)
    }

    def counted(key: str) -> str:
        key = re.sub(r"^decoder\.up\.(\d+)\.", lambda match: f"decoder.levels.{finest - int(match[1])}.", key)
        return re.sub(
            r"^((?:en|de)coder)\.mid\.block_2\.",
            lambda match: f"{match[1]}.middle.{2 if match[1] in attended else 1}.",
            key,
        )

    ours = rekey(tensors, counted)
    for key in [key for key, joint in ours.items() if joint.ndim and re.match(r"(en|de)coder\..*\.qkv\.", key)]:
        joint, theirs = ours.pop(key), ours.original.pop(key)
        for name, third in zip("qkv", joint.chunk(3), strict=True):
            part = key.replace(".qkv.", f".{name}.")
            ours[part], ours.original[part] = third, theirs
    return rename(ours, _RULES)


def shape(tensors: Mapping[str, Tensor], key: str, path: Path) -> tuple[int, ...]:
    """Shape of the weight or codebook at our `key`. Raises `ValueError` where there is none."""
    if key not in tensors:
        raise ValueError(f"{path} has no tensor for {key}: it is of another layout, give the source it comes from")
    if tensors[key].ndim < 2 or 0 in tensors[key].shape:
        raise ValueError(f"{path}: {key} is {tuple(tensors[key].shape)}, expected a layer's weight or a codebook")
    return tuple(tensors[key].shape)


def agree(given: Any, found: Mapping[str, Any], path: Path) -> None:
    """Raises `ValueError` where a config's fields, `given`, contradict what the tensors tell; absent ones pass."""
    for name, value in found.items():
        said = given.get(name) if isinstance(given, Mapping) else None
        if isinstance(said, Sequence) and not isinstance(said, str):
            said = tuple(said)
        if said is not None and said != value:
            raise ValueError(
                f"{path}: the config says {name} {said}, its tensors {value}: give the config that belongs to them"
            )


def network_said(fields: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """An encoder's `network_fields`, and the images' channels, by the names in the references' `ddconfig`."""
    return {
        "ch": fields["width"],
        "ch_mult": fields["multipliers"],
        "num_res_blocks": fields["blocks"],
        "z_channels": fields["latent_width"],
        "in_channels": channels,
        "out_ch": channels,
    }


def class_named(config: Any) -> str:
    """The class that a config names for the tokenizer (`target`, `class_path`), "" where it names none."""
    found = ""
    for inner in ("model", "params", "init_args", "first_stage_config"):
        part = config.get(inner) if isinstance(config, Mapping) else None
        for level in (config, part):
            if isinstance(level, Mapping):
                found = str(level.get("target") or level.get("class_path") or found)
        config = part if isinstance(part, Mapping) else config
    return found


def image_side(given: Any, levels: int) -> Any:
    """`given`, 256 without, cut to what networks of so many levels give back: a multiple of their stride."""
    side, stride = 256 if given is None else given, 2 ** (levels - 1)
    return max(side // stride * stride, stride) if isinstance(side, int) and side > 0 else side


def network_fields(tensors: Mapping[str, Tensor], part: str, path: Path) -> dict[str, Any]:
    """What `tensors` (by our keys) tell of `part`, "encoder" or "decoder", as fields of networks/vqgan.py's configs.

    Everything but groups and dropout: width, multipliers, blocks, attention, middle_attention, latent_width and
    quant_kernel. Raises `ValueError` for keys that describe no such network.
    """
    found = [
        match for key in tensors if (match := re.match(rf"{part}\.levels\.(\d+)\.blocks\.(\d+)\.conv1\.weight", key))
    ]
    if not found:
        raise ValueError(f"{path} has no residual blocks of {part}: it is of another layout, give its source")
    count, blocks = (1 + max(int(match[i]) for match in found) for i in (1, 2))
    if count > MOST_LEVELS:
        raise ValueError(f"{path} has a key of level {count - 1} of the {part}: it is of another layout")
    widths = [shape(tensors, f"{part}.levels.{i}.blocks.0.conv1.weight", path)[0] for i in range(count)]
    attention = [i for i in range(count) if any(key.startswith(f"{part}.levels.{i}.attention.") for key in tensors)]
    if part == "decoder":  # its levels run from the coarsest on, the config's from full size
        widths, attention = widths[::-1], sorted(count - 1 - i for i in attention)
    # The encoder's first convolution tells the base width; the decoder's multipliers are free up to a factor.
    inner = shape(tensors, f"{part}.conv_in.weight", path)
    width = inner[0] if part == "encoder" else _base(tensors, widths)
    if any(other % width for other in widths):
        raise ValueError(f"{path}: the widths {widths} of the {part}'s levels are not multiples of {width}")
    beside_codes = "encoder.quant_conv.weight" if part == "encoder" else "decoder.post_quant_conv.weight"
    return {
        "width": width,
        "multipliers": tuple(other // width for other in widths),
        "blocks": blocks,
        "attention": tuple(attention),
        "middle_attention": f"{part}.middle.1.q.weight" in tensors,
        "latent_width": inner[1] if part == "decoder" else shape(tensors, "encoder.conv_out.weight", path)[0],
        "quant_kernel": shape(tensors, beside_codes, path)[-1] if beside_codes in tensors else 1,
    }


def _base(tensors: Mapping[str, Tensor], widths: list[int]) -> int:
    encoder = tensors.get("encoder.conv_in.weight")
    if encoder is not None and all(width % encoder.shape[0] == 0 for width in widths):
        return encoder.shape[0]
    return math.gcd(*widths)
