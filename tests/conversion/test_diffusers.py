"""VQModel folders against the installed diffusers, at random weights, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import shared
from tests.conversion.live import assert_close, assert_same_codes, parameters, randomise, spread
from tokenizers_vq.conversion import convert

DOWN, ATTN_DOWN, UP, ATTN_UP = (
    "DownEncoderBlock2D", "AttnDownEncoderBlock2D", "UpDecoderBlock2D", "AttnUpDecoderBlock2D"
)  # fmt: skip
SHAPES: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "attention in other places, widths between multiples": (
        {
            "block_out_channels": (32, 48, 64), "down_block_types": (DOWN, DOWN, ATTN_DOWN),
            "up_block_types": (UP, ATTN_UP, UP), "layers_per_block": 2, "norm_num_groups": 8, "latent_channels": 5,
            "vq_embed_dim": 7, "num_vq_embeddings": 50, "sample_size": 30,
        },
        (24, 40),
    ),
    "no attention, one level, grey": (
        {
            "block_out_channels": (24,), "in_channels": 1, "out_channels": 1, "norm_num_groups": 6,
            "mid_block_add_attention": False, "num_vq_embeddings": 40,
        },
        (8, 12),
    ),
    "movq": (
        {
            "block_out_channels": (32, 64), "down_block_types": (DOWN, ATTN_DOWN), "up_block_types": (ATTN_UP, UP),
            "norm_num_groups": 16, "norm_type": "spatial", "latent_channels": 4, "num_vq_embeddings": 60,
            "lookup_from_codebook": True,
        },
        (16, 24),
    ),
}  # fmt: skip


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("name", SHAPES)
def test_it_is_the_installed_vqmodel(name: str, safe: bool, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    arguments, (height, width) = SHAPES[name]
    model = diffusers.VQModel(**arguments).eval()
    randomise(model)
    images = torch.rand(3, arguments.get("in_channels", 3), height, width) * 2 - 1
    with torch.no_grad():
        latents = model.encode(images).latents
        spread(model.quantize.embedding.weight, latents)
        quantized, _, (_, _, codes) = model.quantize(latents)
        decoded = model.decode(latents).sample
    model.save_pretrained(tmp_path, safe_serialization=safe)

    tokenizer = convert("diffusers", tmp_path)
    ours = assert_same_codes(tokenizer, images, codes, used=12)
    assert_close(tokenizer.encode_features(images).detach(), latents)
    assert_close(tokenizer.quantizer.lookup(ours), quantized)
    assert_close(tokenizer.decode(ours), decoded)
    assert parameters(tokenizer) == parameters(model)


def test_old_files_name_attention_otherwise(tmp_path: Path) -> None:
    folder = shared("golden/diffusers/group")
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    for new, old in names.items():
        tensors = {key.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): value for key, value in tensors.items()}
    assert any("proj_attn" in key for key in tensors)
    torch.save(tensors, tmp_path / "diffusion_pytorch_model.bin")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    images = load_file(folder / "io.safetensors")["images"]
    renamed, plain = convert("diffusers", tmp_path), convert("diffusers", folder)
    assert torch.equal(renamed.decode(renamed.encode(images)), plain.decode(plain.encode(images)))


def test_a_pipelines_folder_holds_one(tmp_path: Path) -> None:
    folder = shared("golden/diffusers/group")
    (tmp_path / "model_index.json").write_text('{"_class_name": "LDMSuperResolutionPipeline"}')
    with pytest.raises(ValueError, match="a pipeline with 0 VQModels"):
        convert("diffusers", tmp_path)
    for name, kind in (("unet", "UNet2DModel"), ("vqvae", "VQModel")):
        (tmp_path / name).mkdir()
        config = {**json.loads((folder / "config.json").read_text()), "_class_name": kind}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    weights = "diffusion_pytorch_model.safetensors"
    (tmp_path / "vqvae" / weights).write_bytes((folder / weights).read_bytes())
    assert convert("diffusers", tmp_path).fingerprint == convert("diffusers", folder).fingerprint


@pytest.mark.parametrize(("change", "message"), [
    ({"_class_name": "AutoencoderKL"}, "is a AutoencoderKL of diffusers, which gives no codes"),
    ({"act_fn": "gelu"}, "its activation is gelu"),
    ({"norm_type": "layer"}, "norm_type is layer"),
    ({"down_block_types": ["DownEncoderBlock2D", "KDownBlock2D"]}, "down_block_types holds KDownBlock2D"),
    ({"up_block_types": ["UpDecoderBlock2D"]}, "up_block_types has 1 entries for 2 levels"),
    ({"norm_type": "spatial"}, "with spatial norms vq_embed_dim must be latent_channels"),
    ({"out_channels": 6}, "3 channels in, 6 out"),
    ({"use_quant_conv": False}, "sets use_quant_conv, which this VQModel does not have"),
    ({"layers_per_block": 2}, "does not fit .* missing decoder.levels.0.blocks.2"),
])  # fmt: skip
def test_what_cannot_be_converted_is_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    folder = shared("golden/diffusers/group")
    config = {**json.loads((folder / "config.json").read_text()), **change}
    with pytest.raises(ValueError, match=message) as error:
        convert("diffusers", folder, config)
    assert "\n" not in str(error.value)


def test_a_folder_must_be_whole(tmp_path: Path) -> None:
    folder = shared("golden/diffusers/group")
    with pytest.raises(ValueError, match=r"no config\.json beside the weights"):
        convert("diffusers", tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ValueError, match=r"there is no diffusion_pytorch_model\.safetensors or"):
        convert("diffusers", tmp_path)
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    del tensors["decoder.conv_out.bias"]
    save_file({**tensors, "extra": torch.zeros(1)}, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(
        ValueError, match=r"missing decoder\.head\.bias \(in the file: .*conv_out\.bias\); surplus extra"
    ):
        convert("diffusers", tmp_path)


def test_conversion_needs_no_diffusers() -> None:
    folder = shared("golden/diffusers/spatial")
    script = (
        "import sys; sys.modules['diffusers'] = sys.modules['transformers'] = None\n"
        f"from tokenizers_vq.conversion import convert; convert('diffusers', {str(folder)!r})"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
