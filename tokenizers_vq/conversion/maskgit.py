"""MaskGIT's VQGAN as open-muse and 1d-tokenizer publish it: `encoder.down. decoder.up. quantize.embedding.weight`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenizers_vq.conversion.checkpoint import below, expect, read_config, read_tensors
from tokenizers_vq.conversion.keys import fill, joined, rekey, rename
from tokenizers_vq.conversion.vqgan_keys import agree, image_side
from tokenizers_vq.networks.maskgit import MaskgitDecoderConfig, MaskgitEncoderConfig
from tokenizers_vq.quantizers import VectorQuantizerConfig
from tokenizers_vq.tokenizer import PixelRange, Tokenizer, TokenizerConfig


def convert(path: Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of a .bin or .safetensors file, or of a folder that holds one, with its `config.json` or not.

    Everything is read from the keys but the image size (config: `resolution`; 256 without). Pixels are [0, 1], clamped
    on decoding as the reference clamps. Raises `ValueError` for keys that are missing or surplus, and for a config that
    contradicts them.
    """
    config = folder_config(path, config)
    path = weights_file(path)
    names = ("resolution", "hidden_channels", "channel_mult", "num_res_blocks", "num_embeddings", "z_channels")
    expect(config, config or {}, names, path)
    tensors = read_tensors(path, "state_dict", "model")
    book = wanted(tensors, "quantize.embedding.weight", path)
    channels = wanted(tensors, "encoder.conv_in.weight", path).shape[1]
    encoder = network_fields(below(tensors, "encoder."), "down", path)
    said = {"hidden_channels": encoder["width"], "channel_mult": encoder["multipliers"], "num_channels": channels}
    said |= {"num_res_blocks": encoder["blocks"], "num_embeddings": book.shape[0], "z_channels": book.shape[1]}
    agree(config, said, path)
    described = TokenizerConfig(
        image_size=image_side((config or {}).get("resolution"), len(encoder["multipliers"])),
        channels=channels,
        pixels=PixelRange(low=0.0, high=1.0),
        encoder=MaskgitEncoderConfig(**encoder),
        quantizer=VectorQuantizerConfig(num_codes=book.shape[0], dim=book.shape[1]),
        decoder=MaskgitDecoderConfig(**network_fields(below(tensors, "decoder."), "up", path)),
    )
    ours = joined(
        ("encoder.", "encoder.", encoder_tensors(below(tensors, "encoder."))),
        ("decoder.", "decoder.", decoder_tensors(below(tensors, "decoder."))),
        ("", "", {key: value for key, value in tensors.items() if not key.startswith(("encoder.", "decoder."))}),
    )
    return fill(described.build, rename(ours, [(r"^quantize\.embedding\.weight$", "quantizer.weight")]), path)


def folder_config(path: Path, config: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """`config`, or where none is given the `config.json` of a folder."""
    if config is None and (path / "config.json").is_file():
        return read_config(path / "config.json")
    return config


def weights_file(path: Path) -> Path:
    """`path`, or the one file of weights in a folder. Raises `ValueError` where a folder holds none, or several."""
    if not path.is_dir():
        return path
    found = sorted(file for suffix in ("safetensors", "bin", "pt", "ckpt") for file in path.glob(f"*.{suffix}"))
    preferred = [file for file in found if file.suffix == ".safetensors"] or found
    if len(preferred) != 1:
        names = ", ".join(file.name for file in preferred) or "no .safetensors or .bin"
        raise ValueError(f"{path} holds {names}: give the file of weights to convert")
    return preferred[0]


def wanted(tensors: Mapping[str, Tensor], key: str, path: Path) -> Tensor:
    """The tensor of two or more dimensions at `key`. Raises `ValueError` where there is none."""
    if key not in tensors:
        raise ValueError(f"{path} has no {key}: it is of another layout, give the source that it comes from")
    if tensors[key].ndim < 2 or 0 in tensors[key].shape:
        raise ValueError(f"{path}: {key} is {tuple(tensors[key].shape)}, expected a table or a layer's weight")
    return tensors[key]


def network_fields(tensors: Mapping[str, Tensor], levels: str, path: Path) -> dict[str, Any]:
    """Fields of `MaskgitEncoderConfig` (`levels`: "down") or `MaskgitDecoderConfig` ("up") from the tensors' shapes."""
    blocks = [match for key in tensors if (match := re.match(rf"{levels}\.(\d+)\.block\.(\d+)\.conv1\.", key))]
    if not blocks:
        raise ValueError(f"{path} has no {levels}.0.block.0.conv1.weight: it is not a MaskGIT VQGAN")
    count = 1 + max(int(match[1]) for match in blocks)
    widths = [wanted(tensors, f"{levels}.{level}.block.0.conv1.weight", path).shape[0] for level in range(count)]
    # The encoder's first convolution tells the base width; for the decoder any common divisor will do.
    base = wanted(tensors, "conv_in.weight", path).shape[0] if levels == "down" else math.gcd(*widths)
    if any(width % base for width in widths):
        raise ValueError(f"{path}: the widths {widths} of its levels are not multiples of {base}")
    shortcuts = [
        value.shape for key, value in tensors.items() if key.endswith("nin_shortcut.weight") and value.ndim == 4
    ]
    return {
        "width": base,
        "multipliers": tuple(width // base for width in widths),
        "blocks": 1 + max(int(match[2]) for match in blocks),
        # The published mistake shows in the shape: it reads as many channels as it gives.
        "shortcut": "input" if any(shape[0] != shape[1] for shape in shortcuts) else "output",
    }


_BLOCK = [(r"^mid\.", "middle."), (r"^norm_out\.", "norm."), (r"\.nin_shortcut\.", ".shortcut.")]


def encoder_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors by our keys."""
    rules = [(r"^down\.(\d+)\.block\.", r"levels.\1."), (r"^conv_out\.", "quant_conv.")]
    return rename(tensors, [*_BLOCK, *rules])


def decoder_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The decoder's tensors by our keys; our levels run from the coarsest on, each ending in its upsampling."""
    levels = [int(match[1]) for key in tensors if (match := re.match(r"up\.(\d+)\.", key))]
    blocks = [int(match[1]) for key in tensors if (match := re.match(r"up\.\d+\.block\.(\d+)\.", key))]
    last, upsample = max(levels, default=0), 1 + max(blocks, default=0)

    def counted(key: str) -> str:
        level = re.match(r"up\.(\d+)\.(?:block\.|upsample_conv\.)", key)
        if not level:
            return key
        part = key.split(".", 2)[2].removeprefix("block.").replace("upsample_conv.", f"{upsample}.conv.")
        return f"levels.{last - int(level[1])}.{part}"

    return rename(rekey(tensors, counted), [*_BLOCK, (r"^conv_in\.", "post_quant_conv."), (r"^conv_out\.", "head.")])
