"""A prior that is told a text by a frozen T5 or CLIP: features, their cache, what is refused."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import prior
from prior import encoders
from prior.cli import main
from prior.conditions import TextConfig, TextEncoderCondition, TextEncoderConfig
from prior.encoders import TextEncoder, keep, open_encoder
from prior.model import Prior, PriorConfig
from prior.sequences import LayoutConfig
from tests.prior.conftest import NAMES, SMALL
from tests.prior.test_text import LAYOUT, NETWORKS
from tests.prior.tiny_encoders import save_encoder

TEXTS = ["a cat", "a dog", "two red foxes at night", "one fox"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {kind: save_encoder(root / kind, kind) for kind in ("t5", "clip")} | {
        "other": save_encoder(root / "other", "t5", seed=1)
    }


def build(folder: Path, network: str = "gpt", **fields: object) -> Prior:
    torch.manual_seed(0)
    encoder = open_encoder(str(folder))
    condition = TextEncoderConfig(
        encoder=str(folder), **{"length": 8, "width": 12, "fingerprint": encoder.fingerprint, **fields}
    )
    return Prior(PriorConfig(network=NETWORKS[network], condition=condition, layout=LayoutConfig.of(LAYOUT))).eval()


@pytest.mark.parametrize("kind", ["t5", "clip"])
def test_features_are_the_encoders_own_at_the_right(folders: dict[str, Path], kind: str) -> None:
    import transformers

    encoder = open_encoder(str(folders[kind]))
    found = encoder(["a cat", "two red foxes at night"], 8, "cpu")
    begin = kind == "clip"
    assert found.mask.sum(dim=1).tolist() == [3 + begin, 6 + begin] and bool(found.mask[:, -1].all())
    assert not found.vectors[~found.mask].any()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[kind])
    ids = tokenizer(["a cat"], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        alone = encoder.model(input_ids=ids).last_hidden_state[0]
    torch.testing.assert_close(found.vectors[0, -len(alone) :], alone, atol=2e-3, rtol=2e-3)  # rounded to float16
    assert encoder.lengths(["a cat"]) == [3 + begin]
    assert encoder.longest == (10 if kind == "clip" else None)


def test_nothing_is_the_learnt_null(folders: dict[str, Path]) -> None:
    model = build(folders["t5"], dropout=0.5)
    null = model.context(None, 2)
    assert null.vectors.shape == (2, 8, 32) and null.mask is not None and bool(null.mask.all())
    assert torch.equal(model.context(["", None], 2).vectors, null.vectors)
    told = model.context(["a cat", ""], 2)
    assert told.null is not None and torch.equal(told.null.vectors, null.vectors)
    assert torch.equal(told.vectors[1], null.vectors[1]) and told.mask is not None
    assert told.mask.sum(dim=1).tolist() == [3, 8]
    vectors = model.train().context(["a cat"] * 400, 400).vectors
    dropped = int((vectors == null.vectors[0]).all(dim=2).all(dim=1).sum())
    assert 150 < dropped < 250
    features = torch.randn(2, 8, 12)
    given = model.eval().context(features, 2)
    assert torch.equal(given.vectors, model.condition.project(features)) and bool(given.mask.all())


def test_features_are_kept_and_found_again(folders: dict[str, Path], tmp_path: Path, monkeypatch) -> None:
    encoder = open_encoder(str(folders["t5"]))
    kept = keep(encoder, {*TEXTS}, 8, tmp_path, "cpu")
    fresh = encoder(TEXTS, 8, "cpu")
    again = kept.read(kept.find(TEXTS), 8)
    torch.testing.assert_close(again.vectors, fresh.vectors, atol=1e-3, rtol=1e-3)
    assert torch.equal(again.mask, fresh.mask)
    assert kept.find(["unknown", "a cat"])[0] == -1 and kept.find(["a cat"])[0] >= 0
    assert kept.values.dtype == np.float16

    def never(*_: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(TextEncoder, "__call__", never)
    assert len(keep(encoder, {"a cat"}, 8, tmp_path, "cpu").digests) == 4
    with pytest.raises(AssertionError, match="encoded again"):
        keep(encoder, {"a cat", "one more"}, 8, tmp_path, "cpu")


def test_what_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    model = build(folders["t5"])
    other = open_encoder(str(folders["other"]))
    mine = open_encoder(str(folders["t5"]))
    keep(other, {"a cat"}, 8, tmp_path, "cpu")
    made = next((tmp_path / encoders.FOLDER).iterdir())
    shutil.move(made, made.with_name(f"{mine.fingerprint[:16]}-8"))
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "empty").mkdir()
    for call, says in (
        (lambda: keep(mine, {"a cat"}, 8, tmp_path, "cpu"), "holds text features of another encoder"),
        (lambda: model.sample(1, torch.zeros(1, 8, 13)), r"are (1, 8, 12), got (1, 8, 13): they are of another"),
        (lambda: model.sample(1, 3), "told a text, got int"),
        (lambda: model.sample(1, guidance=2), "guidance 2 needs a prompt"),
        (lambda: build(folders["t5"], dropout=0.0).sample(1), "never learnt to do without a prompt"),
        (lambda: build(folders["t5"], fingerprint=other.fingerprint).sample(1, "a cat"), "is another text encoder"),
        (lambda: build(folders["clip"], length=11).sample(1, "a cat"), "reads at most 10 tokens"),
        (lambda: open_encoder(str(tmp_path / "bert")), "is a bert, where a text encoder is a T5 or a CLIP"),
        (lambda: open_encoder(str(tmp_path / "none")), "no text encoder at"),
        (lambda: open_encoder(str(tmp_path / "empty")), "cannot be loaded"),
        (lambda: TextConfig(template="a photo"), "needs one {} where the class's name goes"),
    ):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            call()
        assert says in str(caught.value) and "\n" not in str(caught.value), caught.value


def test_the_road_from_captions_to_samples(
    folders: dict[str, Path], write_codes, caplog, capfd, tmp_path: Path
) -> None:
    folder = write_codes(tmp_path / "codes", 60)
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path)
        texts = [[f"a {NAMES[label]}", "x " * 20] if label else [] for label in table["label"].to_pylist()]
        pq.write_table(table.append_column("captions", pa.array(texts, pa.list_(pa.string()))), path)
    told = f"model.condition={{kind: text_encoder, encoder: {folders['t5']}, length: 8}}"

    def command(*arguments: object) -> tuple[int, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in (*arguments, "--device", "cpu")])
        return int(stop.value.code or 0), capfd.readouterr().err

    out = tmp_path / "run"
    with caplog.at_level(logging.WARNING):
        assert command("train", "gpt-tiny", folder, *SMALL, told, "--out", out)[0] == 0
    assert "40 of 80 captions are cut to 8 tokens" in caplog.text
    assert "20 of 60 images have no caption, which counts as no condition" in caplog.text
    model = prior.load(out)
    assert isinstance(model.condition, TextEncoderCondition)
    assert model.config.condition.fingerprint == open_encoder(str(folders["t5"])).fingerprint
    assert len(list((folder / encoders.FOLDER).iterdir())) == 1
    asked = ("sample", out, "--out", tmp_path / "s", "--count", 2)
    assert command(*asked, "--text", "a cat", "--guidance", 2)[0] == 0
    assert [one["text"] for one in json.loads((tmp_path / "s" / "samples.json").read_text())["images"]] == ["a cat"] * 2
    assert command("score", out)[0] == 0
    shutil.move(folders["other"], tmp_path / "kept")
    before = tmp_path / "t5"
    shutil.move(folders["t5"], before)
    shutil.copytree(tmp_path / "kept", folders["t5"])
    open_encoder.cache_clear()
    status, err = command(*asked, "--text", "a cat")
    assert status == 2 and "is another text encoder" in err and err.count("\n") == 1


def test_captions_from_names_of_classes(codes: Path, write_codes, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        told = "model.condition={kind: text, length: 24, layers: 1, heads: 2, template: 'a photo of a {}'}"
        main(["train", "gpt-tiny", str(codes), *SMALL, told, "--out", str(tmp_path / "run"), "--device", "cpu"])
    assert not stop.value.code
    condition = prior.load(tmp_path / "run").condition
    batch = {"captions": None, "labels": torch.tensor([2, -1, 0]), "label_names": NAMES}
    assert condition.take(batch) == ["a photo of a fox", "", "a photo of a cat"]
    assert condition.take({**batch, "captions": [("b", "c"), (), ()]}) == ["b", "", ""]
    with pytest.raises(ValueError, match="no captions"):
        condition.take({**batch, "label_names": None})
