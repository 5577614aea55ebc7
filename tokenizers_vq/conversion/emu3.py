"""Emu3's tokenizer (arXiv 2409.18869): transformers' Emu3VQVAE, alone or inside the model, or BAAI's own files.

BAAI's (Emu3-VisionTokenizer) differ by keys alone, which are those of taming's kin.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenizers_vq.conversion.given import whole
from tokenizers_vq.conversion.keys import fill, rename
from tokenizers_vq.conversion.pretrained import read_below, vq_config, weight_files
from tokenizers_vq.conversion.vqgan_keys import network_fields, our_keys, shape
from tokenizers_vq.networks.emu3 import Emu3DecoderConfig, Emu3EncoderConfig
from tokenizers_vq.quantizers import VectorQuantizerConfig
from tokenizers_vq.tokenizer import PixelRange, Tokenizer, TokenizerConfig

_MOST_HALVINGS = 60  # of the frames; beyond what a config takes
_RULES = [  # to the keys of taming's kin, or ours where those have none
    (r"^encoder\.down_block\.down\.", "encoder.down."),
    (r"^decoder\.up_block\.up\.", "decoder.up."),
    (r"\.middle_block\.attn_norm\.", ".mid.attn_1.norm."),
    (r"\.middle_block\.", ".mid."),
    (r"\.attn_norms\.(\d+)\.", r".attn.\1.norm."),
    (r"\.([qkv])_proj\.", r".\1."),
    (r"\.out_proj\.", ".proj_out."),
    (r"\.norm_layer\.", ".norm."),
    (r"\.conv_y\.", ".scale."),
    (r"\.conv_b\.", ".bias."),
    (r"^encoder\.time_conv\.(\d+)\.conv\.conv\.", r"encoder.time_down.\1."),
    (r"^decoder\.time_conv\.(\d+)\.conv\.conv\.", r"decoder.time_up.\1."),
    (r"\.time_res_stack\.(\d+)\.(conv\d)\.conv\.", r".time_blocks.\1.\2."),
    (r"\.time_res_stack\.", ".time_blocks."),
    (r"^((?:post_)?quant_conv)\.conv\.", r"\1."),
    (r"^quantize\.embedding\.weight$", "quantizer.weight"),
]


def convert(path: Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of a folder (its shards too) or a file; only the heads of its attention are read from the config.

    An image is repeated over the frames of one time step, and decoded to the first. Pixels are [-1, 1], not clamped.
    Raises `ValueError` where codes and features differ in width: transformers cannot decode those.
    """
    fields = vq_config(path, config, "emu3_vqgan", "Emu3VisionVQ")
    files = weight_files(path, ["model", "pytorch_model"])
    tensors = read_below(files, "quantize.embedding.weight")
    if not any(key.startswith("encoder.time_res_stack.") for key in tensors):
        raise ValueError(f"{path} has no encoder.time_res_stack: it is not Emu3's, give the source that it comes from")
    ours = _our_keys(tensors)
    codes, dim = shape(ours, "quantizer.weight", path)
    post = shape(ours, "decoder.post_quant_conv.weight", path)
    if post[0] != dim:
        raise ValueError(f"{path}: codes of {dim} channels beside features of {post[0]}, which Emu3 cannot decode")
    common = {"heads": whole(fields, "num_attention_heads", 1)}
    encoder, decoder = (
        network_fields(ours, part, path) | _time(ours, part) | common for part in ("encoder", "decoder")
    )
    del decoder["latent_width"]
    described = TokenizerConfig(
        channels=shape(ours, "encoder.conv_in.weight", path)[1],
        pixels=PixelRange(clamp=False),
        encoder=Emu3EncoderConfig(**encoder),
        quantizer=VectorQuantizerConfig(num_codes=codes, dim=dim),
        decoder=Emu3DecoderConfig(**decoder),
    )
    return fill(described.build, ours, path)


def _our_keys(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    ours = our_keys(rename(tensors, _RULES))
    linear = re.compile(r"\.(?:attention\.\d+|middle\.1)\.(?:q|k|v|out)\.weight$")
    for key, tensor in ours.items():
        if linear.search(key) and tensor.ndim == 2:
            ours[key] = tensor[:, :, None, None]
    return ours


def _time(ours: Mapping[str, Tensor], part: str) -> dict[str, Any]:
    """Frames of a time step and blocks over time, as many as there are."""

    def count(stem: str) -> int:
        return len({match[1] for key in ours if (match := re.match(rf"{part}\.{stem}\.(\d+)\.", key))})

    return {"frames": 2 ** min(count("time_(?:down|up)"), _MOST_HALVINGS), "time_blocks": count("time_blocks")}
