"""Priors that are told several things at once, by name."""

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
from prior.conditions import ClassConfig, NoneConfig, SeveralConfig, TextConfig
from prior.model import Prior, PriorConfig
from prior.recipe import load_recipe
from prior.sequences import LayoutConfig
from tests.prior.conftest import NAMES, SMALL
from tests.prior.test_text import LAYOUT, NETWORKS

TEXT = TextConfig(length=16, layers=1, heads=2)
STYLE = ClassConfig(name="style", num_classes=3, label_names=("flat", "round", "old"))


def build(network: str = "gpt", text: TextConfig = TEXT, style: ClassConfig = STYLE, dropout: float = 0.1) -> Prior:
    torch.manual_seed(0)
    told = SeveralConfig(conditions=(text, style), dropout=dropout)
    return Prior(PriorConfig(network=NETWORKS[network], condition=told, layout=LayoutConfig.of(LAYOUT))).eval()


@pytest.mark.parametrize("network", NETWORKS)
def test_vectors_and_masks_stand_side_by_side(network: str) -> None:
    model = build(network)
    text, style = model.condition.parts["text"], model.condition.parts["style"]
    context = model.context({"text": ["a", "abc"], "style": "old"}, 2)
    assert context.vectors.shape == (2, 17, 32) and context.mask is not None and context.null is not None
    words, number = text.encode(*text.resolve(["a", "abc"], 2)), style.encode(*style.resolve(2, 2))
    assert torch.equal(context.vectors, torch.cat((words.vectors, number.vectors), dim=1))
    assert context.mask.sum(dim=1).tolist() == [3, 5] and bool(context.mask[:, -1].all())
    assert torch.equal(context.null.vectors, model.context(None, 2).vectors)
    assert torch.equal(model.context({"text": None, "style": None}, 2).vectors, context.null.vectors)
    rowwise = model.context([{"text": "a", "style": 2}, {"style": "OLD", "text": "abc"}], 2)
    assert torch.equal(rowwise.vectors, context.vectors)
    one = model.context({"text": "a"}, 2)  # what is not named is left out
    torch.testing.assert_close(one.vectors[:, -1], context.null.vectors[:, -1])


def test_each_is_left_out_at_its_rate_and_all_together() -> None:
    model = build(text=TEXT.replace(dropout=0.2), style=STYLE.replace(dropout=0.5), dropout=0.25).train()
    told = model.condition.resolve({"text": "cat", "style": 1}, 4000)
    texts, styles = model.condition.drop(*told)
    no_text, no_style = (texts[:, -2] < 0).float(), (styles == 3).float()
    for gone, rate in ((no_text, 1 - 0.8 * 0.75), (no_style, 1 - 0.5 * 0.75), (no_text * no_style, 0.25 + 0.75 * 0.1)):
        assert abs(gone.mean() - rate) < 4.5 * (rate * (1 - rate) / 4000) ** 0.5
    assert torch.equal(model.eval().condition.drop(*told)[0], told[0])


def test_what_cannot_be_told() -> None:
    model, never = build(), SeveralConfig(conditions=(TEXT, STYLE.replace(dropout=0.0)), dropout=0.0)
    fixed = build(style=STYLE.replace(dropout=0.0))
    plain = Prior(PriorConfig(network=NETWORKS["gpt"], condition=NoneConfig(), layout=LayoutConfig.of(LAYOUT)))
    text = Prior(PriorConfig(network=NETWORKS["gpt"], condition=TEXT, layout=LayoutConfig.of(LAYOUT)))
    untaught = Prior(PriorConfig(network=NETWORKS["gpt"], condition=never, layout=LayoutConfig.of(LAYOUT)))
    for call, says in (
        (lambda: model.sample(1, "a cat"), 'told text and style, got str: give {"text": ..., "style": ...}'),
        (lambda: model.sample(1, {"txt": "a cat"}), "told no txt; did you mean 'text'?"),
        (lambda: model.sample(1, {"class": 1}), "told no class; it is told text and style"),
        (lambda: model.sample(1, {"text": "a", "style": "rond"}), "no style called 'rond'; did you mean 'round'?"),
        (lambda: model.sample(1, {"text": 3}), "told a text, got int"),
        (lambda: model.sample(2, [{"text": "a"}]), "1 prompts are given for 2 rows"),
        (lambda: model.sample(1, guidance=2), "guidance 2 needs a prompt and a style"),
        (lambda: model.sample(1, {"text": None}, guidance=2), "guidance 2 needs a prompt and a style"),
        (lambda: fixed.sample(1, {"text": "a"}), "never learnt to do without a style"),
        (lambda: untaught.sample(1, {"text": "a", "style": 1}, guidance=2), "never learnt"),
        (lambda: untaught.sample(1), "never learnt to do without a prompt and a style"),
        (lambda: plain.sample(1, {"text": "a"}), "told no text; it is told nothing"),
        (lambda: text.sample(1, {"style": 1}), "told no style; it is told text"),
        (lambda: SeveralConfig(conditions=(TEXT, TEXT)), "two of them are called text"),
        (lambda: SeveralConfig(conditions=(TEXT,)), "conditions"),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert says in str(caught.value) and "\n" not in str(caught.value)
    assert fixed.sample(1, guidance=1).shape == (1, 9)  # both were left out together
    assert text.sample(1, {"text": "a"}).shape == (1, 9)


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = build()
    model.save_pretrained(tmp_path / "p")
    again = prior.load(tmp_path / "p")
    assert again.config == model.config
    told = {"text": "a cat", "style": "old"}
    assert torch.equal(model.sample(2, told), again.sample(2, told))
    card = (tmp_path / "p" / "README.md").read_text()
    assert "It is told the style, one of 3: 0 flat, 1 round, 2 old." in card
    assert '{"text": "a prompt", "style": "flat"}' in card


def with_captions_and_style(folder: Path) -> Path:
    """Codes whose classes are called style, and whose captions are their classes' names."""
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path)
        texts = [[f"a {NAMES[label]}"] for label in table["label"].to_pylist()]
        pq.write_table(table.append_column("captions", pa.array(texts, pa.list_(pa.string()))), path)
    return folder


