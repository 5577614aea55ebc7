"""A prior that is told another picture, by its codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import prior
import tokenizers_vq as tvq
from prior.cli import main
from prior.conditions import ImageCondition, ImageConfig
from prior.conditions.image import changed
from prior.data import Data, read_rows
from prior.model import Prior, PriorConfig
from prior.recipe import load_recipe
from prior.sequences import LayoutConfig
from tests.laws.priors import rows
from tests.prior.conftest import SMALL
from tests.prior.test_text import LAYOUT, NETWORKS
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.data.shards import read_codes

LAYOUTS = {
    "grid": CodeLayout(((2, 2),), 1, (5,)),
    "levels": CodeLayout(((2, 1),), 2, (5, 3)),
    "grids": CodeLayout(((1, 1), (2, 2)), 1, (4, 5)),
}


def build(network: str = "gpt", layout: str = "grid", **fields: object) -> Prior:
    torch.manual_seed(0)
    told = ImageConfig(layout=LayoutConfig.of(LAYOUTS[layout]), **fields)
    return Prior(PriorConfig(network=NETWORKS[network], condition=told, layout=LayoutConfig.of(LAYOUT))).eval()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Files of colour."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(24):
        pixels = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((20, 20), Image.Resampling.NEAREST).save(folder / f"{number:02d}.png")
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_codes_are_told_in_every_form(layout: str) -> None:
    model, shape = build(layout=layout), LAYOUTS[layout]
    flat = rows(shape, 2)
    wanted = model.context(flat, 2).vectors
    assert wanted.shape == (2, shape.length, 32)
    for form in (flat.numpy(), shape.unflatten(flat), flat.int()):
        assert torch.equal(model.context(form, 2).vectors, wanted)
    assert torch.equal(model.context(flat[0], 2).vectors[1], wanted[0])
    null = model.context(None, 2)
    assert null.null is not None and torch.equal(null.null.vectors, null.vectors)
    assert torch.equal(model.context(torch.full((1, shape.length), -1), 2).vectors, null.vectors)
    assert not torch.allclose(wanted, null.vectors)


def test_what_is_refused(tmp_path: Path) -> None:
    model, never = build(), build(dropout=0.0)
    for call, says in (
        (lambda: model.sample(3, torch.zeros(2, 4, dtype=torch.int64)), "2 pictures are given for 3 rows"),
        (lambda: model.sample(1, torch.full((1, 4), 5)), "is 5, outside [0, 5)"),
        (lambda: model.sample(1, torch.zeros(1, 5, dtype=torch.int64)), "tokens must be int64 (B, 4)"),
        (lambda: model.sample(1, torch.zeros(1, 4)), "tokens must be int64"),
        (lambda: model.sample(1, 3), "told a picture, got int: give a file, a PIL image, or its codes"),
        (lambda: model.sample(1, str(tmp_path / "a.png")), "does not say which tokenizer its pictures need"),
        (lambda: model.sample(1, guidance=2), "guidance 2 needs a picture"),
        (lambda: never.sample(1), "never learnt to do without a picture"),
        (lambda: never.sample(1, [None]), "never learnt to do without a picture"),
        (lambda: model.condition.take({}), "but these codes have none: give condition.codes=FOLDER"),
        (lambda: ImageConfig().fit({}), "give codes=FOLDER with the codes of the pictures that are told"),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert says in str(caught.value) and "\n" not in str(caught.value), caught.value


def test_grey_has_the_three_channels_alike() -> None:
    image = torch.rand(2, 3, 4, 4) * 2 - 1
    grey = changed(image, "grey")
    assert torch.equal(grey[:, 0], grey[:, 2])
    torch.testing.assert_close(grey[:, 0], 0.299 * image[:, 0] + 0.587 * image[:, 1] + 0.114 * image[:, 2])
    assert changed(image, "none") is image and torch.equal(changed(image[:, :1], "grey"), image[:, :1])


def encode(tokenizer: Path, data: Path, out: Path, *options: str) -> Path:
    from tokenizers_vq.cli import main as tvq_main

    with pytest.raises(SystemExit) as stop:
        arguments = ["encode", str(tokenizer), str(data), "--out", str(out), "--device", "cpu", "--precision", "fp32"]
        tvq_main([*arguments, *options])
    assert not stop.value.code
    return out


def test_pairs_of_folders(pictures: Path, tokenizer: Path, lively: Path, capfd, tmp_path: Path) -> None:
    codes = encode(tokenizer, pictures, tmp_path / "codes", "--views", "flip", "--shards", "2")
    told = encode(lively, pictures, tmp_path / "told", "--views", "flip")
    part = tmp_path / "part"
    part.mkdir()
    (pictures / "03.png").rename(part / "03.png")
    fewer = encode(lively, pictures, tmp_path / "fewer", "--views", "flip")
    once = encode(lively, part, tmp_path / "once")

    def command(*arguments: object) -> tuple[int, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in (*arguments, "--device", "cpu")])
        return int(stop.value.code or 0), capfd.readouterr().err

    def asked(folder: object) -> str:
        return f"model.condition={{kind: image, codes: {folder}}}"

    out = tmp_path / "run"
    assert command("train", "gpt-tiny", codes, *SMALL, asked(told), "image_every=6", "--out", out)[0] == 0
    model = prior.load(out)
    assert isinstance(model.condition, ImageCondition)
    config = model.config.condition
    assert config.fingerprint == tvq.load(lively).fingerprint and config.image_size == 16
    data = Data(load_recipe("gpt-tiny", codes, [*SMALL, asked(told)]))
    model.condition.prepare({"codes": data.shards})
    batch = read_rows(data.shards, np.array([7, 0, 46]))
    assert torch.equal(model.condition.take(batch), read_codes(told)[np.array([7, 0, 46])])
    photo = pictures / "05.png"
    picture = tvq.images.read(photo, size=16)
    wanted = tvq.load(lively).encode(picture).flatten(1)
    for value in (photo, str(photo), Image.open(photo), [photo]):
        assert torch.equal(model.condition.resolve(value, 1)[0], wanted)
    assert command("score", out)[0] == 0
    shown = ("sample", out, "--out", tmp_path / "s", "--count", 2)
    assert command(*shown, "--image", photo, "--guidance", 2)[0] == 0
    assert [one["image"] for one in json.loads((tmp_path / "s" / "samples.json").read_text())["images"]] == [
        str(photo)
    ] * 2
    for arguments, says in (
        ((*shown, "--image", tmp_path / "none.png"), "--image: no file"),
        ((*shown, "--text", "a cat"), "--text: this prior is told no text; it is told --image"),
        (("train", "gpt-tiny", codes, *SMALL, asked(fewer), "--out", tmp_path / "no"), "holds no codes of '03.png'"),
        (("train", "gpt-tiny", codes, *SMALL, asked(once), "--out", tmp_path / "no"), "holds 2 views an image"),
    ):
        status, err = command(*arguments)
        assert status == 2 and says in err and err.count("\n") == 1, err


def test_another_tokenizer_at_its_place_is_refused(tokenizer: Path, other_tokenizer: Path, tmp_path: Path) -> None:
    layout = LayoutConfig.of(tvq.load(tokenizer).code_layout())
    told = ImageConfig(
        tokenizer=str(other_tokenizer), fingerprint=tvq.load(tokenizer).fingerprint, layout=layout, image_size=16
    )
    model = Prior(PriorConfig(network=NETWORKS["gpt"], condition=told, layout=LayoutConfig.of(LAYOUT)))
    picture = Image.new("RGB", (20, 20))
    with pytest.raises(ValueError, match="is another tokenizer than that of the pictures,"):
        model.sample(1, picture)
    model.condition.adopt(tvq.load(other_tokenizer))  # not it either
    with pytest.raises(ValueError, match="is another tokenizer"):
        model.sample(1, picture)
    model.condition.adopt(tvq.load(tokenizer))
    assert model.sample(1, picture).shape == (1, 9)
