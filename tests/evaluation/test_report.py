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
from tokenizers_vq.evaluation import CodeUsage, evaluate, figures, write_report
from tokenizers_vq.evaluation.curves import History, draw_history, panels
from tokenizers_vq.evaluation.exemplars import Exemplars, Sample
from tokenizers_vq.evaluation.spectrum import RadialSpectrum
from tokenizers_vq.evaluation.verdicts import picture_verdict, verdict
from tokenizers_vq.training.advice import Advice
from tokenizers_vq.training.health import Finding


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


@pytest.mark.parametrize(
    ("blurred", "state"), [(0.0, "sharp"), (1.0, "blurred"), (-1.0, "grainy")], ids=["same", "blur", "noise"]
)
def test_pictures_are_judged_by_their_fine_detail(blurred: float, state: str) -> None:
    pictures = torch.rand(8, 3, 32, 32) * 2 - 1
    made = pictures.clone()
    if blurred > 0:
        made = torch.nn.functional.avg_pool2d(pictures, 3, 1, 1)
    elif blurred < 0:
        pictures = torch.nn.functional.avg_pool2d(pictures, 5, 1, 2)
        made = pictures + 0.2 * torch.randn_like(pictures)
    spectra = RadialSpectrum(32, 32), RadialSpectrum(32, 32)
    spectra[0].update(pictures)
    spectra[1].update(made)
    found = picture_verdict((spectra[0].compute(), spectra[1].compute()))
    assert found is not None and found.state == state
    assert picture_verdict(None) is None


def test_a_healthy_codebook_does_not_hide_blurred_pictures(tmp_path: Path) -> None:
    cells = (torch.rand(40, 1, 4, 4) * 5 - 2.5).clamp(-1, 1).repeat_interleave(4, 2).repeat_interleave(4, 3)
    pictures = (cells + 0.6 * torch.randn(40, 3, 16, 16)).clamp(-1, 1)
    page = write_report(ToyTokenizer(), batches(pictures), tmp_path, backbone=None).read_text()
    assert "Healthy codebook</strong>" in page and "Blurred pictures</strong>" in page
    assert json.loads((tmp_path / "report.json").read_text())["pictures"]["state"] == "blurred"


def test_rare_codes_are_drawn_at_the_size_of_the_others(tmp_path: Path) -> None:
    pictures = torch.full((40, 3, 16, 16), -1.0)
    pictures[0, :, :4, :4] = 1.0  # one code occurs once, the other everywhere
    text = write_report(ToyTokenizer(), batches(pictures), tmp_path, backbone=None).read_text()
    widths = [float(width) for width in re.findall(r'style="width: ([0-9.]+)%"', text)]
    assert len(widths) == 2 and max(widths) == 100 and min(widths) == pytest.approx(100 / 9)


def test_the_run_that_trained_it_is_shown(tmp_path: Path) -> None:
    lines = [{"step": step, "reconstruction": 1 / step, "l1": 1 / step, "quantizer/usage": 0.1} for step in (1, 2, 3)]
    finding = Finding("the codebook collapsed", "steps 1 to 3", "10 % in use", (Advice(("a=1",), "for this"),))
    for findings, words in (([finding], "The run: the codebook collapsed"), ([], "The doctor found nothing wrong")):
        history = History("runs/a", lines, findings, ("l1",))
        page = write_report(ToyTokenizer(), batches(images()), tmp_path, backbone=None, history=history).read_text()
        assert words in page and (tmp_path / "training.png").is_file()
        assert ("Try <code>a=1</code> (for this)" in page) == bool(findings)
    assert panels(history) == [
        ("Losses", {"reconstruction": [(1, 1.0), (2, 0.5), (3, 1 / 3)], "l1": [(1, 1.0), (2, 0.5), (3, 1 / 3)]}),
        ("Share of codes in use", {"usage": [(1, 0.1), (2, 0.1), (3, 0.1)]}),
    ]


def test_the_balance_of_the_two_sides_is_drawn() -> None:
    """Each figure of it that the log has, those of an ensemble's members too."""
    sides = {"adversary/accuracy_real": 0.9, "adversary/accuracy_fake": 0.7, "adversary/gap": 0.4}
    limits = {"adversary/clipped": 0.2, "adversary/p_0": 0.3, "adversary/p_1": 0.1, "adversary/multiplier": 0.1}
    shares = {"share/l1": 0.8, "share/generator": 0.2}
    lines = [{"step": step, **shares, **sides, **limits, "adversary/kl": 0.5} for step in (10, 20)]
    history = History("a", lines, [], ("l1",))
    shown = dict(panels(history))
    assert shown["Share of the gradient at the last layer"] == {
        "l1": [(10, 0.8), (20, 0.8)],
        "generator": [(10, 0.2), (20, 0.2)],
    }
    drawn = {title: list(curves) for title, curves in shown.items()}
    assert drawn["Share that the discriminator is right about"] == ["of images", "of reconstructions"]
    assert drawn["ADA's p"] == ["p_0", "p_1"] and drawn["Gap of the logits"] == ["gap"]
    assert drawn["Share of weights clipped"] == ["clipped"] and drawn["Bottleneck's multiplier"] == ["multiplier"]
    assert drawn["Bottleneck's KL, nats a position"] == ["kl"] and len(drawn) == 7
    figure = draw_history(history, figures.LIGHT)
    titled = {axes.get_title(loc="left") or axes.get_title(): axes for axes in figure.axes if axes.get_visible()}
    assert set(titled) == set(drawn)
    assert titled["ADA's p"].get_ylim() == (0, 1.05)
    assert [line.get_label() for line in titled["ADA's p"].get_lines()] == ["p_0", "p_1"]
    only = [{**line, "share/generator": None} for line in lines]
    assert "Share of the gradient at the last layer" not in dict(panels(History("a", only, [])))
