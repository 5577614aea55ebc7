"""ViT-VQGAN as enhancing-transformers publishes it: `encoder.transformer.`, `quantizer.`, `pre_quant.`, `loss.*`."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenizers_vq.conversion.checkpoint import below, read_tensors
from tokenizers_vq.conversion.given import number, part, whole, wholes
from tokenizers_vq.conversion.keys import fill, rename, skip
from tokenizers_vq.discriminators.stylegan2 import StyleGAN2
from tokenizers_vq.networks.vit import VitDecoderConfig, VitEncoderConfig
from tokenizers_vq.quantizers import ResidualQuantizerConfig, VectorQuantizerConfig
from tokenizers_vq.tokenizer import PixelRange, Tokenizer, TokenizerConfig

logger = logging.getLogger(__name__)
_MOST_BLOCKS = 12  # of the discriminator, each of which halves the size

_RULES = [
    (r"^(en|de)coder\.(en|de)_pos_embedding$", r"\1coder.trunk.positions"),
    (r"^encoder\.to_patch_embedding\.0\.", "encoder.embed."),
    (r"^decoder\.to_pixel\.1\.weight$", "decoder.head.weight"),
    (r"^decoder\.to_pixel\.1\.bias$", "decoder.bias"),
    (r"\.transformer\.norm\.", ".trunk.norm."),
    (r"\.transformer\.layers\.(\d+)\.0\.norm\.", r".trunk.blocks.\1.norm1."),
    (r"\.transformer\.layers\.(\d+)\.1\.norm\.", r".trunk.blocks.\1.norm2."),
    (r"\.transformer\.layers\.(\d+)\.0\.fn\.to_qkv\.", r".trunk.blocks.\1.attn.qkv."),
    (r"\.transformer\.layers\.(\d+)\.0\.fn\.to_out\.", r".trunk.blocks.\1.attn.proj."),
    (r"\.transformer\.layers\.(\d+)\.1\.fn\.net\.0\.", r".trunk.blocks.\1.mlp.fc1."),
    (r"\.transformer\.layers\.(\d+)\.1\.fn\.net\.2\.", r".trunk.blocks.\1.mlp.fc2."),
    (r"^pre_quant\.", "encoder.quant_conv."),
    (r"^post_quant\.", "decoder.post_quant_conv."),
]


def convert(path: Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of a Lightning checkpoint or a plain file; `config` is the repository's YAML.

    Both may be of a transformer on top of it, whose `stage1_model` the tokenizer is then.
    Pixels are [0, 1], not clamped. Codes of a Gumbel model are the arguments of its largest logits, without the noise
    that the reference draws. Raises `ValueError` without a config, which alone tells heads and levels.
    """
    params = _params(config, path)
    tensors = _stage1(read_tensors(path, "state_dict"))
    channels, *patch = _wanted(tensors, "encoder.to_patch_embedding.0.weight", path).shape[1:]
    if len(patch) != 2 or patch[0] != patch[1]:
        sides = "x".join(map(str, patch))
        raise ValueError(f"{path}: patches of {sides} pixels are not square, which our networks need")
    quantizer = _quantizer(part(params, "quantizer"), _wanted(tensors, "quantizer.embedding.weight", path))
    described = TokenizerConfig(
        image_size=_image_size(params, tensors, patch[0]),
        channels=channels,
        pixels=PixelRange(low=0.0, high=1.0, clamp=False),
        encoder=VitEncoderConfig(**_fields(params, tensors, "encoder", patch[0])),
        quantizer=quantizer,
        decoder=VitDecoderConfig(**_fields(params, tensors, "decoder", patch[0]), bias="channel"),
    )
    book = "quantizer.weight" if quantizer.kind == "vector" else "quantizer.codebooks.0.weight"
    kept = skip(tensors, r"loss\.", "losses and discriminator")
    ours = rename(kept, [*_RULES, (r"^quantizer\.embedding\.weight$", book)])
    for key in ("encoder.embed.weight", "decoder.head.weight"):
        if key in ours and ours[key].ndim == 4:  # convolutions of a whole patch, the decoder's a transposed one
            ours[key] = ours[key].flatten(1) if key.startswith("encoder") else ours[key].flatten(1).T.contiguous()
    return fill(described.build, ours, path)


