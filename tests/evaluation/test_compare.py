"""Tokenizers and codecs side by side: numbers, files, page."""

from __future__ import annotations

import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.evaluation.toy import ToyTokenizer
from tokenizers_vq import images
from tokenizers_vq.evaluation import compare, evaluate, print_comparison, write_comparison
from tokenizers_vq.evaluation import metrics as definitions
from tokenizers_vq.evaluation.codecs import PillowCodec, TokenizerCodec
from tokenizers_vq.evaluation.compare import Comparison
from tokenizers_vq.evaluation.compare_page import markdown, nearest


def pictures(count: int = 10) -> torch.Tensor:
    noise = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return images.from_uint8(images.to_uint8(noise))


def named(source: torch.Tensor, size: int = 4) -> list[dict]:
    keys = [f"{number}.png" for number in range(len(source))]
    return [{"images": part, "keys": keys[at * size : at * size + size]} for at, part in enumerate(source.split(size))]


class Distance(torch.nn.Module):
    key = ("toy", None)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return (first - second).abs().mean((1, 2, 3))


def rows() -> list:
    tokenizers = [TokenizerCodec(ToyTokenizer(size), name) for size, name in ((8, "eight"), (2, "a <b>two</b>"))]
    return [*tokenizers, PillowCodec("jpeg", 10), PillowCodec("jpeg", 90), PillowCodec("webp", 50)]


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compare(
        rows(), named(pictures()), count=10, lpips=Distance(), backbone=None, data={"name": "noise"}, examples=3
    )


def test_numbers_equal_those_of_evaluate(comparison: Comparison) -> None:
    for row, size in zip(comparison.rows, (8, 2), strict=False):
        alone = evaluate(ToyTokenizer(size), named(pictures()), lpips=Distance(), backbone=None)
        for name in ("psnr", "ssim", "mse", "lpips_toy"):
            assert row.metrics[name].value == pytest.approx(alone.metrics[name].value, rel=1e-6)
            assert row.metrics[name].definition == alone.metrics[name].definition
        assert row.bits_per_pixel == alone.usage.bits_per_pixel == 16 * math.log2(size) / 256
        assert row.usage is not None and torch.equal(row.usage.streams[0].counts, alone.usage.streams[0].counts)


def test_entropy_bits_equal_a_direct_count(comparison: Comparison) -> None:
    codes = ToyTokenizer(8).encode(pictures()).flatten().tolist()
    shares = [codes.count(code) / len(codes) for code in set(codes)]
    expected = -sum(share * math.log2(share) for share in shares) * 16 / 256
    assert comparison.rows[0].entropy_bits_per_pixel == pytest.approx(expected)
    assert comparison.rows[2].entropy_bits_per_pixel is None


def test_a_codecs_bits_are_the_mean_of_its_files(comparison: Comparison) -> None:
    made = PillowCodec("jpeg", 10)(pictures())
    assert comparison.rows[2].bits_per_pixel == pytest.approx(made.bits.mean().item() / 256)
    assert comparison.rows[2].metrics["psnr"].value == pytest.approx(
        definitions.psnr(pictures(), made.images).mean().item(), rel=1e-6
    )


def test_the_shared_originals_give_the_same_feature_distance() -> None:
    class Means:
        dim = 3

        def __call__(self, batch: torch.Tensor) -> torch.Tensor:
            return batch.mean((2, 3))

    source, made = pictures(), PillowCodec("jpeg", 5)(pictures()).images
    alone = definitions.FrechetDistance(Means(), 3)
    alone.update(source, made)
    originals = definitions.FeatureStatistics(3)
    originals.update(Means()(source))
    shared = definitions.FrechetDistance(Means(), 3, originals)
    shared.update(source, made)
    assert shared.compute() == alone.compute()
    mean, covariance, _ = alone.reconstructions.compute()
    root = torch.linalg.eigvals(alone.originals.compute()[1] @ covariance).real.clamp_min(0).sqrt().sum()
    expected = (alone.originals.compute()[0] - mean).square().sum() + alone.originals.compute()[1].trace()
    assert alone.compute()[0] == pytest.approx((expected + covariance.trace() - 2 * root).item(), rel=1e-6, abs=1e-9)


