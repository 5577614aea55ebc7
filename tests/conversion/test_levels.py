"""RQ-VAE and VAR beyond the recorded tensors: files without config, other phis and sizes, the discriminator."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

import tokenizers_vq as tvq
from tests.conftest import shared
from tokenizers_vq.conversion import convert, convert_discriminator
from tokenizers_vq.discriminators.patchgan import PatchGAN


@pytest.mark.parametrize(
    ("preset", "count", "layout"),
    [
        # kakaobrain/rq-vae-transformer at commit 341395e: RQVAE built from in256-rqvae-8x8x4.yaml has 104,402,051; its
        # table, 16384 rows and one of padding of 256, is a parameter there and a buffer here.
        ("rqvae-f32", 104_402_051 - 16385 * 256, (256, 4, (16384,) * 4)),
        # FoundationVision/VAR at commit 78b9539: VQVAE(vocab_size=4096, z_channels=32, ch=160)
        ("var-f16", 108_948_355, (680, 1, (4096,) * 10)),
    ],
)
def test_published_sizes_are_the_references(preset: str, count: int, layout: tuple) -> None:
    with torch.device("meta"):
        tokenizer = tvq.create(preset)
    assert sum(parameter.numel() for parameter in tokenizer.parameters()) == count
    ours = tokenizer.code_layout()
    assert (ours.length, ours.levels, ours.sizes) == layout


@pytest.mark.parametrize("case", ["shared", "separate"])
def test_rqvae_s_keys_tell_all_but_the_size(case: str) -> None:
    folder = shared(f"golden/rqvae/{case}")
    weights = next(path for path in (folder / "model.pt", folder / "weights.safetensors") if path.exists())
    io = load_file(folder / "io.safetensors")
    with_config, without = convert("rqvae", weights, folder / "config.yaml"), convert("rqvae", weights)
    assert with_config.quantizer.config == without.quantizer.config
    assert without.quantizer.config.shared == (case == "shared") and without.config.image_size == 256
    assert torch.equal(without.encode(io["images"]), io["codes"])
    assert (without.decode(io["codes"]) - io["images_out"]).abs().max() < 4e-5
    wide = torch.rand(1, 3, 32, 48) * 2 - 1
    assert without.decode(without.encode(wide)).shape == wide.shape


def test_rqvae_s_moving_averages_are_kept_and_its_padding_is_not() -> None:
    folder = shared("golden/rqvae/separate")
    tensors = load_file(folder / "weights.safetensors")
    quantizer = convert("rqvae", folder / "weights.safetensors", folder / "config.yaml").quantizer
    for level, book in enumerate(quantizer.codebooks):
        assert torch.equal(book.weight, tensors[f"quantizer.codebooks.{level}.weight"][:-1])
        assert torch.equal(book.cluster_size, tensors[f"quantizer.codebooks.{level}.cluster_size_ema"])
        assert torch.equal(book.cluster_sum, tensors[f"quantizer.codebooks.{level}.embed_ema"])


def test_rqvae_with_merged_positions_is_refused() -> None:
    folder = shared("golden/rqvae/separate")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["arch"]["hparams"]["code_shape"] = [8, 8, 3]
    with pytest.raises(ValueError, match="several merged positions"):
        convert("rqvae", folder / "weights.safetensors", config)


def rqvae_case(case: str) -> tuple[dict[str, Tensor], dict]:
    folder = shared(f"golden/rqvae/{case}")
    path = folder / "model.pt"
    tensors = torch.load(path)["state_dict"] if path.exists() else load_file(folder / "weights.safetensors")
    return tensors, yaml.safe_load((folder / "config.yaml").read_text())


def test_rqvae_s_averaged_weights_are_read_where_there_are_no_others(tmp_path: Path) -> None:
    tensors, config = rqvae_case("separate")
    torch.save({"epoch": 1, "state_dict_ema": tensors}, tmp_path / "ema.pt")
    torch.save({"state_dict": tensors, "state_dict_ema": {"x": torch.zeros(1)}}, tmp_path / "both.pt")
    fingerprints = {convert("rqvae", tmp_path / name, config).fingerprint for name in ("ema.pt", "both.pt")}
    assert fingerprints == {convert("rqvae", tmp_path / "ema.pt").fingerprint}


def test_rqvae_s_shared_codebook_may_be_stored_once(tmp_path: Path) -> None:
    tensors, config = rqvae_case("shared")
    once = {key: tensor for key, tensor in tensors.items() if not re.match(r"quantizer\.codebooks\.[1-9]", key)}
    torch.save(tensors, tmp_path / "all.pt")
    save_file(once, tmp_path / "once.safetensors")
    every, one = convert("rqvae", tmp_path / "all.pt", config), convert("rqvae", tmp_path / "once.safetensors", config)
    assert every.config == one.config and every.fingerprint == one.fingerprint and one.code_layout().levels > 1


def test_rqvae_s_codebooks_must_be_those_of_the_config(tmp_path: Path) -> None:
    tensors, config = rqvae_case("separate")
    levels = config["arch"]["hparams"]["code_shape"][-1]
    path = tmp_path / "x.safetensors"
    save_file({key: value for key, value in tensors.items() if f"codebooks.{levels - 1}." not in key}, path)
    with pytest.raises(ValueError, match=f"holds {levels - 1} codebooks, the config's code_shape names {levels}"):
        convert("rqvae", path, config)
    save_file({key: value for key, value in tensors.items() if "codebooks.0." not in key}, path)
    with pytest.raises(ValueError, match=r"no quantizer\.codebooks\.0\.weight"):
        convert("rqvae", path)
    save_file(tensors, path)
    config["arch"]["hparams"]["shared_codebook"] = True
    with pytest.raises(ValueError, match="its codebooks differ"):
        convert("rqvae", path, config)


def _sequence(discriminator: PatchGAN) -> dict[str, Tensor]:
    """The tensors of a two-layer PatchGAN as the reference numbers its layers."""
    places = {"blocks.0.0": 0, "blocks.1.0": 2, "blocks.1.1": 3, "blocks.2.0": 5, "blocks.2.1": 6, "head": 8}
    return {
        f"main.{places[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": tensor
        for key, tensor in discriminator.state_dict().items()
    }


def test_rqvae_s_discriminator_lies_beside_the_tokenizer(tmp_path: Path) -> None:
    discriminator = PatchGAN(channels=3, width=8, layers=2).eval()
    content = {"epoch": 3, "state_dict": {"x": torch.zeros(1)}, "discriminator": _sequence(discriminator)}
    torch.save(content, tmp_path / "model.pt")
    found = convert_discriminator("rqvae", tmp_path / "model.pt")
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    assert found is not None and torch.equal(found(images).logits[0], discriminator(images).logits[0])
    torch.save({"state_dict": {"x": torch.zeros(1)}}, tmp_path / "none.pt")
    assert convert_discriminator("rqvae", tmp_path / "none.pt") is None


def var_tensors() -> dict[str, Tensor]:
    return load_file(shared("golden/var/scales-1-2-3-4-8") / "weights.safetensors")


@pytest.mark.parametrize("form", ["shared", "one each"])
def test_var_s_other_phis(form: str, tmp_path: Path) -> None:
    tensors = var_tensors()
    for key in [key for key in tensors if "qresi_ls" in key]:
        number, tensor = int(key.split(".")[3]), tensors.pop(key)
        if form == "one each":
            tensors[key.replace("qresi_ls.", "")] = tensor
        elif number == 0:
            tensors[key.replace("qresi_ls.0", "qresi")] = tensor
    del tensors["quantize.ema_vocab_hit_SV"]
    save_file(tensors, tmp_path / "var.safetensors")
    tokenizer = convert("var", tmp_path / "var.safetensors", {"v_patch_nums": [1, 2, 4, 8], "quant_resi": -0.25})
    quantizer = tokenizer.quantizer
    assert quantizer.config.phi_ratio == 0.25
    assert quantizer._phi_of_scale == ([0, 1, 2, 3] if form == "one each" else [0] * 4)
    images = torch.rand(2, 3, *tokenizer.config.size) * 2 - 1
    codes = tokenizer.encode(images)
    assert [tuple(part.shape) for part in codes] == [(2, 1, 1), (2, 2, 2), (2, 4, 4), (2, 8, 8)]
    assert tokenizer.decode(codes).shape == images.shape


def test_var_on_grids_that_are_not_square() -> None:
    weights = shared("golden/var/scales-1-2-3-4-8") / "weights.safetensors"
    tokenizer = convert("var", weights, {"v_patch_nums": [1, [2, 3], [3, 5], [4, 6]]})
    stride = tokenizer.encoder.stride
    assert tokenizer.config.size == (4 * stride, 6 * stride)
    images = torch.rand(1, 3, *tokenizer.config.size) * 2 - 1
    assert tokenizer.decode(tokenizer.encode(images)).shape == images.shape


def test_var_says_what_it_cannot_read(tmp_path: Path) -> None:
    weights = shared("golden/var/scales-1-2-3-4-8") / "weights.safetensors"
    with pytest.raises(ValueError, match="is of 5 scales: give them as v_patch_nums"):
        convert("var", weights)
    with pytest.raises(ValueError, match="using_znorm is not supported"):
        convert("var", weights, {"v_patch_nums": [1, 8], "using_znorm": True})
    tensors = var_tensors()
    del tensors["quantize.embedding.weight"]
    save_file(tensors, tmp_path / "var.safetensors")
    with pytest.raises(ValueError, match=r"quantizer\.codebook\.weight"):
        convert("var", tmp_path / "var.safetensors", {"v_patch_nums": [1, 8]})


def test_var_lies_in_a_checkpoint_of_its_transformer(tmp_path: Path) -> None:
    tensors, scales = var_tensors(), {"patch_nums": [1, 2, 3, 4, 8]}
    trainer = {"config": {}, "var_wo_ddp": {"x": torch.zeros(1)}, "vae_local": tensors, "var_opt": {"state": {}}}
    torch.save(tensors, tmp_path / "plain.pth")
    torch.save({"epoch": 1, "trainer": trainer}, tmp_path / "trainer.pth")
    torch.save({f"vae_local.{key}": tensor for key, tensor in tensors.items()}, tmp_path / "flat.pth")
    files = ("plain.pth", "trainer.pth", "flat.pth")
    assert len({convert("var", tmp_path / name, scales).fingerprint for name in files}) == 1


@pytest.mark.parametrize("scales", ["1_2_8", 8, [], ["a"], [1, None]])
def test_var_s_scales_must_be_a_list_of_sides(scales: object) -> None:
    weights = shared("golden/var/scales-1-2-3-4-8") / "weights.safetensors"
    with pytest.raises(ValueError, match="v_patch_nums must list the scales' sides"):
        convert("var", weights, {"v_patch_nums": scales})
