"""`examples/ablations/text_to_picture.py`, with a pair that learnt nothing and a dozen pictures."""

from __future__ import annotations

import io
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

from prior.conditions import ClassConfig, SeveralConfig, TextConfig
from prior.model import Prior, PriorConfig
from prior.networks.gpt import GptConfig
from prior.sequences import LayoutConfig
from tests.conftest import ROOT
from tests.stand_ins import make_tokenizer
from tokenizers_vq import BatchEncoder
from tokenizers_vq.data import DataConfig
from tokenizers_vq.data.shards import write_codes

STYLES = ("flat", "round")


def write(file: Path, first: int, count: int) -> None:
    random, rows = np.random.default_rng(first), []
    for i in range(first, first + count):
        buffer = io.BytesIO()
        coarse = Image.fromarray(random.integers(0, 256, (2, 2, 3), dtype=np.uint8))
        coarse.resize((16, 16)).save(buffer, "PNG")
        picture = {"bytes": buffer.getvalue(), "path": f"{i}.png"}
        rows.append({"image": picture, "caption": f"picture {i}", "style": STYLES[i % 2]})
    parquet.write_table(pa.Table.from_pylist(rows), file)


@pytest.mark.filterwarnings("ignore:all values of these images")
def test_figures_and_pictures_of_a_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    for name, first, count in (("train", 0, 8), ("test_new", 8, 4)):
        write(tmp_path / "data" / f"{name}.parquet", first, count)
        data = DataConfig(path=str(tmp_path / "data" / f"{name}.parquet"), label_column="style")
        write_codes(BatchEncoder(tmp_path / "tokenizer", device="cpu"), data, tmp_path / name)
    torch.manual_seed(0)
    told = SeveralConfig(
        conditions=(
            TextConfig(length=16, layers=1, heads=2, dropout=0.1),
            ClassConfig(name="style", num_classes=2, label_names=STYLES, dropout=0.1),
        )
    )
    config = PriorConfig(
        network=GptConfig(layers=1, dim=32, heads=2, multiple=16),
        condition=told,
        layout=LayoutConfig.of(tokenizer.code_layout()),
        tokenizer=str(tmp_path / "tokenizer"),
        fingerprint=tokenizer.fingerprint,
    )
    untrained = Prior(config)
    for parameter in untrained.parameters():  # some begin at zero: places say nothing of others
        torch.nn.init.normal_(parameter, std=0.1)
    untrained.save_pretrained(tmp_path / "prior")
    sizes = ["--count", "3", "--judge-size", "32", "--guidance", "2"]
    arguments = [tmp_path / "prior", tmp_path / "train", tmp_path / "test_new", "--data", tmp_path / "data"]
    monkeypatch.setattr(sys, "argv", ["", *map(str, arguments), "--out", str(tmp_path / "out"), *sizes])
    script = runpy.run_path(str(ROOT / "examples" / "ablations" / "text_to_picture.py"), run_name="__main__")
    capsys.readouterr()
    found = json.loads((tmp_path / "out" / "figures.json").read_text())
    asked = script["read"](script["read_codes"](tmp_path / "test_new"))
    assert asked.captions == [f"picture {i}" for i in range(8, 12)] and asked.styles == ["flat", "round"] * 2
    pair = script["prior"].load(tmp_path / "prior")
    assert found["bits"] == {"test_new": script["bits"](pair, asked, None)}
    # The untrained tokenizer gives all pictures the same codes.
    asked = asked._replace(tokens=torch.randint(0, 16, (4, 16)))
    bits = script["bits"](pair, asked, None)
    assert list(bits) == ["nothing", "style", "text", "text and style", "text of another picture, style"]
    assert all(3.5 < value < 6 for value in bits.values()) and len(set(bits.values())) == 5
    nats = -pair.log_likelihood(asked.tokens, script["told"](pair, asked.captions, asked.styles)).detach().sum() / 64
    assert bits["text and style"] == pytest.approx(float(nats) / np.log(2), rel=1e-5)
    assert found["retrieval"]["real pictures"] == 12
    row = found["retrieval"]["test_new"]
    assert row["asked"] == 3 and 0 <= row["samples"] <= 3 and 0 <= row["reconstructions"] <= 3
    for name, size in (("captions", (10 * 96, 130)), ("nearest", (8 * 96, 130))):
        with Image.open(tmp_path / "out" / f"{name}-test_new.png") as picture:
            assert picture.size == size
