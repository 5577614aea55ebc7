"""VQGAN's networks against recorded tensors of taming-transformers, at random weights."""

from __future__ import annotations

import json
import re

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.conftest import shared
from tokenizers_vq.networks.vqgan import VqganDecoderConfig, VqganEncoderConfig
from tokenizers_vq.quantizers import VectorQuantizerConfig
from tokenizers_vq.tokenizer import PixelRange, Tokenizer, TokenizerConfig

RENAMES = [
    (r"mid\.block_1\.", "middle.0."),
    (r"mid\.attn_1\.", "middle.1."),
    (r"mid\.block_2\.", "middle.2."),
    (r"\.block\.(\d+)\.", r".blocks.\1."),
    (r"\.attn\.(\d+)\.", r".attention.\1."),
    (r"\.(down|up)sample\.", r".resample."),
    (r"nin_shortcut", "shortcut"),
    (r"proj_out", "out"),
    (r"norm_out", "norm"),
    (r"decoder\.conv_out", "decoder.head"),
    (r"^quant_conv", "encoder.quant_conv"),
    (r"^post_quant_conv", "decoder.post_quant_conv"),
    (r"^quantize\.embedding\.weight", "quantizer.weight"),
    (r"encoder\.down\.", "encoder.levels."),
]


def our_key(key: str, levels: int) -> str:
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    return re.sub(r"decoder\.up\.(\d+)", lambda m: f"decoder.levels.{levels - 1 - int(m[1])}", key)


@pytest.mark.parametrize("case", ["vq-f4-ch32", "vq-f8-z24-e12"])
def test_codes_latents_and_images_are_the_references(case: str) -> None:
    folder = shared(f"golden/taming/{case}")
    meta = json.loads((folder / "meta.json").read_text())
    params = yaml.safe_load((folder / "config.yaml").read_text())["model"]["params"]
    dd = params["ddconfig"]
    multipliers = tuple(dd["ch_mult"])
    fields = {
        "width": dd["ch"],
        "multipliers": multipliers,
        "attention": tuple(i for i in range(len(multipliers)) if dd["resolution"] >> i in dd["attn_resolutions"]),
        "latent_width": dd["z_channels"],
    }
    tokenizer = Tokenizer(
        TokenizerConfig(
            image_size=dd["resolution"],
            pixels=PixelRange(clamp=False),
            encoder=VqganEncoderConfig(**fields, blocks=dd["num_res_blocks"]),
            quantizer=VectorQuantizerConfig(num_codes=params["n_embed"], dim=params["embed_dim"]),
            decoder=VqganDecoderConfig(**fields, blocks=dd["num_res_blocks"] + 1),
        )
    ).eval()
    weights = load_file(folder / "weights.safetensors")
    renamed = {our_key(k, len(multipliers)): v for k, v in weights.items() if not k.startswith("loss.")}
    renamed["quantizer.age"] = tokenizer.quantizer.age
    tokenizer.load_state_dict(renamed, strict=True)
    assert sum(p.numel() for p in tokenizer.parameters()) == meta["n_parameters"]

    io = load_file(folder / "io.safetensors")
    with torch.no_grad():
        features = tokenizer.encode_features(io["images"])
    codes = tokenizer.encode(io["images"])
    assert torch.equal(codes, io["codes"].reshape(codes.shape))
    assert (features - io["latents"]).abs().max() <= meta.get("tolerance_latents", meta["tolerance_images"])
    assert (tokenizer.decode(codes) - io["images_out"]).abs().max() <= meta["tolerance_images"]