def test_the_road_from_codes_to_samples(write_codes, capfd, caplog, tmp_path: Path) -> None:
    folder = with_captions_and_style(write_codes(tmp_path / "codes", 60, data={"label_column": "style"}))
    parts = "model.condition=[{kind: text, length: 16, layers: 1, heads: 2}, {kind: class, name: style}]"
    out = tmp_path / "run"

    def command(*arguments: object) -> tuple[int, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in (*arguments, "--device", "cpu")])
        return int(stop.value.code or 0), capfd.readouterr().err

    assert command("train", "gpt-tiny", folder, *SMALL, parts, "image_every=6", "--out", out)[0] == 0
    model = prior.load(out)
    assert list(model.condition.parts) == ["text", "style"]
    told = model.config.condition
    assert isinstance(told, SeveralConfig) and told.conditions[1] == ClassConfig(
        name="style", num_classes=3, label_names=NAMES
    )
    asked = ("sample", out, "--out", tmp_path / "s")

    def entries() -> list[dict]:
        found = json.loads((tmp_path / "s" / "samples.json").read_text())["images"]
        return [{name: value for name, value in one.items() if name != "file"} for one in found]

    def entry(text: str, number: int) -> dict:
        return {"text": text, "style": number, "style name": NAMES[number]}

    assert command(*asked, "--count", 2, "--text", "a cat", "--style", "fox", "--guidance", 2)[0] == 0
    assert entries() == [entry("a cat", 2)] * 2
    assert command("sample", "--style", "dog", *asked[1:], "--count", 1, "--text", "a dog")[0] == 0  # before the model
    assert entries() == [entry("a dog", 1)]
    status, err = command(*asked, "--count", 3, "--text", "", "--style", "fox")
    assert status == 0 and "3 of 3 prompts are empty, which counts as no condition" in err
    assert command(*asked, "--count", 4, "--text", "a cat", "--style=fox,cat", "--text", "a dog")[0] == 0
    assert entries() == [entry("a cat", 2), entry("a cat", 0), entry("a dog", 2), entry("a dog", 0)]
    assert command(*asked, "--count", 3, "--text", "a cat", "top_k=3")[0] == 0  # unset: all, in turn
    assert entries() == [entry("a cat", 0), entry("a cat", 1), entry("a cat", 2)]
    for arguments, says in (
        (("--style", "fxo"), "--style: no style called 'fxo'; did you mean 'fox'?"),
        (("--stile", "fox"), "--stile: no such option; did you mean '--style'?"),
        (("--temperatur", "1"), "--temperatur: no such option; did you mean '--temperature'?"),
        (("--hue", "red"), "--hue: no such option, and this prior is told no hue; it is told --text and --style"),
        (("--hue",), "--hue: no such option, and this prior is told no hue"),
        (("--codez",), "--codez: no such option; did you mean '--codes'?"),
        (("--grid", "1x2", "--count", 2), "--count 2 and --grid 1x2 both say how many images: give one of them"),
        (("--class", "fox"), "--class: this prior is told no class; it is told --text and --style"),
        (("--style",), "--style: give a value behind it"),
        (("--count", 2, "--style", "fox,cat,dog"), "3 kinds of images are asked for, but 2 images: leave some out"),
    ):
        status, err = command(*asked, *arguments)
        assert status == 2 and says in err and err.count("\n") == 1, err
    status, err = command("score", out, folder)
    assert status == 0
    bare = write_codes(tmp_path / "bare", 20)
    for codes, overrides, says in (
        (bare, parts, "holds no captions (its columns: key, label): encode data that have some"),
        (folder, parts.replace("style", "stile"), "holds no classes 'stile'; did you mean 'style'?"),
    ):
        status, err = command("train", "gpt-tiny", codes, *SMALL, overrides, "--out", tmp_path / "no")
        assert status == 2 and says in err and err.count("\n") == 1, err
    with caplog.at_level(logging.WARNING):
        assert load_recipe("gpt-tiny", folder, ["model.condition=[text, class]"]).model.condition == SeveralConfig(
            conditions=(TextConfig(), ClassConfig())
        )


