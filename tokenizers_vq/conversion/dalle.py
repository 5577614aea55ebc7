"""DALL-E's discrete VAE as openai/DALL-E publishes it: `blocks.group_1.block_1.res_path.conv_1.w`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenizers_vq.conversion import pickles
from tokenizers_vq.conversion.checkpoint import expect, read_tensors, tensors_of
from tokenizers_vq.conversion.keys import fill, rekey, rename
from tokenizers_vq.networks.dvae import DvaeDecoderConfig, DvaeEncoderConfig
from tokenizers_vq.quantizers.gumbel import GumbelQuantizerConfig
from tokenizers_vq.tokenizer import PixelRange, Tokenizer, TokenizerConfig

_PUBLISHED = {"image_size": 256, "pixels": PixelRange(low=0.1, high=0.9)}
_RULES = [
    (r"\.blocks\.group(\d+)\.block(\d+)\.", r".levels.\1.\2."),
    (r"\.res_path\.conv(\d+)\.", r".convs.\1."),
    (r"\.id_path\.", ".shortcut."),
    (r"\.w$", ".weight"),
    (r"\.b$", ".bias"),
    (r"^encoder\.blocks\.input\.", "encoder.conv_in."),
    (r"^encoder\.blocks\.output\.conv\.", "encoder.quant_conv."),
    (r"^decoder\.blocks\.input\.bias$", "decoder.bias"),
    (r"^decoder\.blocks\.output\.conv\.", "decoder.head."),
]


def convert(path: Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of a folder with `encoder.pkl` and `decoder.pkl`, or of one file that holds the two.

    There they lie under `encoder` and `decoder`, or the keys begin so, or with dalle-pytorch's `enc.` and `dec.`.
    Everything is read from the keys but the image size, the published 256 unless the config has an `image_size`.
    Pixels are mapped to [0.1, 0.9]; decoding clamps, as the reference does. The decoder's first convolution, which sees
    one-hot codes, becomes the codebook. Raises `ValueError` for keys that are missing or surplus.
    """
    expect(config, config or {}, ("image_size", "group_count", "n_hid", "n_blk_per_group", "vocab_size"), path)
    tensors = rename(_counted_from_0(_tensors(path)), _RULES)
    first = _wanted(tensors, "decoder.blocks.input.weight", path)
    tensors["quantizer.weight"] = first[:, :, 0, 0].T.contiguous()
    del tensors["decoder.blocks.input.weight"]
    dim, codes = first.shape[:2]
    described = TokenizerConfig(
        **{**_PUBLISHED, **{name: value for name, value in (config or {}).items() if name == "image_size"}},
        channels=_wanted(tensors, "encoder.conv_in.weight", path).shape[1],
        encoder=DvaeEncoderConfig(**_fields(tensors, "encoder", path)),
        quantizer=GumbelQuantizerConfig(num_codes=codes, dim=dim, project=False, kl_weight=6.6 / 192),
        decoder=DvaeDecoderConfig(**_fields(tensors, "decoder", path), output="logit_laplace"),
    )
    return fill(described.build, tensors, path)


def _tensors(path: Path) -> dict[str, Tensor]:
    parts: dict[str, dict[str, Tensor]] = {}
    for part in ("encoder", "decoder"):
        file = path / f"{part}.pkl"
        if path.is_dir() and not file.is_file():
            raise FileNotFoundError(f"{path} holds no {part}.pkl: give the folder of encoder.pkl and decoder.pkl")
        if path.is_dir():
            parts[part] = read_tensors(file, "state_dict")
        elif path.suffix != ".safetensors":
            content = pickles.read(path)
            inner = content.get(part) if isinstance(content, Mapping) else None
            if isinstance(inner, (Mapping, pickles.Inert)):
                parts[part] = tensors_of(inner, path)
    if len(parts) == 2:
        return {f"{part}.{key}": tensor for part, tensors in parts.items() for key, tensor in tensors.items()}
    return rename(read_tensors(path, "state_dict", "model"), [(r"^(en|de)c\.", r"\1coder.")])


def _counted_from_0(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`group_1` -> `group0`, and blocks and convolutions likewise."""
    return rekey(tensors, lambda key: re.sub(r"_(\d+)(?=\.)", lambda match: str(int(match[1]) - 1), key))


def _wanted(tensors: Mapping[str, Tensor], key: str, path: Path) -> Tensor:
    if key not in tensors:
        raise ValueError(f"{path} has no {key}: it is not a discrete VAE of DALL-E, encoder and decoder")
    if tensors[key].ndim != 4 or 0 in tensors[key].shape:
        raise ValueError(f"{path}: {key} is {tuple(tensors[key].shape)}, expected a convolution's weight")
    return tensors[key]


def _fields(tensors: Mapping[str, Tensor], part: str, path: Path) -> dict[str, Any]:
    """`width`, `multipliers` and `blocks` of the encoder or decoder, from the shapes of its tensors."""
    last = re.compile(rf"{part}\.levels\.(\d+)\.(\d+)\.convs\.3\.weight")
    blocks = {(int(match[1]), int(match[2])): tensors[key] for key in tensors if (match := last.fullmatch(key))}
    if not blocks:
        raise ValueError(f"{path} has no {part}.blocks.group_1.block_1: it is not a discrete VAE of DALL-E")
    levels, count = (1 + max(place[axis] for place in blocks) for axis in (0, 1))
    widths = [_wanted(tensors, f"{part}.levels.{i}.0.convs.3.weight", path).shape[0] for i in range(levels)]
    if part == "decoder":
        widths.reverse()
    if any(width % widths[0] for width in widths):
        raise ValueError(f"{path}: the {part}'s widths {widths} are not multiples of {widths[0]}")
    return {"width": widths[0], "multipliers": tuple(width // widths[0] for width in widths), "blocks": count}
