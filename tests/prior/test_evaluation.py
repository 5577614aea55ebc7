"""Samples judged: equal numbers, the floor, copies of training images known as such, the page, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

import tokenizers_vq as tvq
from prior.cli import main
from prior.data import Data
from prior.evaluation import _copies, evaluate
from prior.measures import Judge
from prior.scoring import own_recipe
from tests.prior.conftest import NAMES, SMALL
from tokenizers_vq.data import DataConfig


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return (int(stop.value.code or 0), *capfd.readouterr())


@pytest.fixture(autouse=True)
def _small_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of 16 px need not be judged at 224."""
    monkeypatch.setattr("prior.evaluation.Judge", partial(Judge, size=64))


@pytest.fixture(scope="module")
def trained(write_codes: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    out, codes = folder / "p", write_codes(folder / "codes", 15)
    with pytest.raises(SystemExit) as stop:
        main(["train", "gpt-tiny", str(codes), *SMALL, "steps=4", "--out", str(out), "--device", "cpu"])
    assert not stop.value.code
    return out


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of each of three classes, whose colour is that of the class."""
    folder, generator = tmp_path_factory.mktemp("pictures"), torch.Generator().manual_seed(0)
    for number, name in enumerate(NAMES):
        (folder / name).mkdir()
        for index in range(6):
            picture = 0.6 * torch.rand(3, 16, 16, generator=generator) - 1
            picture[number] += 1.2
            tvq.images.to_pil(picture).save(folder / name / f"{index}.png")
    return folder


def test_samples_are_judged_beside_real_images(
    trained: Path, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "e"
    options = ("--data", pictures, "--layer", "blocks.1", "--count", "9", "--out", out, "--device", "cpu")
    status, printed, err = run(capfd, "evaluate", trained, "top_p=0.9", *options)
    assert status == 0, err
    found = json.loads((out / "evaluation.json").read_text())
    assert found["samples"] == found["real_images"] == 9 and found["sampler"]["top_p"] == 0.9
    measures = found["measures"]
    always = {"feature_distance", "precision", "recall", "density", "coverage", "class_score", "asked_class"}
    assert always | {"copies", "nearest_training"} <= set(measures) and "inception_score" not in measures
    # Pictures of a class are alike in colour: real ones are told apart, samples of a prior of four steps are not.
    assert measures["asked_class"]["real"] == 1 and measures["asked_class"]["value"] < 1
    distance = measures["feature_distance"]
    assert distance["value"] > distance["real"] > 0 and "no FID" in distance["how"]
    assert ("spread_within_class" in measures) != ("spread_within_class" in found["skipped"])
    assert "9 images for 24 features" in found["notes"][0]
    page = (out / "evaluation.html").read_text()
    assert "Nearest training images" in page and "http" not in page.replace("http-equiv", "")
    assert "Feature distance" in printed


def test_real_images_as_samples_are_at_the_floor(
    trained: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.cat([tvq.images.read(path) for path in sorted(pictures.glob("*/*.png"))])
    codes = torch.zeros(9, 16, dtype=torch.int64)
    monkeypatch.setattr("prior.evaluation._draw", lambda *given: (codes, real[1::2]))
    found = evaluate(str(trained), DataConfig(path=str(pictures)), count=9, layer="blocks.1", device="cpu")
    for name in ("feature_distance", "precision", "recall", "density", "coverage", "class_score", "asked_class"):
        assert found.measures[name].value == pytest.approx(found.measures[name].real, rel=1e-4), name


def test_copies_of_training_rows_are_counted(trained: Path) -> None:
    kept = Data(own_recipe(str(trained)))  # type: ignore[arg-type]
    learnt = kept.shards[kept.rows[:3]]
    other = (learnt + 1) % 16
    assert _copies(torch.cat((learnt, other)), kept) == pytest.approx(0.5)


def test_a_curve_has_a_point_a_setting(trained: Path, pictures: Path) -> None:
    settings = [{"temperature": 0.5}, {"guidance": 2.0}]
    data = DataConfig(path=str(pictures))
    found = evaluate(str(trained), data, count=6, layer="blocks.0", curve=settings, device="cpu")
    assert [point.setting for point in found.curve] == ["temperature=0.5", "guidance=2"]
    assert found.curve[0].distance != found.curve[1].distance


def test_what_cannot_be_judged_is_one_line(
    trained: Path, codes: Path, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    strange = tmp_path / "strange"
    for name in ("owl", "cat"):
        (strange / name).mkdir(parents=True)
        tvq.images.to_pil(torch.zeros(3, 16, 16)).save(strange / name / "x.png")
    few = tmp_path / "few"
    (few / "cat").mkdir(parents=True)
    for index in range(14):
        tvq.images.to_pil(torch.zeros(3, 16, 16)).save(strange / "owl" / f"{index}.png")
        if index < 4:
            tvq.images.to_pil(torch.zeros(3, 16, 16)).save(few / "cat" / f"{index}.png")
    for arguments, says in {
        (trained,): "give real images to judge by, --data PATH; for bits a code, `tvq-prior score",
        (trained, codes): f"`tvq-prior score {trained} {codes}`",
        (trained, "--data", strange): "has images of the class 'owl', which the prior does not know",
        (trained, "--data", few): "4 images are too few",
        (trained, "--data", strange / "owl"): "has no classes, and the prior is told one",
        (trained, "--data", pictures, "topp=1"): "topp: no such field",
        (trained, "--data", pictures, "--layer", "blocks.77"): "has no layer 'blocks.77'",
        (trained, "--data", pictures, "--backbone", "tf_efficientnet_lite00"): "tf_efficientnet_lite0",
    }.items():
        status, _, err = run(capfd, "evaluate", *arguments, "--device", "cpu")
        assert status == 2 and says in err.strip().splitlines()[-1], (arguments, err)
