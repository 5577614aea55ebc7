"""MaskGIT's VQGAN and TiTok at sizes that nobody published: a tokenizer's own tensors under the reference's keys."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tokenizers_vq.conversion import convert
from tokenizers_vq.tokenizer import PixelRange, Tokenizer, TokenizerConfig

Tensors = dict[str, Tensor]


def spread(tokenizer: Tokenizer) -> Tokenizer:
    torch.nn.init.normal_(tokenizer.quantizer.weight)
    return tokenizer.eval()


def maskgit(shortcut: str = "output") -> Tokenizer:
    network = {"kind": "maskgit", "width": 32, "multipliers": (2, 3, 1), "blocks": 2, "shortcut": shortcut}
    return spread(
        Tokenizer(
            TokenizerConfig(
                image_size=24,
                channels=5,
                pixels=PixelRange(low=0.0, high=1.0),
                encoder=network,
                quantizer={"kind": "vector", "num_codes": 20, "dim": 7},
                decoder=network,
            )
        )
    )


def titok(stage: str) -> Tokenizer:
    proxy = {"width": 32, "multipliers": (1, 2), "blocks": 1}
    decoder: dict[str, object] = {"kind": "titok"}
    if stage == "two":
        decoder = {"kind": "titok_proxy", "proxy_codes": 9, "proxy_dim": 6, "proxy": proxy}
    return spread(
        Tokenizer(
            TokenizerConfig(
                image_size=24,
                channels=3 if stage == "two" else 4,
                pixels=PixelRange(low=0.0, high=1.0),
                encoder={
                    "kind": "titok",
                    "tokens": 7,
                    "patch": 4,
                    "width": 128,
                    "layers": 1,
                    "heads": 2,
                    "mlp": 96,
                    "legacy_reshape": stage == "two",
                },
                quantizer={"kind": "vector", "num_codes": 10, "dim": 5, "distance": "euclidean"},
                decoder={**decoder, "tokens": 7, "patch": 2, "width": 64, "layers": 2, "heads": 1},
            )
        )
    )


def maskgit_decoder(state: Tensors, last: int) -> Tensors:
    """Our decoder's tensors by the reference's keys; `last` is the coarsest level."""
    theirs = {}
    for key, tensor in state.items():
        match = re.match(r"levels\.(\d+)\.(\d+)\.(.*)", key)
        if match:
            inside = match[3].replace("shortcut", "nin_shortcut")
            part = f"upsample_{inside}" if inside.startswith("conv.") else f"block.{match[2]}.{inside}"
            key = f"up.{last - int(match[1])}.{part}"
        for ours, reference in (("post_quant_conv", "conv_in"), ("head", "conv_out"), ("norm.", "norm_out.")):
            if key.startswith(ours):
                key = key.replace(ours, reference, 1)
        theirs[key.replace("middle.", "mid.")] = tensor
    return theirs


def maskgit_keys(tokenizer: Tokenizer) -> Tensors:
    encoder = {}
    for key, tensor in tokenizer.encoder.state_dict().items():
        key = re.sub(r"^levels\.(\d+)\.(\d+)", r"down.\1.block.\2", key).replace("middle.", "mid.")
        key = key.replace("quant_conv", "conv_out").replace(".shortcut", ".nin_shortcut")
        encoder[f"encoder.{re.sub('^norm', 'norm_out', key)}"] = tensor
    decoder = maskgit_decoder(tokenizer.decoder.state_dict(), 2)
    return {
        **encoder,
        **{f"decoder.{key}": tensor for key, tensor in decoder.items()},
        "quantize.embedding.weight": tokenizer.quantizer.weight.detach(),
    }


def titok_keys(tokenizer: Tokenizer) -> Tensors:
    rules = [
        ("trunk.class_token", "class_embedding"),
        ("trunk.latent_positions", "latent_token_positional_embedding"),
        ("trunk.positions", "positional_embedding"),
        ("trunk.norm_in", "ln_pre"),
        ("trunk.norm.", "ln_post."),
        ("trunk.blocks", "transformer"),
        (".norm1.", ".ln_1."),
        (".norm2.", ".ln_2."),
        ("attn.qkv.", "attn.in_proj_"),
        ("attn.proj.", "attn.out_proj."),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
        ("encoder.latents", "latent_tokens"),
        ("encoder.embed", "encoder.patch_embed"),
        ("encoder.quant_conv", "encoder.conv_out"),
        ("decoder.post_quant_conv", "decoder.decoder_embed"),
        ("decoder.to_pixels", "decoder.ffn.0"),
        ("decoder.expand", "decoder.ffn.0"),
        ("decoder.logits", "decoder.ffn.2"),
        ("decoder.head", "decoder.conv_out"),
        ("decoder.codebook", "pixel_quantize.embedding.weight"),
        ("quantizer.weight", "quantize.embedding.weight"),
    ]
    theirs = {}
    for key, tensor in tokenizer.state_dict().items():
        if key == "quantizer.age" or key.startswith("decoder.proxy."):
            continue
        for ours, reference in rules:
            key = key.replace(ours, reference)
        if key.endswith(("conv_out.weight", "ffn.0.weight", "ffn.2.weight")) and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        if key == "encoder.patch_embed.weight":
            tensor = tensor.unflatten(1, (tokenizer.config.channels, 4, 4))
        theirs[key] = tensor.contiguous()
    proxy = {key[14:]: tensor for key, tensor in tokenizer.state_dict().items() if key.startswith("decoder.proxy.")}
    return {**theirs, **{f"pixel_decoder.{key}": tensor for key, tensor in maskgit_decoder(proxy, 1).items()}}


def settings(legacy: bool, l2: bool = False, **more: object) -> dict[str, object]:
    model = {"use_l2_norm": l2, "is_legacy": legacy, "commitment_cost": 0.25, **more}
    return {"model": {"vq_model": model}, "dataset": {"preprocessing": {"crop_size": 24}}}


def assert_same(converted: Tokenizer, tokenizer: Tokenizer) -> None:
    images = torch.rand(2, tokenizer.config.channels, 24, 24) * 2 - 1
    codes = tokenizer.encode(images)
    assert torch.equal(converted.encode(images), codes) and len(codes.unique()) > 1
    assert torch.equal(converted.decode(codes), tokenizer.decode(codes))


@pytest.mark.parametrize("shortcut", ["output", "input"])
def test_maskgit_of_any_widths(shortcut: str, tmp_path: Path) -> None:
    tokenizer = maskgit(shortcut)
    torch.save({"state_dict": maskgit_keys(tokenizer)}, tmp_path / "vqgan.bin")
    (tmp_path / "config.json").write_text(json.dumps({"resolution": 24}))
    for weights, config in ((tmp_path / "vqgan.bin", {"resolution": 24}), (tmp_path, None)):
        converted = convert("maskgit", weights, config)
        assert converted.config.encoder == tokenizer.config.encoder and converted.config.image_size == 24
        assert_same(converted, tokenizer)


@pytest.mark.parametrize("stage", ["one", "two"])
def test_titok_of_any_widths(stage: str, tmp_path: Path) -> None:
    tokenizer = titok(stage)
    save_file(titok_keys(tokenizer), tmp_path / "model.safetensors")
    converted = convert("titok", tmp_path / "model.safetensors", settings(stage == "two"))
    assert converted.config == tokenizer.config
    assert_same(converted, tokenizer)
    (tmp_path / "config.json").write_text(json.dumps(settings(stage == "two")))
    assert_same(convert("titok", str(tmp_path)), tokenizer)


def test_without_a_config_titok_is_as_published(tmp_path: Path) -> None:
    for stage, distance in (("one", "euclidean"), ("two", "cosine")):
        torch.save(titok_keys(titok(stage)), tmp_path / "titok.bin")
        converted = convert("titok", tmp_path / "titok.bin")
        assert converted.config.quantizer.distance == distance and converted.config.image_size == 24
        assert converted.config.encoder.legacy_reshape == (stage == "two")


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if not key.startswith(part)}


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (without("pixel_decoder."), settings(True), "holds no pixel_decoder: it is of stage 1, give one of stage 2"),
        (without("decoder.mask"), settings(True), r"missing decoder\.mask_token"),
        (lambda t: {**t, "extra.weight": torch.zeros(1)}, settings(True), r"surplus extra\.weight"),
        (lambda t: t, settings(False), "says is_legacy: false, but its decoder predicts codes"),
        (lambda t: t, settings(True, quantize_mode="vae"), "quantize_mode vae has no codes"),
        (lambda t: t, {"dataset": {"preprocessing": {"crop_size": 64}}}, "no image of 64x64: give the config"),
        (lambda t: t, {"dataset": {"preprocessing": {"crop_size": "full"}}}, "no image of fullxfull: give the config"),
        (lambda t: t, settings(True, num_latent_tokens=8), "num_latent_tokens 8, its tensors 7: give the config"),
        (lambda t: t, settings(True, vit_dec_patch_size=4), "vit_dec_patch_size 4, its tensors 2: give the config"),
        (lambda t: {**t, "decoder.ffn.0.weight": torch.zeros(())}, settings(True), r"decoder\.ffn\.0\.weight is \(\)"),
        (without("encoder."), settings(True), r"has no encoder\.patch_embed\.weight: it is of another layout"),
    ],
)
def test_titok_that_does_not_fit_is_refused(
    change: Callable[[Tensors], Tensors], config: dict[str, object], message: str, tmp_path: Path
) -> None:
    save_file(change(titok_keys(titok("two"))), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        convert("titok", tmp_path / "model.safetensors", config)


def test_maskgit_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    tensors = maskgit_keys(maskgit())
    save_file(without("decoder.up.0")(tensors), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"has no decoder\.up\.0|has no up\.0\.block\.0\.conv1\.weight"):
        convert("maskgit", tmp_path / "model.safetensors")
    save_file({**tensors, "discriminator.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"surplus discriminator\.weight"):
        convert("maskgit", tmp_path)
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"holds model\.safetensors, other\.safetensors: give the file"):
        convert("maskgit", tmp_path)


def test_a_config_of_empty_parts_is_none_and_one_of_another_model_refused(tmp_path: Path) -> None:
    save_file(titok_keys(titok("two")), tmp_path / "titok.safetensors")
    for empty in (
        {"model": None},
        {"model": {"vq_model": None}},
        {"dataset": None},
        {"dataset": {"preprocessing": None}},
    ):
        converted = convert("titok", tmp_path / "titok.safetensors", empty)
        assert converted.config.quantizer.distance == "cosine" and converted.config.image_size == 24
    save_file(maskgit_keys(maskgit()), tmp_path / "maskgit.safetensors")
    for resolution, size in ((26, 24), (None, 256)):
        converted = convert("maskgit", tmp_path / "maskgit.safetensors", {"resolution": resolution})
        assert converted.config.image_size == size
    with pytest.raises(ValueError, match=r"channel_mult \(1, 3, 1\), its tensors \(2, 3, 1\)"):
        convert("maskgit", tmp_path / "maskgit.safetensors", {"channel_mult": [1, 3, 1]})


def test_a_statistic_of_training_is_skipped_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = {**titok_keys(titok("one")), "quantize.embed_prob": torch.zeros(10)}
    save_file(tensors, tmp_path / "model.safetensors")
    convert("titok", tmp_path / "model.safetensors")
    assert "skipped keys" in caplog.text and "quantize (1)" in caplog.text
