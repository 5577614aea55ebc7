"""enhancing-transformers beyond `test_families.py`: its positions, its discriminator, and what its config must say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.conftest import shared
from tests.golden.test_parts_losses import Case
from tokenizers_vq.conversion import convert, convert_discriminator
from tokenizers_vq.discriminators import stylegan2
from tokenizers_vq.networks.vit import VitEncoder, sincos_positions


def weights(case: str) -> dict[str, Tensor]:
    folder = shared(f"golden/vitvqgan/{case}")
    if (folder / "model.ckpt").exists():
        return torch.load(folder / "model.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    return load_file(folder / "weights.safetensors")


@pytest.mark.parametrize(("case", "grid"), [("patch4-lightning", (8, 8)), ("patch8", (4, 6)), ("residual", (4, 4))])
def test_fixed_positions_are_the_references(case: str, grid: tuple[int, int]) -> None:
    recorded = weights(case)["encoder.en_pos_embedding"][0]
    assert torch.allclose(sincos_positions(grid, recorded.shape[1]), recorded, atol=1e-6)


def test_positions_stay_fixed_in_training() -> None:
    folder = shared("golden/vitvqgan/patch8")
    tokenizer = convert("vitvqgan", folder / "weights.safetensors", folder / "config.yaml")
    fixed = [name for name, parameter in tokenizer.named_parameters() if not parameter.requires_grad]
    assert fixed == ["encoder.trunk.positions", "decoder.trunk.positions"]


def test_a_plain_euclidean_codebook(tmp_path: Path) -> None:
    folder = shared("golden/vitvqgan/patch8")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["model"]["params"]["quantizer"]["use_norm"] = False
    tokenizer = convert("vitvqgan", folder / "weights.safetensors", config["model"]["params"])
    images = load_file(folder / "io.safetensors")["images"]
    with torch.no_grad():
        latents = tokenizer.encode_features(images).movedim(1, -1)
    expected = torch.cdist(latents.double(), weights("patch8")["quantizer.embedding.weight"].double()).argmin(-1)
    assert torch.equal(tokenizer.encode(images), expected)


def test_the_config_is_needed_and_must_be_of_this_checkpoint() -> None:
    folder = shared("golden/vitvqgan/patch8")
    with pytest.raises(ValueError, match="needs its YAML as config"):
        convert("vitvqgan", folder / "weights.safetensors")
    with pytest.raises(ValueError, match=r"does not fit .*surplus encoder.transformer.layers.1.*"):
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["model"]["params"]["encoder"]["depth"] = 1
        convert("vitvqgan", folder / "weights.safetensors", config)


def test_the_discriminator_sees_what_it_saw_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("stylegan2-discriminator/px32-batch6-enhancing")
    widths = case.meta["arguments"]["widths"]  # the recorded one was narrowed in the same way
    monkeypatch.setattr(stylegan2, "layer_width", lambda side, *_: widths[str(side)])
    save_file({f"loss.discriminator.{key}": value for key, value in case.weights.items()}, tmp_path / "x.safetensors")
    discriminator = convert_discriminator("vitvqgan", tmp_path / "x.safetensors")
    assert discriminator is not None
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == case.meta["n_parameters"]
    case.equal("logits_batch", discriminator(2 * case.io["input"] - 1).logits[0])


def test_a_checkpoint_without_a_whole_discriminator_has_none() -> None:
    folder = shared("golden/vitvqgan/patch4-lightning")
    assert convert_discriminator("vitvqgan", folder / "model.ckpt", folder / "config.yaml") is None
    folder = shared("golden/vitvqgan/patch8")
    assert convert_discriminator("vitvqgan", folder / "weights.safetensors", folder / "config.yaml") is None


def test_a_transformer_s_checkpoint_holds_the_tokenizer_as_its_first_stage(tmp_path: Path) -> None:
    folder = shared("golden/vitvqgan/patch8")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    outer = {f"stage1_model.{key}": tensor for key, tensor in weights("patch8").items()}
    torch.save({"state_dict": {**outer, "transformer.x": torch.zeros(1)}}, tmp_path / "x.ckpt")
    second = {"model": {"params": {"stage1": config["model"], "transformer": {"params": {}}}}}
    one, two = (
        convert("vitvqgan", folder / "weights.safetensors", config),
        convert("vitvqgan", tmp_path / "x.ckpt", second),
    )
    assert one.fingerprint == two.fingerprint and one.config == two.config


def test_heads_need_not_divide_the_width_nor_the_width_the_feed_forward_s() -> None:
    encoder = VitEncoder(dim=5, image_size=(16, 16), patch=8, width=28, layers=1, heads=3, head_width=5, mlp=61)
    block = encoder.trunk.blocks[0]
    assert block.attn.qkv.weight.shape == (45, 28) and block.mlp.fc1.weight.shape == (61, 28)
    assert encoder(torch.zeros(1, 3, 16, 24)).shape == (1, 5, 2, 3)
