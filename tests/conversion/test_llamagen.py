"""LlamaGen beyond the recorded tensors: wrappers of training checkpoints, the flag that no file holds, other widths."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tokenizers_vq as tvq
from tests.conftest import shared
from tokenizers_vq.conversion import convert, convert_discriminator
from tokenizers_vq.networks.vqgan import VqganDecoderConfig, VqganEncoderConfig


def recorded() -> dict[str, Tensor]:
    return load_file(shared("golden/llamagen/vq8-like/weights.safetensors"))


def test_averaged_weights_are_preferred_and_prefixes_of_wrappers_fall(tmp_path: Path) -> None:
    tensors = recorded()
    raw = {f"module.{key}": torch.zeros_like(value) for key, value in tensors.items()}
    averaged = {f"module.{key}": value for key, value in tensors.items()}
    torch.save({"model": raw, "ema": averaged, "steps": 1, "optimizer": {"state": {}}}, tmp_path / "a.pt")
    torch.save({"model": averaged}, tmp_path / "b.pt")
    a, b = (convert("llamagen", tmp_path / name) for name in ("a.pt", "b.pt"))
    assert a.fingerprint == b.fingerprint
    assert torch.equal(a.quantizer.weight, tensors["quantize.embedding.weight"])
    assert convert_discriminator("llamagen", tmp_path / "a.pt") is None


def test_the_config_says_what_no_file_holds(tmp_path: Path) -> None:
    path = shared("golden/llamagen/vq8-like/weights.safetensors")
    usual = convert("llamagen", path)
    other = convert("llamagen", path, {"codebook_l2_norm": False, "image_size": 384})
    assert (usual.config.quantizer.distance, usual.config.image_size) == ("cosine", 256)
    assert (other.config.quantizer.distance, other.config.image_size) == ("euclidean", 384)


@pytest.mark.parametrize("wrapper", ["model", "ema"])
def test_the_arguments_of_training_say_it_too_and_a_config_has_the_last_word(wrapper: str, tmp_path: Path) -> None:
    arguments = Namespace(codebook_l2_norm=False, image_size=100, data_path=tmp_path)
    torch.save({wrapper: recorded(), "args": arguments, "steps": 1}, tmp_path / "a.pt")
    trained = convert("llamagen", tmp_path / "a.pt")
    other = convert("llamagen", tmp_path / "a.pt", {"codebook_l2_norm": True})
    assert (trained.config.quantizer.distance, other.config.quantizer.distance) == ("euclidean", "cosine")
    stride = trained.encoder.stride
    assert trained.config.image_size == 100 // stride * stride
    torch.save({wrapper: recorded(), "args": {"codebook_l2_norm": "no"}}, tmp_path / "a.pt")
    assert convert("llamagen", tmp_path / "a.pt").config.quantizer.distance == "cosine"


def test_the_config_of_another_model_is_refused() -> None:
    path = shared("golden/llamagen/vq8-like/weights.safetensors")
    with pytest.raises(ValueError, match=r"the config says codebook_embed_dim 3, its tensors \d+: give the config"):
        convert("llamagen", path, {"codebook_embed_dim": 3})


def test_encoder_and_decoder_of_other_widths_and_depths(tmp_path: Path) -> None:
    fields = {"width": 32, "attention": (1,), "latent_width": 6}
    encoder = VqganEncoderConfig(**fields, multipliers=(1, 3), blocks=3).build(dim=4, channels=1, image_size=(8, 8))
    decoder = VqganDecoderConfig(**fields, multipliers=(2, 4), blocks=2).build(dim=4, channels=1, image_size=(8, 8))
    theirs: dict[str, Tensor] = {"quantize.embedding.weight": torch.randn(10, 4)}
    for part, module in (("encoder", encoder), ("decoder", decoder)):
        for name, value in module.state_dict().items():
            for ours, other in (
                ("levels.", "conv_blocks."), ("blocks.", "res."), ("attention.", "attn."), ("middle.", "mid."),
                (".out.", ".proj_out."), ("shortcut", "nin_shortcut"), ("head.", "conv_out."),
                ("resample", "downsample" if part == "encoder" else "upsample"),
            ):  # fmt: skip
                name = name.replace(ours, other) if ours != "blocks." else name.replace(".blocks.", ".res.")
            name = name if not name.startswith("norm.") else f"norm_out.{name[5:]}"
            theirs[name if "quant_conv" in name else f"{part}.{name}"] = value
    torch.save(theirs, tmp_path / "vq.pt")
    tokenizer = convert("llamagen", tmp_path / "vq.pt")
    assert (tokenizer.config.encoder.multipliers, tokenizer.config.encoder.blocks) == ((1, 3), 3)
    assert (tokenizer.config.decoder.multipliers, tokenizer.config.decoder.blocks) == ((2, 4), 2)
    images = torch.rand(1, 1, 8, 12) * 2 - 1
    with torch.no_grad():
        assert torch.equal(tokenizer.encoder(images), encoder.eval()(images))
        features = torch.randn(1, 4, 4, 6)
        assert torch.equal(tokenizer.decoder(features), decoder.eval()(features))


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        # FoundationVision/LlamaGen at commit ce98ec4: VQ_models["VQ-16"] and ["VQ-8"](codebook_size=16384,
        # codebook_embed_dim=8), parameters without the buffer codebook_used.
        ("llamagen-f16", 71_883_403),
        ("llamagen-f8", 70_109_835),
    ],
)
def test_published_sizes_are_the_references(preset: str, count: int) -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in tvq.create(preset).parameters()) == count
