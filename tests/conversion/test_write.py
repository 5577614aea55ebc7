"""`tvq convert`: a folder that `load` takes, with the discriminator and where it came from, whole or not at all."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tokenizers_vq as tvq
from tests.conftest import shared
from tokenizers_vq.cli.app import main
from tokenizers_vq.conversion import catalogue
from tokenizers_vq.conversion.write import convert_to_folder
from tokenizers_vq.discriminators import PatchGANConfig, saved


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A Lightning file of a recorded tokenizer and a recorded discriminator."""
    tensors = load_file(shared("golden/taming/vq-f4-ch32/weights.safetensors"))
    judge = load_file(shared("golden/parts/patchgan/layers2/weights.safetensors"))
    own = {key: value for key, value in tensors.items() if not key.startswith("loss.")}
    state = own | {f"loss.discriminator.{key}": value for key, value in judge.items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_the_folder_is_loaded_and_says_where_it_came_from(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shared("golden/taming/vq-f4-ch32")
    out = tmp_path / "vqgan"
    assert (
        call("convert", "taming", checkpoint, "--config", folder / "config.yaml", "--out", out, "--name", "mine") == 0
    )
    printed = capsys.readouterr()
    assert printed.out.strip() == str(out)
    assert "797,075 parameters; 32x32 pixels become 64 codes (8x8) of 128" in printed.err
    assert "loss (" in printed.err
    assert "discriminator: patchgan" in printed.err
    io = load_file(folder / "io.safetensors")
    tokenizer = tvq.load(out)
    codes = tokenizer.encode(io["images"])
    assert torch.equal(codes, io["codes"].reshape(codes.shape))
    checksum = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    record = json.loads((out / "conversion.json").read_text())
    assert record["files"] == {"last.ckpt": checksum}
    card = (out / "README.md").read_text()
    assert "# mine" in card
    assert checksum in card
    assert "license: unknown" in card


def test_the_discriminator_is_filled_where_its_config_agrees(checkpoint: Path, tmp_path: Path) -> None:
    assert convert_to_folder("taming", checkpoint, None, tmp_path / "vqgan").discriminator == "patchgan"
    folder = tmp_path / "vqgan" / saved.FOLDER
    same, other = PatchGANConfig(width=8, layers=2).build(3), PatchGANConfig(width=8, layers=3).build(3)
    assert saved.fill(same, folder) is None
    judge = load_file(shared("golden/parts/patchgan/layers2/weights.safetensors"))
    assert torch.equal(same.blocks[0][0].weight, judge["main.0.weight"])
    assert torch.equal(same.blocks[1][1].running_var, judge["main.3.running_var"])
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    assert saved.fill(other, folder) == "layers is 2, here 3"
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())
    assert "channels is 3, here 1" in str(saved.fill(PatchGANConfig(width=8, layers=2).build(1), folder))
    assert saved.fill(PatchGANConfig(width=8, layers=2).build(3, (64, 96)), folder) is None, "it takes any size"


def test_only_an_earlier_conversion_is_replaced_and_a_failure_leaves_it(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "vqgan"
    convert_to_folder("taming", checkpoint, None, out)
    convert_to_folder("taming", checkpoint, None, out)
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="keys look like"):
        convert_to_folder("llamagen", checkpoint, None, out)
    assert (out / "model.safetensors").read_bytes() == before
    other = tmp_path / "photos"
    other.mkdir()
    (other / "a.png").touch()
    with pytest.raises(ValueError, match="give another --out"):
        convert_to_folder("taming", checkpoint, None, other)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "photos", "vqgan"]


def test_errors_are_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.ckpt").write_bytes(b"no checkpoint")
    assert call("convert", "taming", tmp_path / "x.ckpt", "--out", tmp_path / "out") == 2
    assert call("convert", "tming", tmp_path / "x.ckpt", "--out", tmp_path / "out") == 2
    assert call("convert", "taming", tmp_path / "x.ckpt", "--config", tmp_path / "c", "--out", tmp_path / "out") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "truncated or not a file of torch.save" in lines[0]
    assert "did you mean 'taming'" in lines[1]
    assert "no config file" in lines[2]
    assert not (tmp_path / "out").exists()


def test_the_package_offers_it_lazily() -> None:
    from tokenizers_vq import conversion

    assert tvq.convert is conversion.convert


def test_the_card_of_a_file_that_the_catalogue_knows_says_its_licence(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checksum = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    fields = {
        "source": "taming", "about": "made up", "paper": "p", "code": "c", "page": "https://example.org",
        "weights_licence": "mit",
    }  # fmt: skip
    known = catalogue.Published(name="fam/a", files=(catalogue.File(name="a.ckpt", sha256=checksum),), **fields)
    other = catalogue.Published(name="fam/b", files=(catalogue.File(name="a.ckpt", sha256="0" * 64),), **fields)
    monkeypatch.setattr(catalogue, "entries", lambda: {"fam/b": other, "fam/a": known})
    convert_to_folder("taming", checkpoint, None, tmp_path / "by-checksum")
    card = (tmp_path / "by-checksum" / "README.md").read_text()
    assert "license: mit" in card
    assert 'load("fam/a")' in card
    monkeypatch.setattr(catalogue, "entries", lambda: {"fam/b": other})
    convert_to_folder("taming", checkpoint, None, tmp_path / "other-checksum", name="fam/b")
    assert "license: unknown" in (tmp_path / "other-checksum" / "README.md").read_text()
