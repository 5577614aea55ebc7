"""Training on images: augmented and encoded as the prior trains, beside the stored codes of their centres."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import prior
import tokenizers_vq as tvq
from prior.cli import main
from prior.conditions.image import changed
from prior.data import Data
from prior.recipe import PriorRecipe, load_recipe
from prior.views import Views, image_numbers, with_folders
from tests.prior.conftest import SMALL
from tokenizers_vq.config import ConfigError
from tokenizers_vq.data import DataConfig
from tokenizers_vq.data.shards import read_codes
from tokenizers_vq.data.sources import open_source
from tokenizers_vq.data.transforms import augment


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of 15 colour pictures, and a broken file."""
    random = np.random.default_rng(0)
    for number in range(30):
        folder = tmp_path / "photos" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((24, 24), Image.Resampling.NEAREST).save(folder / f"{number:02d}.png")
    (tmp_path / "photos" / "cat" / "08.png").write_bytes(b"no picture")
    return tmp_path / "photos"


@pytest.fixture
def command(capfd) -> Callable[..., tuple[int, str]]:
    def run(*arguments: object) -> tuple[int, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in (*arguments, "--device", "cpu")])
        return int(stop.value.code or 0), capfd.readouterr().err

    return run


FIELDS = [*SMALL, "data.workers=0", "data.crop=random", "checkpoint_every=2", "log_every=1"]


def recipe_of(photos: Path, lively: Path, out: Path, *more: str) -> PriorRecipe:
    recipe = load_recipe("gpt-tiny", out / "codes", [*FIELDS, *more], str(photos))
    return with_folders(recipe.replace(tokenizer=str(lively)), out)


def test_batches_are_augmented_views_of_their_rows(photos: Path, lively: Path, tmp_path: Path) -> None:
    recipe = recipe_of(photos, lively, tmp_path / "run")
    views = Views(recipe, tmp_path / "run", "cpu")
    views.store(8)
    data = Data(recipe)
    assert len(data.shards) == 29 and data.shards.label_names == ("cat", "dog")
    assert list(data.shards.info["broken"]) == ["cat/08.png"]
    stream = views.batches(recipe, data, 0, 0, 1)
    found = [next(stream) for _ in range(8)]
    stream.close()
    made = tvq.load(lively)
    source = {item.key: item for item in open_source(recipe.data).items(range(30))}
    seen = 0
    for step, batch in enumerate(found):
        for place, (key, label) in enumerate(zip(batch["keys"], batch["labels"].tolist(), strict=True)):
            item = source[key]
            assert item.label == label
            index = list(data.rows).index(data.shards.keys.index(key))
            position = step * recipe.batch_size + place
            picture = tvq.images.decode(item.image, 3, key)
            view = augment(picture, recipe.data, 16, f"{recipe.seed}/{position // len(data.rows)}/{index}")
            codes = made.encode(tvq.images.from_uint8(view)[None]).flatten()
            seen += int(torch.equal(codes, batch["tokens"][place]))
    assert seen == 64  # of all the rows
    stored = torch.stack([data.shards[[data.shards.keys.index(key)]][0] for key in found[0]["keys"]])
    assert not torch.equal(stored, found[0]["tokens"])
    later = next(views.batches(recipe, data, 5, 0, 1))
    assert torch.equal(later["tokens"], found[5]["tokens"]) and later["keys"] == found[5]["keys"]
    halves = [next(views.batches(recipe, data, 2, rank, 2))["tokens"] for rank in (0, 1)]
    assert torch.equal(torch.cat(halves), found[2]["tokens"])


def test_a_run_goes_on_bitwise(photos: Path, lively: Path, command, tmp_path: Path) -> None:
    def train(out: Path, *more: str, data: Path = photos) -> tuple[int, str]:
        return command("train", "gpt-tiny", data, *FIELDS, *more, "--tokenizer", lively, "--out", out)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(whole)[0] == 0
    assert train(parts, "steps=2")[0] == 0
    status, err = train(parts, "steps=4")
    assert status == 0, err
    moved = photos.rename(tmp_path / "moved")
    assert train(parts, data=moved)[0] == 0
    models = [prior.load(out).state_dict() for out in (whole, parts)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    losses = [[json.loads(line).get("bits_per_token") for line in (out / "log.jsonl").open()] for out in (whole, parts)]
    assert [one for one in losses[0] if one] == [one for one in losses[1] if one]
    assert command("score", whole)[0] == 0
    assert command("sample", whole, "--count", 2, "--class", "dog", "--out", tmp_path / "s.png")[0] == 0
    status, err = train(parts, "steps=8", "data.flip=false", data=moved)
    assert status == 2 and "differs in data.flip" in err and err.count("\n") == 1
    (moved / "dog" / "more.png").write_bytes((moved / "dog" / "01.png").read_bytes())
    status, err = train(parts, "steps=8", data=moved)
    assert status == 2 and "holds codes" in err


def test_grey_is_told_as_images_are_trained_on(photos: Path, lively: Path, command, tmp_path: Path) -> None:
    told = "model.condition={kind: image, change: grey}"
    out = tmp_path / "run"
    assert command("train", "gpt-tiny", photos, *FIELDS, told, "--tokenizer", lively, "--out", out)[0] == 0
    model, made = prior.load(out), tvq.load(lively)
    assert model.config.condition.change == "grey" and model.config.condition.image_size == 16
    picture = tvq.images.read(photos / "dog" / "01.png", size=16)
    row = read_codes(out / "told").keys.index("dog/01.png")
    grey = made.encode(changed(picture, "grey")).flatten(1)
    assert torch.equal(read_codes(out / "told")[[row]], grey)
    assert torch.equal(model.condition.resolve(photos / "dog" / "01.png", 1)[0], grey)
    recipe = recipe_of(photos, lively, tmp_path / "run", told)
    views = Views(recipe, out, "cpu")
    batch = next(views.batches(recipe, Data(recipe), 0, 0, 1))
    assert torch.equal(model.condition.take(batch), batch["image_codes"])
    assert not torch.equal(batch["image_codes"], batch["tokens"])


def test_what_is_refused(photos: Path, lively: Path, codes: Path, command, tmp_path: Path) -> None:
    status, err = command("train", "gpt-tiny", photos, *FIELDS, "--out", tmp_path / "no")
    assert status == 2 and "holds no codes.json" in err and "--tokenizer" in err
    status, err = command("train", "gpt-tiny", tmp_path / "none", "--tokenizer", lively, "--out", tmp_path / "no")
    assert status == 2 and "no data at" in err and err.count("\n") == 1
    recipe = load_recipe("gpt-tiny", codes, SMALL, str(photos))
    with pytest.raises(ValueError, match="give one with --tokenizer"):
        with_folders(recipe, tmp_path)
    with pytest.raises(ConfigError, match=r"data\.streaming: images that a prior is trained on need an index"):
        recipe.replace(data=DataConfig(path=str(photos), streaming=True))
    with pytest.raises(ValueError, match="29 images that can be read, 7 have codes"):
        image_numbers(open_source(DataConfig(path=str(photos))), ["a"] * 7, {"cat/08.png": "broken"})
