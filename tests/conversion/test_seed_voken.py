"""Open-MAGVIT2's and IBQ's files: which of raw and averaged weights is taken, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import shared
from tokenizers_vq.conversion import convert, convert_discriminator
from tokenizers_vq.conversion.checkpoint import read_config, read_tensors


@pytest.fixture
def averaged() -> tuple[dict[str, Tensor], dict]:
    folder = shared("golden/open-magvit2/bits8-ema")
    config = read_config(folder / "config.yaml")
    assert config is not None
    return read_tensors(folder / "model.ckpt", "state_dict"), config


def test_averages_are_taken_unless_the_config_turns_them_off(
    averaged: tuple[dict[str, Tensor], dict], tmp_path: Path
) -> None:
    tensors, config = averaged
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": tensors}, path)
    raw, average = tensors["encoder.conv_out.bias"], tensors["model_ema.encoderconv_outbias"]
    assert not torch.equal(raw, average)
    assert torch.equal(convert("open-magvit2", path, config).encoder.conv_out.bias, average)
    assert torch.equal(convert("open-magvit2", path).encoder.conv_out.bias, average)
    config["model"]["init_args"]["use_ema"] = False
    assert torch.equal(convert("open-magvit2", path, config).encoder.conv_out.bias, raw)


def test_a_missing_a_surplus_and_an_orphaned_key_are_named(
    averaged: tuple[dict[str, Tensor], dict], tmp_path: Path
) -> None:
    plain = {key: value for key, value in averaged[0].items() if not key.startswith("model_ema.")}
    broken = {
        "missing encoder.norm.bias": {key: value for key, value in plain.items() if key != "encoder.norm_out.bias"},
        "surplus encoder.unheard.weight": {**plain, "encoder.unheard.weight": torch.ones(1)},
        "model_ema.encoderunheardweight": {**plain, "model_ema.encoderunheardweight": torch.ones(1)},
        "not an Open-MAGVIT2 checkpoint": {"weight": torch.ones(1)},
    }
    for message, tensors in broken.items():
        torch.save({"state_dict": tensors}, tmp_path / "model.ckpt")
        with pytest.raises(ValueError, match=message):
            convert("open-magvit2", tmp_path / "model.ckpt")


def test_settings_of_training_are_kept_for_fine_tuning() -> None:
    folder = shared("golden/ibq/dot")
    config = read_config(folder / "config.yaml")
    assert config is not None
    arguments = config["model"]["init_args"]
    arguments |= {"beta": 0.5, "entropy_temperature": 0.2, "lossconfig": {"params": {"entropy_loss_weight": 0.3}}}
    quantizer = convert("ibq", folder / "weights.safetensors", config).quantizer.config
    assert (quantizer.beta, quantizer.entropy_temperature, quantizer.entropy_weight) == (0.5, 0.2, 0.3)


def test_the_discriminator_beside_the_tokenizer_is_kept(tmp_path: Path) -> None:
    folder = shared("golden/parts/patchgan")
    case = next(path for path in sorted(folder.iterdir()) if (path / "weights.safetensors").exists())
    tensors = {f"loss.discriminator.{key}": value for key, value in load_file(case / "weights.safetensors").items()}
    torch.save({"state_dict": {**tensors, "loss.lpips": torch.ones(1)}}, tmp_path / "model.ckpt")
    for source in ("ibq", "open-magvit2"):
        discriminator = convert_discriminator(source, tmp_path / "model.ckpt")
        assert discriminator is not None
        counted = sum(parameter.numel() for parameter in discriminator.parameters())
        assert counted == sum(value.numel() for key, value in tensors.items() if re.search(r"\.(weight|bias)$", key))
        assert convert_discriminator(source, shared("golden/ibq/dot/weights.safetensors")) is None
    torch.save({"state_dict": {"loss.discriminator.block_in.0.weight": torch.ones(8, 3, 5, 5)}}, tmp_path / "blur.ckpt")
    with pytest.raises(ValueError, match="not a PatchGAN"):
        convert_discriminator("open-magvit2", tmp_path / "blur.ckpt")