def test_examples_are_evenly_spread_and_the_same_under_every_row(comparison: Comparison) -> None:
    assert [example.key for example in comparison.examples] == ["1.png", "5.png", "8.png"]
    first = comparison.examples[0]
    assert len(first.rows) == len(comparison.rows)
    with Image.open(io.BytesIO(first.original.data)) as opened:
        assert torch.equal(images.read(opened)[0], pictures()[1])
    assert first.rows[2].data == PillowCodec("jpeg", 10).encode(pictures()[1:2]).data[0]
    assert first.rows[2].bits_per_pixel == pytest.approx(8 * len(first.rows[2].data) / 256)


def test_what_must_be_known_is_said(comparison: Comparison, tmp_path: Path) -> None:
    assert any("At 16 px a file's header outweighs" in note for note in comparison.notes)
    assert "no backbone" in comparison.skipped["feature_distance"]
    without = compare(rows()[:1], named(pictures()), backbone=None, lpips="squeeze", lpips_trunk=tmp_path / "absent")
    assert set(without.skipped) == {"lpips_squeeze", "feature_distance"} and not without.notes
    with pytest.raises(ValueError, match="timm has no backbone 'resnet5'"):
        compare(rows()[:1], named(pictures()), backbone="resnet5")
    assert all("\n" not in reason for reason in without.skipped.values())


def test_nearest_in_bits_by_ratio(comparison: Comparison) -> None:
    # Bits of 16 px files lie far above the tokenizers': the lowest quality is nearest.
    for example in comparison.examples:
        assert nearest(comparison, example) == {0: [2, 4], 1: [2, 4]}


class _Page(HTMLParser):
    """Tags that are open, sources, alternative texts and the text of cells."""

    void = frozenset(("meta", "img", "source", "input", "br", "link"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict] = []
        self.heads: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in self.void:
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "th" and "tbody" in self.open:
            self.heads.append(data)


def test_files_and_page(comparison: Comparison, tmp_path: Path, capsys) -> None:
    page = write_comparison(comparison, tmp_path, title="Toys & more")
    assert page == tmp_path / "compare.html"
    assert {path.name for path in tmp_path.iterdir()} == {
        "compare.html",
        "compare.json",
        "table.md",
        "rate-distortion.png",
    }
    text = page.read_text()
    assert "Toys &amp; more" in text and "a &lt;b&gt;two&lt;/b&gt;" in text and "<b>two</b>" not in text
    assert not re.search(r"https?://|url\(|@import|<link|<script src|fetch\(", text)
    parsed = _Page(text)
    assert parsed.heads == [row.name for row in comparison.rows]
    assert all(image["src"].startswith("data:image/") and image["alt"] for image in parsed.images)
    shown = [image for image in parsed.images if "through" in image["alt"]]
    assert len(shown) == 3 * len(comparison.rows)
    for phrase in ("left out Feature distance: no backbone", "header outweighs", "libjpeg-turbo", "LPIPS toy"):
        assert phrase in text

    record = json.loads((tmp_path / "compare.json").read_text())
    assert set(record) == {"data", "rows", "skipped", "left_out", "notes", "versions", "definitions", "examples"}
    assert record["rows"][3]["definition"]["quality"] == 90 and record["rows"][3]["usage"] is None
    assert record["rows"][0]["definition"]["fingerprint"] == "toy"
    assert all(row["speed"]["encode_images_per_second"] > 0 for row in record["rows"])
    with Image.open(tmp_path / "rate-distortion.png") as plot:
        assert plot.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)
    table = (tmp_path / "table.md").read_text()
    assert table == markdown(comparison)
    assert all(f"| {row.name} |" in table for row in comparison.rows)
    print_comparison(comparison)
    printed = capsys.readouterr().out
    assert all(row.name in printed for row in comparison.rows) and "left out Feature distance" in printed


def test_no_images_no_examples_and_sizes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no images to compare on"):
        compare(rows(), [])
    with pytest.raises(ValueError, match="two rows are called 'JPEG 10'"):
        compare([PillowCodec("jpeg", 10)] * 2, named(pictures()))
    mixed = [*named(pictures(2)), {"images": pictures(2)[..., :8], "keys": ["a", "b"]}]
    with pytest.raises(ValueError, match="in one comparison"):
        compare(rows(), mixed, backbone=None)
    with pytest.raises(ValueError, match="eight takes images of 3 channels, these have 1"):
        compare(rows(), [{"images": pictures(2)[:, :1]}], backbone=None)
    bare = compare(rows(), named(pictures(2)), backbone=None, examples=0)
    assert "<script" not in write_comparison(bare, tmp_path).read_text()
