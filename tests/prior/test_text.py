"""A prior that is told a text: bytes, padding, the empty text, prompts."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import prior
from prior.cli import main
from prior.conditions import TextCondition, TextConfig
from prior.data import Data, read_rows
from prior.model import Prior, PriorConfig
from prior.networks.gpt import GptConfig
from prior.networks.maskgit import MaskGitConfig
from prior.recipe import load_recipe
from prior.sequences import LayoutConfig
from tests.laws.priors import rows
from tests.prior.conftest import NAMES, SMALL
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.data.shards import read_codes

LAYOUT = CodeLayout(((3, 3),), 1, (9,))
TEXTS = ["a cat", "a dog", "Füchse", "two red foxes at night"]
NETWORKS = {
    "gpt": GptConfig(layers=2, dim=32, heads=2, multiple=16),
    "maskgit": MaskGitConfig(layers=2, dim=32, heads=2, dropout=0.0, label_smoothing=0.0),
}


def build(network: str = "gpt", **fields: float) -> Prior:
    torch.manual_seed(0)
    condition = TextConfig(**{"length": 16, "layers": 1, "heads": 2, **fields})
    return Prior(PriorConfig(network=NETWORKS[network], condition=condition, layout=LayoutConfig.of(LAYOUT))).eval()


def test_texts_become_bytes_that_end_at_the_right() -> None:
    condition = build().condition
    (told,) = condition.resolve(["ü!", None, ""], 3)
    assert told.shape == (3, 16) and told[0, -4:].tolist() == [*"ü!".encode(), 256]
    assert bool((told[0, :-4] == -1).all()) and torch.equal(told[1], told[2])
    assert torch.equal(condition.resolve("ab", 2)[0], condition.resolve(("ab", "ab"), 2)[0])


@pytest.mark.parametrize("network", NETWORKS)
def test_padding_and_other_rows_are_nothing_to_a_text(network: str) -> None:
    model, tokens = build(network), rows(LAYOUT, 4)
    with torch.no_grad():
        together = model.logits(tokens, TEXTS)
        for row, text in enumerate(TEXTS):
            torch.testing.assert_close(
                model.logits(tokens[row : row + 1], text), together[row : row + 1], atol=1e-5, rtol=1e-5
            )
        model.condition.bytes.weight[0] = 50.0  # what padding is looked up as
        torch.testing.assert_close(model.logits(tokens, TEXTS), together, atol=1e-5, rtol=1e-5)
    context = model.context(TEXTS, 4)
    assert context.mask is not None and bool(context.mask[:, -1].all())
    assert context.mask.sum(dim=1).tolist() == [6, 6, 8, 16]
    assert context.null is not None and context.null.mask is not None
    torch.testing.assert_close(context.null.vectors, model.context(None, 4).vectors)
    guided = context.guided()
    assert guided.mask is not None and guided.mask.sum(dim=1).tolist() == [6, 6, 8, 16, 1, 1, 1, 1]


@pytest.mark.parametrize("network", NETWORKS)
def test_rows_are_learnt_by_their_texts_and_drawn_by_prompts(network: str) -> None:
    model, tokens = build(network), rows(LAYOUT, 4)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=5e-3, weight_decay=0)
    for step in range(160):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / 160)
        optimizer.zero_grad()
        model(tokens, TEXTS).backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval()
    with torch.no_grad():
        told, untold = (-model.log_likelihood(tokens, texts) / 9 for texts in (TEXTS, TEXTS[::-1]))
    assert told.max() < 0.1 < 0.5 < untold.min()
    for text, row in zip(TEXTS, tokens, strict=True):
        assert torch.equal(model.sample(1, text, temperature=0)[0], row)
    assert torch.equal(model.sample(2, TEXTS[:2], guidance=2, temperature=0), tokens[:2])


def test_dropped_texts_are_the_empty_one() -> None:
    model = build(dropout=0.5)
    empty = model.context(None, 1).vectors
    vectors = model.train().context(["a cat"] * 200, 200).vectors
    dropped = int(((vectors - empty).abs().amax(dim=(1, 2)) < 1e-4).sum())
    assert 70 < dropped < 130


def test_what_a_text_cannot_be(caplog: pytest.LogCaptureFixture) -> None:
    model = build()
    for call, says in (
        (lambda: model.sample(2, 3), "told a text, got int: give a prompt"),
        (lambda: model.sample(2, [1, 2]), "told a text, got list"),
        (lambda: model.sample(2, ["a"]), "1 prompts are given for 2 rows"),
        (lambda: model.sample(2, guidance=3), "guidance 3 needs a prompt"),
        (lambda: model.sample(2, ["", ""], guidance=3), "guidance 3 needs a prompt"),
        (lambda: build(dropout=0.0).sample(2), "never learnt to do without a prompt"),
        (lambda: build(dropout=0.0).sample(2, ["a", None]), "never learnt to do without a prompt"),
        (lambda: build(dropout=0.0).sample(2, "a", guidance=2), "never learnt"),
        (lambda: build(heads=5), "5 heads do not divide the width 32"),
        (lambda: model.condition.take({"captions": None}), "these codes have no captions"),
    ):
        with pytest.raises(ValueError, match=says) as caught:
            call()
        assert "\n" not in str(caught.value)
    with caplog.at_level(logging.WARNING):
        model.sample(2, ["a", "x" * 16])
        model.sample(3, ["a", "", ""])
    assert "1 of 2 prompts are cut to 15 bytes" in caplog.text
    assert "2 of 3 prompts are empty, which counts as no condition" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):  # captions are counted before training, not at every measurement
        model.log_likelihood(torch.zeros(1, model.layout.length, dtype=torch.int64), ["x" * 16])
    assert not caplog.text
    assert isinstance(model.condition, TextCondition)
    assert model.condition.take({"captions": [("a", "b"), ()]}) == ["a", ""]


def test_captions_of_shards_are_learnt_and_prompted(codes: Path, write_codes, capfd, tmp_path: Path) -> None:
    folder = write_codes(tmp_path / "codes", 240)
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path)
        texts = [[f"a {NAMES[label]}", f"one {NAMES[label]}!"] for label in table["label"].to_pylist()]
        pq.write_table(table.append_column("captions", pa.array(texts, pa.list_(pa.string()))), path)
    told = ["model.condition={kind: text, length: 16, layers: 1, heads: 2}", "image_every=200"]
    out = tmp_path / "run"

    def command(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in (*arguments, "--device", "cpu")])
        return int(stop.value.code or 0), capfd.readouterr().err

    longer = ["steps=200", "log_every=100", "checkpoint_every=200", "evaluate_every=200"]
    assert command("train", "gpt-tiny", folder, *SMALL, *told, *longer, "--out", out)[0] == 0
    model = prior.load(out)
    shards = read_codes(folder)
    right = Data(load_recipe("gpt-tiny", folder, [*SMALL, *told])).held_rows
    batch = read_rows(shards, right)
    with torch.no_grad():
        texts = model.condition.take(batch)
        own = -model.log_likelihood(batch["tokens"], texts).mean()
        shuffled = -model.log_likelihood(batch["tokens"], [*texts[1:], texts[0]]).mean()
    assert own + 1 < shuffled  # nats an image: the captions are used
    assert model.config.label_names is None
    asked = ("sample", out, "--out", tmp_path / "s", "--count", 4)
    assert command(*asked, "--text", "a cat", "--text", "a fox", "--guidance", 2)[0] == 0
    images = json.loads((tmp_path / "s" / "samples.json").read_text())["images"]
    assert [one["text"] for one in images] == ["a cat", "a cat", "a fox", "a fox"]
    assert "class" not in images[0]
    for arguments, says in (
        ((*asked, "--classes", "cat"), "--class: this prior is told no class; it is told --text"),
        ((*asked, "--guidance", "2"), "guidance 2 needs a prompt"),
        (("train", "gpt-tiny", codes, *SMALL, "model.condition=text", "--out", tmp_path / "no"), "holds no captions"),
    ):
        status, err = command(*arguments)
        assert status == 2 and says in err
