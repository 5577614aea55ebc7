"""Chameleon, Emu3 and Janus against the classes of the installed transformers, at random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.conversion.live import assert_close, assert_same_codes, parameters, randomise, spread
from tokenizers_vq import Tokenizer
from tokenizers_vq.conversion import convert

transformers = pytest.importorskip("transformers")

Shape = tuple[dict[str, Any], tuple[int, int]]

CHAMELEON: dict[str, Shape] = {
    "attention at one size": (
        {
            "base_channels": 32, "channel_multiplier": [1, 2, 3], "num_res_blocks": 1, "resolution": 64,
            "attn_resolutions": [32], "latent_channels": 12, "embed_dim": 6, "num_embeddings": 70,
        },
        (32, 24),
    ),
    "no attention at all": (
        {
            "base_channels": 64, "channel_multiplier": [1, 1], "num_res_blocks": 2, "attn_type": "none",
            "latent_channels": 5, "embed_dim": 5, "num_embeddings": 60, "in_channels": 1,
        },
        (16, 20),
    ),
}  # fmt: skip
JANUS: dict[str, Shape] = {
    "three levels": (
        {
            "base_channels": 32, "channel_multiplier": [1, 2, 2], "num_res_blocks": 1, "latent_channels": 10,
            "embed_dim": 8, "num_embeddings": 70, "num_patches": 12,
        },
        (32, 24),
    ),
    "one block more": (
        {
            "base_channels": 32, "channel_multiplier": [2, 1], "num_res_blocks": 2, "latent_channels": 4,
            "embed_dim": 6, "num_embeddings": 50,
        },
        (16, 28),
    ),
}  # fmt: skip


def save_inside(model: nn.Module, folder: Path, prefix: str, config: dict[str, Any]) -> None:
    """A larger model of two shards, the tokenizer under `prefix`, and its config under `vq_config`."""
    tensors = {f"{prefix}{key}": value.contiguous() for key, value in model.state_dict().items()}
    tensors["model.language_model.layers.0.weight"] = torch.zeros(3)
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, folder / file)
    index = {"weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"model_type": "larger", "vq_config": config}))


def built(kind: str, arguments: dict[str, Any]) -> nn.Module:
    """The class of transformers at small random weights."""
    config = getattr(transformers, f"{kind}VQVAEConfig")(**arguments)
    modelling = {"Chameleon": "chameleon", "Janus": "janus", "Emu3": "emu3"}[kind]
    model = getattr(getattr(transformers.models, modelling), f"modeling_{modelling}")
    made = getattr(model, f"{kind}VQVAE")(config).eval()
    randomise(made)
    return made


def read_twice(source: str, model: nn.Module, folder: Path) -> Tokenizer:
    """Converted from a folder of its own, and from a larger model: the same."""
    own, inside = folder / "own", folder / "inside"
    inside.mkdir()
    model.save_pretrained(own)
    save_inside(model, inside, "model.vqmodel.", json.loads((own / "config.json").read_text()))
    tokenizer, again = convert(source, own), convert(source, inside)
    assert again.config == tokenizer.config and again.fingerprint == tokenizer.fingerprint
    file = convert(source, own / "model.safetensors")
    assert file.fingerprint == tokenizer.fingerprint
    assert parameters(tokenizer) == parameters(model)
    return tokenizer


@torch.no_grad()
def test_chameleon_encodes_as_transformers_does(tmp_path: Path) -> None:
    for number, (arguments, (height, width)) in enumerate(CHAMELEON.values()):
        model = built("Chameleon", arguments)
        images = torch.rand(3, arguments.get("in_channels", 3), height, width) * 2 - 1
        latents = model.quant_conv(model.encoder(images))
        spread(model.quantize.embedding.weight, latents)
        (tmp_path / str(number)).mkdir()
        tokenizer = read_twice("chameleon", model, tmp_path / str(number))
        codes = assert_same_codes(tokenizer, images, model.encode(images).image_tokens, used=12)
        assert_close(tokenizer.encode_features(images), latents)
        with pytest.raises(
            ValueError, match=r"only encodes: .* convert the original checkpoint \(tokenizer/vqgan.ckpt"
        ):
            tokenizer.decode(codes)


def test_an_encoder_alone_is_saved_and_loaded(tmp_path: Path) -> None:
    arguments, (height, width) = CHAMELEON["attention at one size"]
    model = built("Chameleon", arguments)
    model.save_pretrained(tmp_path / "theirs")
    tokenizer = convert("chameleon", tmp_path / "theirs")
    tokenizer.save_pretrained(tmp_path / "ours")
    loaded = Tokenizer.from_pretrained(tmp_path / "ours")
    images = torch.rand(1, 3, height, width) * 2 - 1
    assert torch.equal(loaded.encode(images), tokenizer.encode(images))
    with pytest.raises(ValueError, match="original checkpoint"):
        loaded.decode(loaded.encode(images))


@torch.no_grad()
@pytest.mark.parametrize("name", JANUS)
def test_janus_is_transformers(name: str, tmp_path: Path) -> None:
    arguments, (height, width) = JANUS[name]
    model = built("Janus", arguments)
    images = torch.rand(3, 3, height, width) * 2 - 1
    latents = model.quant_conv(model.encoder(images))
    spread(model.quantize.embedding.weight, latents)
    tokenizer = read_twice("janus", model, tmp_path)
    codes = assert_same_codes(tokenizer, images, model.encode(images).image_tokens, used=12)
    assert_close(tokenizer.encode_features(images), latents)
    model.quantize.quant_state_dims = list(codes.shape[1:])  # square there, though nothing needs it
    decoded = model.decode(codes.flatten(1))
    assert_close(tokenizer.decode(codes), decoded)
    side = arguments.get("num_patches", 32)
    assert tokenizer.code_layout().grids == ((side, side),)


def original(model: Tokenizer) -> dict[str, Tensor]:
    """Our tensors of a VQGAN by taming's keys, as Meta's file has them."""
    levels = len(model.config.decoder.multipliers)
    theirs = {}
    for key, value in model.state_dict().items():
        part, _, rest = key.partition(".")
        if part == "decoder" and rest.startswith("levels."):
            number, rest = rest.removeprefix("levels.").split(".", 1)
            rest = f"up.{levels - 1 - int(number)}.{rest}"
        rest = rest.replace("levels.", "down.").replace(".blocks.", ".block.").replace("shortcut", "nin_shortcut")
        for ours, name in {"middle.0": "mid.block_1", "middle.1": "mid.attn_1", "middle.2": "mid.block_2"}.items():
            rest = rest.replace(ours, name)
        rest = rest.replace("resample", "downsample" if part == "encoder" else "upsample").replace(
            "attn_1.out", "attn_1.proj_out"
        )
        rest = rest.replace("head.", "conv_out.") if part == "decoder" else rest
        rest = rest.replace("norm.", "norm_out.") if rest.startswith("norm.") else rest
        if part == "quantizer":
            theirs |= {"quantize.embedding.weight": value} if rest == "weight" else {}
        else:
            theirs[rest if "quant_conv" in rest else f"{part}.{rest}"] = value
    return theirs


def test_metas_chameleon_decodes(tmp_path: Path) -> None:
    from tokenizers_vq import create

    small = ["encoder.width=32", "decoder.width=32", "quantizer.num_codes=64", "image_size=32"]
    tokenizer = create("chameleon-f16", small).eval()
    torch.save({"state_dict": original(tokenizer)}, tmp_path / "vqgan.ckpt")
    (tmp_path / "vqgan.yaml").write_text("model: {params: {ddconfig: {resolution: 32, z_channels: 256}}}")
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    for path in (tmp_path, tmp_path / "vqgan.ckpt"):
        converted = convert("chameleon", path)
        assert converted.config.size == (32, 32)
        assert torch.equal(converted.encode(images), tokenizer.encode(images))
        assert torch.equal(converted.decode(converted.encode(images)), tokenizer.decode(tokenizer.encode(images)))
    with pytest.raises(ValueError, match="ddconfig.double_z=True"):
        convert("chameleon", tmp_path / "vqgan.ckpt", {"ddconfig": {"double_z": True}})


@pytest.mark.parametrize(("source", "config", "message"), [
    ("janus", {"model_type": "chameleon_vqgan"}, "of model_type chameleon_vqgan, not janus_vqgan"),
    ("chameleon", {"vq_config": {"double_latent": True}}, "double_latent is not supported"),
    ("emu3", {}, "other layout|another layout|no tensor"),
])  # fmt: skip
def test_another_model_is_refused_in_one_line(
    source: str, config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    built("Janus", JANUS["three levels"][0]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        convert(source, tmp_path, config)
    assert "\n" not in str(error.value)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(
        {f"other.{key}": value.clone() for key, value in tensors.items()} | tensors, tmp_path / "model.safetensors"
    )
    with pytest.raises(ValueError, match="keys under '' and 'other.'"):
        convert("janus", tmp_path, {})
