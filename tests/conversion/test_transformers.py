"""Chameleon, Emu3 and Janus against the classes of the installed transformers, at random weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tokenizers_vq as tvq
from tests.conversion.live import assert_close, assert_same_codes, parameters, randomise, spread
from tokenizers_vq import Tokenizer
from tokenizers_vq.conversion import convert
from tokenizers_vq.conversion.keys import rename

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

EMU3: dict[str, Shape] = {
    "four frames": (
        {
            "base_channels": 32, "channel_multiplier": [1, 2], "num_res_blocks": 1, "attn_resolutions": [1],
            "hidden_size": 64, "codebook_size": 70,
        },
        (16, 24),
    ),
    "two heads, one frame, other widths": (
        {
            "base_channels": 32, "channel_multiplier": [1, 2, 1], "num_res_blocks": 2, "attn_resolutions": [0, 2],
            "hidden_size": 32, "num_attention_heads": 2, "temporal_downsample_factor": 1, "codebook_size": 60,
            "embed_dim": 6, "latent_channels": 6,
        },
        (32, 40),
    ),
    "eight frames, no attention but in the middle": (
        {
            "base_channels": 64, "channel_multiplier": [1, 1], "num_res_blocks": 1, "attn_resolutions": [],
            "hidden_size": 64, "temporal_downsample_factor": 8, "codebook_size": 50, "in_channels": 1,
            "out_channels": 1,
        },
        (12, 16),
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


@torch.no_grad()
@pytest.mark.parametrize("name", EMU3)
def test_emu3_is_transformers(name: str, tmp_path: Path) -> None:
    arguments, (height, width) = EMU3[name]
    model = built("Emu3", arguments)
    images = torch.rand(3, arguments.get("in_channels", 3), height, width) * 2 - 1
    frames = images[:, None].repeat(1, arguments.get("temporal_downsample_factor", 4), 1, 1, 1)
    latents = model.quant_conv(model.encoder(frames).movedim(1, 2)).squeeze(2)
    spread(model.quantize.embedding.weight, latents)
    tokenizer = read_twice("emu3", model, tmp_path)
    sizes = torch.tensor([[height, width]] * len(images))
    expected = torch.stack(list(model.encode(images, sizes).image_tokens))
    codes = assert_same_codes(tokenizer, images, expected, used=12)
    assert_close(tokenizer.encode_features(images), latents)
    assert_close(tokenizer.decode(codes), model.decode(codes))


def test_baais_own_emu3_differs_by_keys(tmp_path: Path) -> None:
    model = built("Emu3", EMU3["four frames"][0])
    model.save_pretrained(tmp_path / "theirs")
    rules = [
        ("down_block.", ""), ("up_block.", ""), ("middle_block.", "mid."), (r"attn_norm\.", "attn_1.norm."),
        (r"attn_norms\.(\d)\.", r"attn.\1.norm."), (r"\.([qkv])_proj.", r".\1."), (".out_proj.", ".proj_out."),
    ]  # fmt: skip
    convolution = re.compile(r"attn\S*\.(q|k|v|proj_out)\.weight$")
    original = {
        key: value[:, :, None, None] if convolution.search(key) else value
        for key, value in rename(model.state_dict(), rules).items()
    }
    assert "decoder.up.1.attn.0.norm.conv_y.weight" in original and "encoder.mid.attn_1.q.weight" in original
    save_file(original, tmp_path / "model.safetensors")
    config = {"model_type": "Emu3VisionVQ", "ch": 32, "attn_resolutions": [1]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert convert("emu3", tmp_path).fingerprint == convert("emu3", tmp_path / "theirs").fingerprint


def test_emu3_trains_as_a_whole() -> None:
    small = ["width=32", "multipliers=[1, 2]", "attention=[1]", "blocks=1"]
    overrides = [f"{part}.{change}" for part in ("encoder", "decoder") for change in small]
    tokenizer = tvq.create("emu3-f8", [*overrides, "image_size=16", "quantizer.num_codes=32"]).train()
    output = tokenizer(torch.rand(2, 3, 16, 16) * 2 - 1)
    (output.output.square().mean() + sum(output.quantized.losses.values())).backward()
    assert [name for name, parameter in tokenizer.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(
    ("preset", "kind"), [("chameleon-f16", "Chameleon"), ("emu3-f8", "Emu3"), ("janus-f16", "Janus")]
)
def test_presets_have_the_parameters_of_transformers_defaults(preset: str, kind: str) -> None:
    with torch.device("meta"):
        ours, theirs = tvq.create(preset), built(kind, {})
    if kind == "Chameleon":  # transformers leaves all of the decoder out but its first convolution
        assert parameters(ours.encoder, ours.quantizer, ours.decoder.post_quant_conv) == parameters(theirs)
    else:
        assert parameters(ours) == parameters(theirs)


@pytest.mark.parametrize(("overrides", "message"), [
    (["encoder.frames=6"], "encoder.frames: must be a power of two, got 6"),
    (["decoder.latent_width=8"], "decoder.latent_width: must be null"),
    (["decoder.heads=3"], "decoder.heads: 3 heads do not divide the 256 channels"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tvq.create("emu3-f8", overrides)


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
    small = ["encoder.width=32", "decoder.width=32", "quantizer.num_codes=64", "image_size=32"]
    tokenizer = tvq.create("chameleon-f16", small).eval()
    torch.save({"state_dict": original(tokenizer)}, tmp_path / "vqgan.ckpt")
    (tmp_path / "vqgan.yaml").write_text("model: {params: {ddconfig: {resolution: 32, z_channels: 256}}}")
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    for path in (tmp_path, tmp_path / "vqgan.ckpt"):
        converted = convert("chameleon", path)
        assert converted.config.size == (32, 32)
        assert torch.equal(converted.encode(images), tokenizer.encode(images))
        assert torch.equal(converted.decode(converted.encode(images)), tokenizer.decode(tokenizer.encode(images)))
    with pytest.raises(ValueError, match=r"ddconfig\.double_z=True"):
        convert("chameleon", tmp_path / "vqgan.ckpt", {"ddconfig": {"double_z": True}})


@pytest.mark.parametrize(("source", "config", "message"), [
    ("janus", {"model_type": "chameleon_vqgan"}, "of model_type chameleon_vqgan, not janus_vqgan"),
    ("chameleon", {"vq_config": {"double_latent": True}}, "double_latent is not supported"),
    ("emu3", {}, "has no encoder.time_res_stack: it is not Emu3's"),
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
    with pytest.raises(ValueError, match=r"keys under '' and 'other\.'"):
        convert("janus", tmp_path, {})
