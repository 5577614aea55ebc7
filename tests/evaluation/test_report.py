"""The report: one page that needs nothing else, and the files beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.evaluation.toy import SequenceTokenizer, ToyTokenizer, batches
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.evaluation import CodeUsage, evaluate, write_report
from tokenizers_vq.evaluation.exemplars import Exemplars, Sample
from tokenizers_vq.evaluation.report import verdict


def images(count: int = 12) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16) * 2 - 1


def test_the_page_is_self_contained_and_complete(tmp_path: Path) -> None:
    title = "A <b>toy</b> & more"
    page = write_report(
        ToyTokenizer(), iter(batches(images())), tmp_path, title=title, data_description="noise", backbone=None
    )
    assert page == tmp_path / "report.html"
    text = page.read_text()
    assert "A &lt;b&gt;toy&lt;/b&gt; &amp; more" in text and "<b>toy</b>" not in text
    sources = re.findall(r"""(?:src|href|srcset)\s*=\s*["']([^"']*)""", text)
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://|url\(|@import|<script|<link", text)
    for phrase in ("Usage", "Perplexity", "Dead codes", "Rank and frequency", "Entropy by position", "Power spectrum"):
        assert phrase in text
    for phrase in ("vectors", "Most used codes", "Least used codes", "Reconstructions", "PSNR", "codebook</strong>"):
        assert phrase in text
    record = json.loads((tmp_path / "report.json").read_text())
    assert set(record) >= {"title", "verdict", "codebooks", "files", "metrics", "usage", "skipped", "data", "speed"}
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {*record["files"], "report.json", "report.html"}  # and no temporary file is left
    assert {"reconstructions.png", "rank-frequency.png", "entropy-map.png", "codebook.png", "spectrum.png"} <= written
    for name in record["files"]:
        Image.open(tmp_path / name).verify()
    # the codebook of 8 even steps in [-1, 1]
    (book,) = record["codebooks"]
    assert book["nearest_neighbour_distances"]["median"] == pytest.approx(2 / 7) and book["norms"]["max"] == 1


def test_a_given_evaluation_is_shown_and_not_measured_again(tmp_path: Path) -> None:
    tokenizer, parts = ToyTokenizer(), batches(images())
    evaluation = evaluate(tokenizer, parts, backbone=None, data={"name": "toy"})
    write_report(tokenizer, parts, tmp_path, evaluation=evaluation)
    assert json.loads((tmp_path / "report.json").read_text())["metrics"] == evaluation.to_dict()["metrics"]
    with pytest.raises(ValueError, match="no images to draw"):
        write_report(tokenizer, [], tmp_path, evaluation=evaluation)


def test_sequences_and_levels_degrade_gracefully(tmp_path: Path) -> None:
    page = write_report(SequenceTokenizer(), batches(images()), tmp_path, backbone=None)
    assert "whole images" in page.read_text() and "level 2" in page.read_text()
    assert len(json.loads((tmp_path / "report.json").read_text())["codebooks"]) == 1


@pytest.mark.parametrize(
    ("codes", "size", "state"),
    [
        (torch.arange(6400) % 64, 64, "healthy"),
        (torch.arange(6400) % 32, 64, "partly dead"),
        (torch.arange(6400) % 3, 64, "collapsed"),
        (torch.zeros(6400).long(), 64, "collapsed"),
        (torch.arange(64), 1024, "undecided"),
    ],
)
def test_verdicts(codes: torch.Tensor, size: int, state: str) -> None:
    usage = CodeUsage(CodeLayout(((8, 8),), 1, (size,)), 4096)
    usage.update(codes.reshape(-1, 8, 8))
    assert verdict(usage.compute()).state == state


def test_exemplars_are_patches_where_their_code_occurs() -> None:
    tokenizer = ToyTokenizer(image_size=64)
    pictures = torch.rand(6, 3, 64, 64) * 0.2
    pictures[3, :, 20:24, 32:36] = 1.0
    exemplars, usage = (
        Exemplars(tokenizer.code_layout(64, 64), 64, 64, per_code=5),
        CodeUsage(tokenizer.code_layout(64, 64), 4096),
    )
    for part in batches(pictures):
        codes = tokenizer.encode(part["images"])
        exemplars.update(part["images"], codes)
        usage.update(codes)
    most, least = exemplars.extremes(usage.compute(), codes=1)
    assert len(most[0].patches) == 5 and most[0].patches[0].shape == (16, 16, 3)
    assert least[0].code == 7 and least[0].occurrences == 1
    (patch,) = least[0].patches
    assert patch[6:10, 6:10].min() == 255 and patch[:6].max() < 255  # the white cell in the middle
    assert not {found.code for found in most} & {found.code for found in least}


def test_the_sample_is_fair_and_in_order() -> None:
    values = torch.linspace(-1, 1, 200).reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    sample = Sample(50)
    for part in values.split(7):
        sample.update(part, -part)
    kept = [int(original[0, 0, 0]) for original, _ in sample.pairs()]
    assert len(kept) == 50 and kept == sorted(kept) and min(kept) < 40 and max(kept) > 215
    assert all(abs(255 - int(original[0, 0, 0]) - int(made[0, 0, 0])) <= 1 for original, made in sample.pairs())
