"""The vision transformers against recorded tensors of enhancing-transformers, at random weights."""

from __future__ import annotations

import json
import re

import pytest
import torch
import yaml
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import shared
from tokenizers_vq.networks.vit import VitDecoderConfig, VitEncoderConfig, sincos_positions
from tokenizers_vq.quantizers import VectorQuantizerConfig
from tokenizers_vq.tokenizer import PixelRange, Tokenizer, TokenizerConfig

RENAMES = [
    (r"^(en|de)coder\.(en|de)_pos_embedding", r"\1coder.trunk.positions"),
    (r"^encoder\.to_patch_embedding\.0", "encoder.embed"),
    (r"^decoder\.to_pixel\.1", "decoder.head"),
    (r"transformer\.norm", "trunk.norm"),
    (r"transformer\.layers\.(\d+)\.0\.norm", r"trunk.blocks.\1.norm1"),
    (r"transformer\.layers\.(\d+)\.1\.norm", r"trunk.blocks.\1.norm2"),
    (r"transformer\.layers\.(\d+)\.0\.fn\.to_qkv", r"trunk.blocks.\1.attn.qkv"),
    (r"transformer\.layers\.(\d+)\.0\.fn\.to_out", r"trunk.blocks.\1.attn.proj"),
    (r"transformer\.layers\.(\d+)\.1\.fn\.net\.0", r"trunk.blocks.\1.mlp.fc1"),
    (r"transformer\.layers\.(\d+)\.1\.fn\.net\.2", r"trunk.blocks.\1.mlp.fc2"),
    (r"^pre_quant", "encoder.quant_conv"),
    (r"^post_quant", "decoder.post_quant_conv"),
    (r"^quantizer\.embedding\.weight", "quantizer.weight"),
]


def ours(key: str, value: Tensor, patch: int) -> tuple[str, Tensor]:
    if key == "encoder.to_patch_embedding.0.weight":
        value = value.flatten(1)
    if key == "decoder.to_pixel.1.weight":  # a transposed convolution: (width, C, p, p)
        value = value.flatten(1).T
    if key == "decoder.to_pixel.1.bias":
        value = value.repeat_interleave(patch**2)
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    return key, value


def test_codes_latents_and_images_are_the_references() -> None:
    folder = shared("golden/vitvqgan/patch8")
    meta = json.loads((folder / "meta.json").read_text())
    params = yaml.safe_load((folder / "config.yaml").read_text())["model"]["params"]
    patch = params["patch_size"]

    def fields(part: str) -> dict[str, object]:
        sizes = params[part]
        return {
            "patch": patch, "width": sizes["dim"], "layers": sizes["depth"], "heads": sizes["heads"],
            "head_width": sizes["dim_head"], "mlp": sizes["mlp_dim"], "activation": "tanh", "qkv_bias": False,
            "positions": "sincos", "tanh_head": False,
        }  # fmt: skip

    book = params["quantizer"]
    tokenizer = Tokenizer(
        TokenizerConfig(
            image_size=tuple(params["image_size"]),
            pixels=PixelRange(low=0.0, high=1.0, clamp=False),
            encoder=VitEncoderConfig(**fields("encoder")),
            quantizer=VectorQuantizerConfig(num_codes=book["n_embed"], dim=book["embed_dim"], distance="cosine"),
            decoder=VitDecoderConfig(**fields("decoder")),
        )
    ).eval()
    weights = dict(ours(key, value, patch) for key, value in load_file(folder / "weights.safetensors").items())
    weights["quantizer.age"] = torch.zeros(book["n_embed"], dtype=torch.long)
    tokenizer.load_state_dict(weights, strict=True)
    io = load_file(folder / "io.safetensors")
    with torch.no_grad():
        latents = rearrange(tokenizer.encode_features(io["images"]), "b d h w -> b (h w) d")
    codes = tokenizer.encode(io["images"])
    assert torch.equal(codes.flatten(1), io["codes"])
    assert (latents - io["latents"]).abs().max() <= meta["tolerance_images"]
    assert (tokenizer.decode(codes) - io["images_out_mapped"]).abs().max() <= 2 * meta["tolerance_images"]


@pytest.mark.parametrize(("case", "grid"), [("patch4-lightning", (8, 8)), ("residual", None)])
def test_fixed_positions_are_the_references(case: str, grid: tuple[int, int] | None) -> None:
    folder = shared(f"golden/vitvqgan/{case}")
    if (folder / "model.ckpt").exists():
        state = torch.load(folder / "model.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    else:
        state = load_file(folder / "weights.safetensors")
    recorded = state["encoder.en_pos_embedding"][0]
    side = round(len(recorded) ** 0.5)
    assert torch.allclose(sincos_positions(grid or (side, side), recorded.shape[1]), recorded, atol=1e-6)
