"""Models that the package brings: shipped in half precision, found by name, with a card that says what they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import prior
import tokenizers_vq as tvq
from prior.cli import main as prior_command
from tests.stand_ins import CLASSES, make_prior, make_tokenizer, run_of, ship
from tokenizers_vq.cli import main as tvq_command
from tokenizers_vq.tokenizer import Tokenizer

TOKENIZER, PRIOR = "stand-in-16", "stand-in-prior"


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Empty folders of shipped tokenizers and priors."""
    folders = tmp_path / "tokenizers", tmp_path / "priors"
    monkeypatch.setattr("tokenizers_vq.tokenizer.WEIGHTS", folders[0])
    monkeypatch.setattr("prior.model.WEIGHTS", folders[1])
    return folders


@pytest.fixture
def shipped(places: tuple[Path, Path], tmp_path: Path) -> Tokenizer:
    """Ships the stand-ins; the tokenizer before it was rounded."""
    tokenizer = make_tokenizer()
    ship()([str(run_of(tmp_path / "run", tokenizer)), "--name", TOKENIZER])
    ship()([str(run_of(tmp_path / "prior-run", make_prior(tvq.load(TOKENIZER), "elsewhere"))), "--name", PRIOR])
    return tokenizer


def command(main: Callable[[list[str]], None], *arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def test_a_shipped_tokenizer_is_its_rounded_run(shipped: Tokenizer, places: tuple[Path, Path]) -> None:
    assert tvq.list_models("shipped") == [TOKENIZER]
    stored = load_file(places[0] / TOKENIZER / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()} == {torch.float16}
    for loaded in (tvq.load(TOKENIZER), Tokenizer.from_pretrained(TOKENIZER)):
        for name, tensor in shipped.state_dict().items():
            wanted = tensor.half().float() if tensor.is_floating_point() else tensor
            assert torch.equal(loaded.state_dict()[name], wanted)
        assert loaded.dtype == torch.float32 and not loaded.training
        assert loaded.fingerprint == make_tokenizer().half().fingerprint
        assert loaded.decode(loaded.encode(torch.zeros(1, 3, 16, 16))).shape == (1, 3, 16, 16)


def test_the_card_says_what_it_is(shipped: Tokenizer, places: tuple[Path, Path]) -> None:
    card = (places[0] / TOKENIZER / "README.md").read_text()
    assert "license: other\nlicense_name: research-and-education-only" in card
    for text in (
        f'tvq.load("{TOKENIZER}")',
        tvq.load(TOKENIZER).fingerprint,
        "images are for research and education use only",
        "7 steps of 4 images",
        "seed 3",
        "path: tiny-imagenet-64",
        "none measured yet",
    ):
        assert text in card
    assert "somebody" not in card
    card = (places[1] / PRIOR / "README.md").read_text()
    for text in (f'prior.load("{PRIOR}")', f'tvq.load("{TOKENIZER}")', "1 tailed frog", 'model.sample(1, "goldfish")'):
        assert text in card
    code = card.split("```python\n")[1].split("```")[0]
    exec(compile(code, "card", "exec"), found := {})
    assert found["image"].size == (16, 16)


def test_a_shipped_prior_samples_by_name(shipped: Tokenizer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert prior.list_models("shipped") == [PRIOR]
    assert prior.load(PRIOR).config.tokenizer == TOKENIZER
    out = tmp_path / "grid.png"
    asked = ("--class", "Goldfish", "--grid", "2x2", "--device", "cpu")
    assert command(prior_command, "sample", PRIOR, "--out", out, *asked) == 0
    with Image.open(out) as grid:
        assert grid.size == (2 * 18 + 2, 2 * 18 + 2)
    assert not list(tmp_path.glob("*.json")), "a picture alone was asked for"
    assert command(prior_command, "sample", PRIOR, "--out", tmp_path / "s", "--count", 3, "--device", "cpu") == 0
    told = json.loads((tmp_path / "s" / "samples.json").read_text())
    assert [entry["name"] for entry in told["images"]] == list(CLASSES)
    assert command(prior_command, "sample", PRIOR, "--out", out, "--codes") == 2
    assert "give --out FOLDER" in capfd.readouterr().err
    assert command(prior_command, "models") == 0
    assert f"{PRIOR}  class-conditional prior" in capfd.readouterr().out
    assert command(tvq_command, "models") == 0
    assert f"{TOKENIZER}  image tokenizer" in capfd.readouterr().out


def test_codes_of_a_shipped_tokenizer_name_it_and_of_a_folder_its_place(
    shipped: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenizers_vq import BatchEncoder

    assert BatchEncoder(TOKENIZER, device="cpu").name == TOKENIZER
    monkeypatch.chdir(tmp_path)
    assert BatchEncoder("run", device="cpu").name == str((tmp_path / "run").resolve())
    # A folder of that name which holds no model, say one of results, does not hide the shipped one.
    (tmp_path / TOKENIZER).mkdir()
    assert tvq.load(TOKENIZER).fingerprint == BatchEncoder(TOKENIZER, device="cpu").fingerprint


def test_figures_are_those_of_the_shipped_file(
    shipped: Tokenizer, places: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        noise = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(number)) * 2 - 1
        (tmp_path / "photos").mkdir(exist_ok=True)
        tvq.images.to_pil(noise).save(tmp_path / "photos" / f"{number}.png")
    quick = ("--data", tmp_path / "photos", "--backbone", "none", "--lpips", "none", "--device", "cpu")
    for model, file in ((tmp_path / "run", "run.json"), (TOKENIZER, "shipped.json")):
        assert command(tvq_command, "evaluate", model, *quick, "--precision", "fp32", "--out", tmp_path / file) == 0
    again = [str(tmp_path / "run"), "--name", TOKENIZER, "--evaluation"]
    with pytest.raises(SystemExit, match=r"run\.json is not of stand-in-16 as it is shipped"):
        ship()([*again, str(tmp_path / "run.json")])
    evaluation = json.loads((tmp_path / "shipped.json").read_text())
    distance = {"value": 1.5, "unit": "", "backbone": "tf_efficientnet_lite0", "layer": "head"}
    evaluation["metrics"] |= {"feature_distance": distance, "lpips_squeeze": {"value": 0.25, "unit": ""}}
    (tmp_path / "shipped.json").write_text(json.dumps(evaluation))
    ship()([*again, str(tmp_path / "shipped.json")])
    measured = json.loads((tmp_path / "shipped.json").read_text())["metrics"]["psnr"]["value"]
    card = (places[0] / TOKENIZER / "README.md").read_text()
    assert f"| PSNR (dB), photos at 16x16, 2 images | {measured:.4g} |" in card
    assert "of tf_efficientnet_lite0, photos at 16x16, 2 images; may be flattered" in card  # lite1 is in a loss
    assert "| LPIPS squeeze, photos at 16x16, 2 images | 0.25 |" in card

    found = {"images": 9, "bits_per_token": 3.25, "bits_per_image": 52.0, "entropies": [3.5]}
    again = [str(tmp_path / "prior-run"), "--name", PRIOR, "--evaluation", str(tmp_path / "prior.json")]
    (tmp_path / "prior.json").write_text(json.dumps({"model": "runs/p", **found}))
    with pytest.raises(SystemExit, match="evaluate it by that name"):
        ship()(again)
    (tmp_path / "prior.json").write_text(json.dumps({"model": PRIOR, **found}))
    ship()(again)
    card = (places[1] / PRIOR / "README.md").read_text()
    assert "| bits per token, codes of 9 held-out images | 3.25 |" in card


def test_what_cannot_be_shipped_leaves_what_was_there(
    shipped: Tokenizer, places: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for place in places for path in place.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit, match="no shipped tokenizer has the fingerprint"):
        ship()([str(run_of(tmp_path / "stray", make_prior(make_tokenizer(2)))), "--name", PRIOR])
    wide = ["encoder.width=160", "decoder.width=160", "decoder.blocks=8", "encoder.blocks=8"]
    cases = {"big": (tvq.create("vqvae-tiny-64", wide), "at most 8,000,000")}
    steep = make_tokenizer()
    torch.nn.init.constant_(steep.decoder.head.weight, 1e5)
    cases["steep"] = (steep, "decoder.head.weight does not fit half precision")
    for name, (model, message) in cases.items():
        with pytest.raises(SystemExit):
            ship()([str(run_of(tmp_path / name, model)), "--name", TOKENIZER])
        assert message in capfd.readouterr().err
    with pytest.raises(SystemExit):
        ship()([str(tmp_path), "--name", TOKENIZER])
    assert "is no run" in capfd.readouterr().err
    assert {path: path.read_bytes() for place in places for path in place.rglob("*") if path.is_file()} == before