def test_several_columns_of_classes(tokenizer: Path, tmp_path: Path, capfd) -> None:
    import io

    import datasets
    from PIL import Image

    from tokenizers_vq.cli import main as tvq_main
    from tokenizers_vq.data.shards import read_codes

    def picture(number: int) -> dict:
        file = io.BytesIO()
        Image.new("RGB", (16, 16), (number * 20, 0, 0)).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}

    def table(path: Path, tags: list[str], count: int = 12) -> Path:
        features = datasets.Features(
            image=datasets.Image(),
            style=datasets.ClassLabel(names=["flat", "round"]),
            tag=datasets.Value("string"),
            number=datasets.Value("int64"),
            caption=datasets.Value("string"),
        )
        rows_ = [
            {
                "image": picture(row),
                "style": row % 2,
                "tag": tags[row % 3],
                "number": row % 4,
                "caption": f"picture {row}",
            }
            for row in range(count)
        ]
        datasets.Dataset.from_list(rows_, features=features).to_parquet(path)
        return path

    def tvq(*arguments: object) -> tuple[int, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            tvq_main([str(argument) for argument in arguments])
        return int(stop.value.code or 0), capfd.readouterr().err

    columns = ("--class-column", "style", "--class-column", "tag", "--class-column", "number", "--device", "cpu")
    data = table(tmp_path / "data.parquet", ["sky", "art", "sea"])
    assert tvq("encode", tokenizer, data, "--out", tmp_path / "codes", "--views", "flip", *columns)[0] == 0
    codes = read_codes(tmp_path / "codes")
    assert codes.label_columns[1:] == ("style", "tag", "number") and codes.captions is not None
    assert codes.classes("style").labels.tolist() == [row % 2 for row in range(12) for _ in range(2)]
    assert codes.classes("tag").names == ("art", "sea", "sky")
    assert codes.classes("tag").labels.tolist() == [(2, 0, 1)[row % 3] for row in range(12) for _ in range(2)]
    assert codes.classes("number").names is None and int(codes.classes("number").labels.max()) == 3
    assert tvq("encode", tokenizer, data, "--out", tmp_path / "codes", "--views", "flip", *columns)[0] == 0  # goes on
    status, err = tvq("encode", tokenizer, data, "--out", tmp_path / "codes", "--views", "flip", "--device", "cpu")
    assert status == 2 and "class_names = {'style'" in err
    status, err = tvq("encode", tokenizer, data, "--out", tmp_path / "x", "--class-column", "stile")
    assert status == 2 and "no column 'stile'; did you mean 'style'?" in err
    other = table(tmp_path / "other.parquet", ["sea", "sky", "sea"])
    assert tvq("encode", tokenizer, other, "--out", tmp_path / "held", "--views", "flip", *columns)[0] == 0
    told = "[{kind: class, name: style}, {kind: class, name: tag}, {kind: text, length: 16, layers: 1, heads: 2}]"
    more = [f"model.condition={told}", f"held_out_codes={tmp_path / 'held'}", "steps=4"]
    with pytest.raises(SystemExit) as stop:
        main(["train", "gpt-tiny", str(tmp_path / "codes"), *SMALL, *more, "--out", str(tmp_path / "run")])
    assert not stop.value.code
    model = prior.load(tmp_path / "run")
    assert {name: getattr(part, "label_names", None) for name, part in model.condition.parts.items()} == {
        "style": ("flat", "round"),
        "tag": ("art", "sea", "sky"),
        "text": None,
    }
    held = read_codes(tmp_path / "held").renumbered(("art", "sea", "sky"), "run", "tag")
    assert held.classes("tag").labels[:6].tolist() == [1, 1, 2, 2, 1, 1] and held.label_columns == codes.label_columns
    assert model.sample(1, {"style": "round", "tag": "sky", "text": "picture"}).shape == (1, 16)