def convert_discriminator(path: Path, config: Mapping[str, Any] | None = None) -> StyleGAN2 | None:
    """The StyleGAN2 discriminator in the checkpoint, made to see [-1, 1]; None where there is none of its layout."""
    tensors = below(read_tensors(path, "state_dict"), "loss.discriminator.")
    tensors = {key: value for key, value in tensors.items() if not key.endswith(".kernel")}  # the blur's constants
    if not tensors:
        return None
    blocks = [int(match[1]) for key in tensors if (match := re.match(r"blocks\.(\d+)\.conv1\.", key))]
    ours = {_discriminator_key(key): value for key, value in tensors.items()}
    first, last, bias = (
        tensors.get("blocks.0.0.weight"),
        tensors.get("final_linear.1.weight"),
        ours.get("stem.0.bias"),
    )
    known = first is not None and first.ndim == 4 and last is not None and last.ndim == 2 and 0 not in last.shape
    if not blocks or max(blocks) > _MOST_BLOCKS or not known or bias is None:
        logger.warning("left the discriminator of %s behind: it is not enhancing-transformers' StyleGAN2", path)
        return None
    assert first is not None and last is not None
    size, width = 2 ** (max(blocks) + 2), last.shape[1] / 512
    multiplier = first.shape[0] * size / (16384 * width) if size > 32 else 2.0
    # The reference shows it pixels of [0, 1]. Its first layer reads single pixels, so that it takes (x + 1) / 2 over.
    weight = first.float()
    ours["stem.0.weight"] = weight / 2
    ours["stem.0.bias"] = bias.float() + weight.sum(dim=(1, 2, 3)) / (2 * math.sqrt(max(weight[0].numel(), 1)))
    return fill(
        lambda: StyleGAN2(first.shape[1], (size, size), width=width, channel_multiplier=multiplier), ours, path
    ).eval()


def _discriminator_key(key: str) -> str:
    """Layers there are lists of blur, convolution and activation, which holds the bias."""
    layer, _, name = key.rpartition(".")
    for theirs, ours in {"final_conv": "mix.0", "final_linear.0": "head.1", "final_linear.1": "head.3"}.items():
        if layer.startswith(theirs):
            return f"{ours}.{name}"
    match = re.match(r"blocks\.(\d+)\.(\w+)", layer)
    if match is None:
        return key
    return f"stem.0.{name}" if match[1] == "0" else f"blocks.{int(match[1]) - 1}.{match[2]}.{name}"


def _params(config: Mapping[str, Any] | None, path: Path) -> Mapping[str, Any]:
    params = config or {}
    for name in ("model", "params", "stage1", "params"):
        params = params[name] if isinstance(params.get(name), Mapping) else params
    if not all(isinstance(params.get(part), Mapping) for part in ("encoder", "decoder")):
        raise ValueError(f"{path} needs its YAML as config, with model.params.encoder and .decoder: it tells the heads")
    return params


def _stage1(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    inside = "stage1_model."
    if not any(key.startswith(inside) for key in tensors):
        return tensors
    return below(skip(tensors, rf"(?!{inside})", "they belong to the model on top of the tokenizer"), inside)


def _wanted(tensors: Mapping[str, Tensor], key: str, path: Path) -> Tensor:
    if key not in tensors:
        raise ValueError(f"{path} has no {key}: it is not a ViT-VQGAN of enhancing-transformers, give the right source")
    if tensors[key].ndim < 2 or 0 in tensors[key].shape:
        raise ValueError(f"{path}: {key} is {tuple(tensors[key].shape)}, expected a weight or a codebook")
    return tensors[key]


def _image_size(params: Mapping[str, Any], tensors: Mapping[str, Tensor], patch: int) -> int | tuple[int, int]:
    given = params.get("image_size")
    if isinstance(given, (list, tuple)):
        height, width = (*wholes(params, "image_size", ()), 0, 0)[:2]
        return height, width
    positions = tensors.get("encoder.en_pos_embedding")
    square = 256 if positions is None or positions.ndim < 2 else patch * math.isqrt(positions.shape[1])
    return whole(params, "image_size", square)


def _fields(params: Mapping[str, Any], tensors: Mapping[str, Tensor], part: str, patch: int) -> dict[str, Any]:
    sizes = params[part]
    missing = [name for name in ("dim", "depth", "heads", "mlp_dim") if name not in sizes]
    if missing:
        raise ValueError(f"the config's model.params.{part} has no {missing[0]}: give the YAML of this checkpoint")
    return {
        "patch": patch,
        "width": sizes["dim"],
        "layers": sizes["depth"],
        "heads": sizes["heads"],
        "head_width": sizes.get("dim_head", 64),
        "mlp": sizes["mlp_dim"],
        "activation": "tanh",
        "qkv_bias": False,
        "projection": any(re.match(rf"{part}\.transformer\.layers\.\d+\.0\.fn\.to_out\.", key) for key in tensors),
        "positions": "sincos",
        "tanh_head": False,
    }


def _quantizer(params: Mapping[str, Any], book: Tensor) -> VectorQuantizerConfig | ResidualQuantizerConfig:
    common: dict[str, Any] = {
        "num_codes": book.shape[0],
        "dim": book.shape[1],
        "distance": "cosine" if params.get("use_norm", True) else "euclidean",
        "beta": number(params, "beta", 0.25),
    }
    config = VectorQuantizerConfig(gradient_through_norm=False, **common)
    if params.get("use_residual"):
        if not params.get("num_quantizers"):
            raise ValueError("the config's quantizer has use_residual, but no num_quantizers: say how many levels")
        return ResidualQuantizerConfig(levels=params["num_quantizers"], shared=True, book=config)
    return config
