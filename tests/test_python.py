"""Python for what the commands do: the same results, typed; progress by callback, messages by `logging`, no print."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tokenizers_vq as tvq
from tests.cli.conftest import photos
from tokenizers_vq.data import DataConfig
from tokenizers_vq.data.shards import read_codes
from tokenizers_vq.training.recipe import load_recipe, make_recipe

__all__ = ["photos"]  # a fixture

NETWORK = {"kind": "vqgan", "width": 8, "multipliers": [1, 2], "blocks": 1, "attention": [], "groups": 4}
SMALL = [
    *(f"model.{part}={json.dumps({**NETWORK, 'latent_width': 8})}" for part in ("encoder", "decoder")),
    *("model.image_size=32", "steps=3", "batch_size=2", "log_every=1", "image_every=0", "adversary=null"),
    *("data.workers=0", "losses=[l1]"),
]
QUICK = {"lpips": None, "backbone": None, "device": "cpu", "precision": "fp32", "workers": 0}


@pytest.fixture(autouse=True)
def _silent(capfd: pytest.CaptureFixture[str]):
    """Whatever a function of the library does, it prints nothing on stdout."""
    capfd.readouterr()
    yield
    assert capfd.readouterr().out == ""


@pytest.fixture
def tok() -> tvq.Tokenizer:
    torch.manual_seed(1)
    return tvq.create("vqvae-tiny-64", ["encoder.width=16", "decoder.width=16", "image_size=32"]).eval()


def test_a_run_is_trained_resumed_examined_and_measured(photos: Path, tmp_path: Path, notes: Callable[[], str]) -> None:
    seen: list[tuple[int, int | None]] = []
    watch = lambda done, total: seen.append((done, total))  # noqa: E731
    out = tvq.train("vqgan-tiny-64", tmp_path / "run", f"data={photos}", *SMALL, device="cpu", progress=watch)
    assert (out, seen) == (tmp_path / "run", [(1, 3), (2, 3), (3, 3)])
    said = notes()
    assert "training on cpu" in said and "step 3/3  reconstruction" in said
    recipe = load_recipe("vqgan-tiny-64", [f"data={photos}", *SMALL])
    tvq.train(recipe, out, "steps=4", device="cpu", progress=watch)
    assert seen[3:] == [(4, 4)]

    found = tvq.doctor(out)
    assert (found.run, found.step, found.steps) == (out, 4, 4)
    assert found.healthy == (not found.findings) and found.figures["loss"] > 0
    assert found.to_dict()["findings"] == [
        {**one._asdict(), "advice": [advice._asdict() for advice in one.advice]} for one in found.findings
    ]

    notes()
    counts: list[tuple[int, int | None]] = []
    result = tvq.evaluate(out, progress=lambda *given: counts.append(given), batch_size=2, **QUICK)
    assert result.data["split"] == "test" and result.data["images"] == 2
    assert counts[-1] == (2, 3)  # one of the three cannot be read
    assert "skipped test/4.png: not a picture" in notes()
    page = tvq.report(out, tmp_path / "report", photos, **QUICK)
    assert page == tmp_path / "report" / "report.html" and "Tokenizer run" in page.read_text(encoding="utf-8")
    assert json.loads((page.parent / "report.json").read_text())["metrics"]["psnr"]["value"] == pytest.approx(
        result.metrics["psnr"].value
    )


def test_a_tokenizer_itself_is_measured_compared_and_encodes(photos: Path, tmp_path: Path, tok: tvq.Tokenizer) -> None:
    result = tvq.evaluate(tok, DataConfig(path=str(photos), split="train"), **QUICK)
    images = torch.cat([tvq.images.read(photos / "train" / f"{i}.png", size=32) for i in range(3)])
    error = (tok.decode(tok.encode(images)).clamp(-1, 1) - images).square().mean(dim=(1, 2, 3)) / 4
    assert result.metrics["psnr"].value == pytest.approx((-10 * error.log10()).mean().item(), abs=1e-3)
    with pytest.raises(ValueError, match="does not know its data: give data=PATH"):
        tvq.evaluate(tok, **QUICK)
    with pytest.raises(TypeError, match="no option 'splitt'; did you mean 'split'"):
        tvq.evaluate(tok, photos, splitt="train", **QUICK)

    given = {"split": "train", "size": 32, "examples": 1}
    both = tvq.compare({"mine": tok, "again": tok}, photos, tmp_path / "c", codecs={"jpeg": [50]}, **given, **QUICK)
    assert [row.name for row in both.rows][:2] == ["mine", "again"] and len(both.rows) == 3
    assert both.rows[0].metrics["psnr"].value == pytest.approx(result.metrics["psnr"].value, abs=1e-3)
    assert (tmp_path / "c" / "compare.html").is_file()
    assert len(tvq.compare([tok, tok], photos, codecs=(), **given, **QUICK).rows) == 2
    with pytest.raises(ValueError, match="codecs: no codec 'jpg'; did you mean 'jpeg'"):
        tvq.compare([tok], photos, codecs=["jpg"], **QUICK)
    with pytest.raises(ValueError, match="jpeg takes qualities from 0 to 100"):
        tvq.compare([tok], photos, codecs={"jpeg": [101]}, **QUICK)

    counts: list[tuple[int, int | None]] = []
    done = tvq.encode_folder(
        tok, photos, tmp_path / "codes", split="test", precision="fp32", progress=lambda *one: counts.append(one)
    )
    assert (done.images, done.shards, list(done.broken), done.fingerprint) == (2, 1, ["test/4.png"], tok.fingerprint)
    assert counts == [(2, None)]
    shards = read_codes(done.out)
    assert shards.keys == ["test/3.png", "test/5.png"]
    wanted = tok.code_layout().flatten(tok.encode(tvq.images.read(photos / "test" / "5.png", size=32)))
    assert torch.equal(torch.as_tensor(shards[[1]]).long(), wanted)


def test_a_table_is_run_and_goes_on(photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.yaml"
    rows = {"small": [], "few": ["model.quantizer.num_codes=64"]}
    kept = {"title": "t", "recipe": "vqgan-tiny-64", "rows": rows, "seeds": [0], "overrides": SMALL}
    data = {name: {"path": str(photos), "split": split} for name, split in (("data", "train"), ("test", "test"))}
    table.write_text(json.dumps({**kept, **data}))
    seen: list[tuple[int, int | None]] = []
    outcome = tvq.ablate(table, tmp_path / "out", only=["few"], device="cpu", progress=lambda *one: seen.append(one))
    assert (outcome.failed, outcome.missing, seen) == ((), (), [(1, 1)])
    assert "few" in (tmp_path / "out" / "table.md").read_text()
    assert tvq.ablate(table, tmp_path / "out", only=["few"], device="cpu", progress=lambda *one: seen.append(one))
    assert seen == [(1, 1)]  # nothing is due


def test_a_recipe_is_a_name_fields_or_itself() -> None:
    given = ["data=photos", "steps=7"]
    wanted = load_recipe("vqgan-tiny-64", given)
    assert make_recipe(wanted) is wanted and make_recipe(wanted, ["steps=8"]).steps == 8
    assert make_recipe({"base": "vqgan-tiny-64", "data": "photos", "steps": 7}) == wanted
    assert make_recipe(wanted.to_dict()) == wanted
    assert make_recipe(wanted.to_dict(), ["data.path=2012"]).data.path == "2012"
    with pytest.raises(ValueError, match="no recipe 'vqgan-tiny-6'; did you mean"):
        make_recipe({"base": "vqgan-tiny-6"})
    with pytest.raises(ValueError, match="a recipe is a name, a path, a dict or a Recipe, got int"):
        make_recipe(3)  # type: ignore[arg-type]


def test_notebooks_show_what_plain_text_says(tok: tvq.Tokenizer, photos: Path) -> None:
    from html.parser import HTMLParser

    class Tags(HTMLParser):
        text, open = "", 0

        def handle_starttag(self, tag, attrs):
            self.open += tag not in ("rect", "path")

        def handle_endtag(self, tag):
            self.open -= tag not in ("rect", "path")

        def handle_data(self, data):
            self.text += data + "\n"

    def shown(item) -> str:
        parser = Tags()
        parser.feed(item._repr_html_())
        assert parser.open == 0
        return parser.text

    layout = tvq.CodeLayout(((2, 3), (4,)), 2, (8, 8, 16, 16))
    text = shown(layout)
    assert "2x3 + 4" in text and "8 / 16 codes" in text and f"\n{layout.length}\n" in text
    assert layout._repr_html_().count("<svg") == 2
    assert "M0 " not in tvq.CodeLayout(((64, 64),), 1, (8,))._repr_html_()  # too fine to draw
    assert repr(layout).startswith("CodeLayout(grids=((2, 3), (4,))")
    text = shown(tok)
    assert tok.fingerprint[:12] in text and "32x32, 3 channels" in text and "CodeLayout" in text
    parts = tvq.Tokenizer.from_parts(tok.encoder, tok.quantizer, tok.decoder, image_size=32)
    assert "fingerprint" not in shown(parts)
    result = tvq.evaluate(tok, photos, split="train", **QUICK)
    text = shown(result._replace(data={**result.data, "name": "<b>&"}))
    assert "PSNR" in text and "3 images of <b>&" in text and "dB" in text
    assert repr(result).startswith("Evaluation(metrics=")


def test_what_is_said_goes_to_logging_alone(photos: Path, tok: tvq.Tokenizer, notes: Callable[[], str]) -> None:
    tvq.evaluate(tok, photos, split="train", **QUICK)
    assert notes().splitlines()[0] == "tokenizer on cpu, fp32"


def test_classes_are_probed(tok: tvq.Tokenizer, tmp_path: Path, notes: Callable[[], str]) -> None:
    for number in range(16):
        path = tmp_path / "kinds" / ("dark", "light")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = torch.rand(3, 32, 32) * 0.5 - (1.0 if number % 2 == 0 else 0.0)
        tvq.images.to_pil(image).save(path)
    found = tvq.probe(tok, tmp_path / "kinds", device="cpu", precision="fp32", workers=0)
    assert found.rows["pixels"].trained.value == 1.0 and found.classes == {"dark": 8, "light": 8}
    assert found.left_out["discriminator"] == "a tokenizer itself has none beside it"
    with pytest.raises(ValueError, match="held-out is a share"):
        tvq.probe(tok, tmp_path / "kinds", held_out=1.0)
