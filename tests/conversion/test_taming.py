"""taming and latent-diffusion beyond the recorded tensors: files without config, wrappers, discriminator."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.conftest import shared
from tokenizers_vq.conversion import convert, convert_discriminator


def network(part: str, tensors: dict[str, Tensor], latent: int = 6) -> None:
    """Adds keys of a two-level network of 32 channels without attention at any level, as the reference writes them."""

    def conv(name: str, width_in: int, width: int, side: int) -> None:
        tensors[f"{name}.weight"] = torch.randn(width, width_in, side, side) / (width_in * side**2) ** 0.5
        tensors[f"{name}.bias"] = torch.randn(width) / 10

    def norm(name: str, width: int) -> None:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = torch.rand(width) + 0.5, torch.randn(width) / 10

    def block(name: str, width_in: int, width: int) -> None:
        norm(f"{name}.norm1", width_in), norm(f"{name}.norm2", width)
        conv(f"{name}.conv1", width_in, width, 3), conv(f"{name}.conv2", width, width, 3)
        if width_in != width:
            conv(f"{name}.nin_shortcut", width_in, width, 1)

    down = part == "encoder"
    for level, (before, width) in enumerate([(32, 32), (32, 64)] if down else [(64, 32), (64, 64)]):
        level_name = f"{part}.{'down' if down else 'up'}.{level}"
        for i in range(1 if down else 2):
            block(f"{level_name}.block.{i}", before if i == 0 else width, width)
        if level == (0 if down else 1):
            conv(f"{level_name}.{'downsample' if down else 'upsample'}.conv", width, width, 3)
    block(f"{part}.mid.block_1", 64, 64), block(f"{part}.mid.block_2", 64, 64)
    norm(f"{part}.norm_out", 64 if down else 32)
    conv(f"{part}.conv_in", 5 if down else latent, 32 if down else 64, 3)
    conv(f"{part}.conv_out", 64 if down else 32, latent if down else 5, 3)


def tensors_without_middle_attention() -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    network("encoder", tensors), network("decoder", tensors)
    tensors |= {"quant_conv.weight": torch.randn(4, 6, 1, 1), "quant_conv.bias": torch.randn(4)}
    tensors |= {"post_quant_conv.weight": torch.randn(6, 4, 1, 1), "post_quant_conv.bias": torch.randn(6)}
    return tensors | {"quantize.embedding.weight": torch.randn(24, 4)}


def test_without_config_and_middle_attention_any_channels_and_size(tmp_path: Path) -> None:
    save_file(tensors_without_middle_attention(), tmp_path / "vq.safetensors")
    tokenizer = convert("latent-diffusion", tmp_path / "vq.safetensors")
    assert tokenizer.config.encoder.middle_attention is False
    assert (tokenizer.config.channels, tokenizer.config.image_size, tokenizer.config.pixels.clamp) == (5, 256, False)
    assert tokenizer.config.quantizer.legacy_beta
    codes = tokenizer.encode(torch.rand(2, 5, 12, 20) * 2 - 1)
    assert codes.shape == (2, 6, 10)
    assert tokenizer.decode(codes).shape == (2, 5, 12, 20)


def test_the_moving_average_form_keeps_its_statistics(tmp_path: Path) -> None:
    tensors = tensors_without_middle_attention()
    tensors |= {"quantize.embedding.cluster_size": torch.rand(24), "quantize.embedding.embed_avg": torch.randn(24, 4)}
    save_file(tensors, tmp_path / "vq.safetensors")
    quantizer = convert("taming", tmp_path / "vq.safetensors").quantizer
    assert quantizer.config.codebook == "ema"
    assert torch.equal(quantizer.cluster_size, tensors["quantize.embedding.cluster_size"])
    assert torch.equal(quantizer.cluster_sum, tensors["quantize.embedding.embed_avg"])


@pytest.mark.parametrize("case", ["gumbel-f4", "vq-f4-ch32"])
def test_a_first_stage_inside_a_transformer_file(case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = shared(f"golden/taming/{case}")
    io, config = load_file(folder / "io.safetensors"), yaml.safe_load((folder / "config.yaml").read_text())
    inside = {f"first_stage_model.{key}": value for key, value in load_file(folder / "weights.safetensors").items()}
    others = {"transformer.head.weight": torch.zeros(3), "cond_stage_model.embedding.weight": torch.zeros(2)}
    torch.save({"state_dict": {**inside, **others}, "global_step": 3}, tmp_path / "net2net.ckpt")
    outer = {"model": {"params": {"first_stage_config": config["model"], "permuter_config": {}}}}
    with caplog.at_level(logging.WARNING):
        tokenizer = convert("taming", tmp_path / "net2net.ckpt", outer)
    assert "cond_stage_model (1), transformer (1)" in caplog.text
    assert tokenizer.config.image_size == config["model"]["params"]["ddconfig"]["resolution"]
    codes = tokenizer.encode(io["images"])
    assert torch.equal(codes, io["codes"].reshape(codes.shape))


def test_ignored_keys_are_said_and_others_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = tensors_without_middle_attention()
    ignored = {"loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1), "colorize": torch.zeros(3)}
    save_file(tensors | ignored, tmp_path / "vq.safetensors")
    with caplog.at_level(logging.WARNING):
        convert("taming", tmp_path / "vq.safetensors")
    assert "loss (1)" in caplog.text
    assert "colorize (1)" in caplog.text
    save_file(tensors | {"encoder.extra.weight": torch.zeros(1)}, tmp_path / "vq.safetensors")
    with pytest.raises(ValueError, match=r"surplus encoder\.extra\.weight"):
        convert("taming", tmp_path / "vq.safetensors")
    del tensors["decoder.norm_out.bias"]
    save_file(tensors, tmp_path / "vq.safetensors")
    with pytest.raises(ValueError, match=r"missing decoder\.norm\.bias"):
        convert("taming", tmp_path / "vq.safetensors")


@pytest.mark.parametrize("case", ["layers2", "layers3"])
@pytest.mark.parametrize("source", ["taming", "llamagen"])
def test_the_discriminator_comes_with_its_running_statistics(source: str, case: str, tmp_path: Path) -> None:
    folder = shared(f"golden/parts/patchgan/{case}")
    io, meta = load_file(folder / "io.safetensors"), json.loads((folder / "meta.json").read_text())
    weights = load_file(folder / "weights.safetensors")
    below_loss = {f"loss.discriminator.{key}": value for key, value in weights.items()}
    wrapped = {f"module.{key}": value for key, value in weights.items()}
    content = {"state_dict": below_loss} if source == "taming" else {"model": {}, "discriminator": wrapped}
    torch.save(content, tmp_path / "last.ckpt")
    discriminator = convert_discriminator(source, tmp_path / "last.ckpt")
    assert discriminator is not None
    with torch.no_grad():
        logits = discriminator(io["input"]).logits[0]
    assert (logits - io["logits_eval"]).abs().max() <= meta["tolerance"]["logits_eval"]


def test_no_discriminator_or_one_that_is_not_ours(tmp_path: Path) -> None:
    torch.save({"state_dict": {"encoder.conv_in.weight": torch.zeros(1)}}, tmp_path / "a.ckpt")
    assert convert_discriminator("taming", tmp_path / "a.ckpt") is None
    torch.save({"state_dict": {"loss.discriminator.main.3.loc": torch.zeros(1)}}, tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match="ActNorm"):
        convert_discriminator("taming", tmp_path / "b.ckpt")
    folder = shared("golden/taming/vq-lightning-noattn")
    with pytest.raises(ValueError, match="only a part of one"):
        convert_discriminator("taming", folder / "model.ckpt")


@pytest.mark.parametrize(
    ("source", "given", "said"),
    [
        ("taming", "llamagen/vq8-like", "source 'llamagen'"),
        ("llamagen", "taming/vq-f4-ch32", "source 'taming'"),
        ("latent-diffusion", "rqvae/separate", "source 'rqvae'"),
        ("taming", "ibq/dot", "source 'ibq'"),
        ("llamagen", "diffusers/group", "source 'diffusers'"),
    ],
)
def test_the_wrong_source_is_one_line_that_names_the_likely_one(source: str, given: str, said: str) -> None:
    folder = shared(f"golden/{given}")
    weights, config = folder / "weights.safetensors", folder / "config.yaml"
    with pytest.raises(ValueError, match=said) as error:
        convert(source, weights if weights.exists() else folder, config if config.exists() else None)
    assert "\n" not in str(error.value)


def test_a_small_model_with_the_codebook_alone_says_what_is_missing(tmp_path: Path) -> None:
    save_file({"quantize.embedding.weight": torch.zeros(4, 2)}, tmp_path / "book.safetensors")
    with pytest.raises(ValueError, match=r"no tensor for encoder\.conv_in\.weight"):
        convert("taming", tmp_path / "book.safetensors")
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        convert("taming", tmp_path / "missing.ckpt")
    with pytest.raises(ValueError, match="did you mean 'taming'"):
        convert("tamming", tmp_path / "book.safetensors")


def test_a_resolution_that_the_stride_does_not_divide_still_decodes(tmp_path: Path) -> None:
    save_file(tensors_without_middle_attention(), tmp_path / "vq.safetensors")
    for resolution, size in ((25, 24), (1, 2), (None, 256)):
        tokenizer = convert("taming", tmp_path / "vq.safetensors", {"ddconfig": {"resolution": resolution}})
        assert tokenizer.config.image_size == size
        assert tokenizer.decode(tokenizer.encode(torch.rand(1, 5, 8, 4))).shape == (1, 5, 8, 4)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"n_embed": 25}, "the config says n_embed 25, its tensors 24"),
        ({"embed_dim": 6}, "embed_dim 6, its tensors 4"),
        ({"ddconfig": {"ch_mult": [1, 2, 2]}}, r"ch_mult \(1, 2, 2\), its tensors \(1, 2\)"),
        ({"ddconfig": {"z_channels": 4}}, "z_channels 4, its tensors 6"),
        ({"ddconfig": [1]}, "ddconfig is not a mapping"),
        ({"ddconfig": {"resolution": "256"}}, "image_size: .* got '256'"),
    ],
)
def test_the_config_of_another_model_is_refused(config: dict[str, object], said: str, tmp_path: Path) -> None:
    save_file(tensors_without_middle_attention(), tmp_path / "vq.safetensors")
    with pytest.raises(ValueError, match=said):
        convert("taming", tmp_path / "vq.safetensors", {"model": {"target": "VQModel", "params": config}})


def test_what_the_networks_lack_or_codes_are_not_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = tensors_without_middle_attention()
    linear = {"encoder.mid.attn_1.to_qkv.weight": torch.zeros(192, 64, 1, 1)}
    torch.save(tensors | linear, tmp_path / "vq.ckpt")
    with pytest.raises(ValueError, match="linear attention"):
        convert("latent-diffusion", tmp_path / "vq.ckpt")
    torch.save(tensors | {"quantize.used": torch.arange(3)}, tmp_path / "vq.ckpt")
    with caplog.at_level(logging.WARNING):
        convert("taming", tmp_path / "vq.ckpt")
    assert "codes are those of the whole codebook" in caplog.text
    for name in ("encoder.conv_in.weight", "quant_conv.weight", "quantize.embedding.weight"):
        torch.save(tensors | {name: torch.zeros(())}, tmp_path / "vq.ckpt")
        with pytest.raises(ValueError, match=r"is \(\), expected a layer's weight or a codebook"):
            convert("taming", tmp_path / "vq.ckpt")
