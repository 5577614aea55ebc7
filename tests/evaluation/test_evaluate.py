"""`evaluate` on whole splits, in one process and in two."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from tests.evaluation.toy import ExactTokenizer, SequenceTokenizer, ShadedTokenizer, ToyTokenizer, batches
from tests.processes import in_processes
from tokenizers_vq.evaluation import evaluate, metrics, print_table
from tokenizers_vq.evaluation.usage import Histogram


def images(count: int = 10) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_numbers_equal_the_direct_ones_whatever_the_batches() -> None:
    tokenizer, pictures = ToyTokenizer(), images()
    made = tokenizer.decode(tokenizer.encode(pictures))
    for size in (1, 4, 10):
        result = evaluate(tokenizer, batches(pictures, size), backbone=None)
        assert result.metrics["psnr"].value == pytest.approx(metrics.psnr(pictures, made).mean().item(), rel=1e-6)
        assert result.metrics["ssim"].value == pytest.approx(metrics.ssim(pictures, made).mean().item(), rel=1e-5)
        assert result.metrics["mse"].value == pytest.approx(metrics.mse(pictures, made).mean().item(), rel=1e-6)
        assert result.usage.images == 10 and result.usage.tokens == 160
        codes = tokenizer.encode(pictures)
        assert torch.equal(result.usage.streams[0].counts, torch.unique(codes, return_counts=True)[1])


def test_json_says_what_defines_each_number(tmp_path: Path) -> None:
    data = {"name": "toy", "split": "test", "resize": "none", "crop": "none"}
    result = evaluate(ToyTokenizer(), iter(batches(images())), data=data, backbone=None)
    result.save(tmp_path / "metrics.json")
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert set(found) == {"data", "tokenizer", "metrics", "usage", "spectra", "speed", "skipped"}
    assert found["data"] == {**data, "image_size": [16, 16], "channels": 3, "images": 10}
    assert found["tokenizer"] == {"fingerprint": "toy"}
    assert set(found["metrics"]) == {"psnr", "ssim", "mse", "spectrum_distance"}
    for metric in found["metrics"].values():
        assert math.isfinite(metric["value"])
        assert metric["images"] == 10 and metric["clamp"] == [-1, 1] and metric["better"] in ("higher", "lower")
    usage = found["usage"]
    assert usage["sample"] == {"images": 10, "tokens": 160} and usage["bits_per_pixel"] == pytest.approx(48 / 256)
    assert usage["bits_per_pixel_unigram_entropy"] <= usage["bits_per_pixel"]
    assert set(usage["streams"][0]) >= {"size", "tokens", "used", "dead", "usage", "entropy", "perplexity"}
    assert found["speed"]["encode_images_per_second"] > 0 and found["speed"]["decode_images_per_second"] > 0


def test_exact_reconstructions_are_finite_and_perfect() -> None:
    result = evaluate(ExactTokenizer(), batches(images()), backbone=None)
    assert result.metrics["psnr"].value == metrics.PSNR_CAP and result.metrics["mse"].value == 0
    assert result.metrics["spectrum_distance"].value == 0


def test_the_tokenizer_is_in_eval_mode_only_for_the_time() -> None:
    tokenizer = ToyTokenizer()
    evaluate(tokenizer, batches(images()), backbone=None)
    assert tokenizer.modes == [False] * 3 and tokenizer.training


def test_missing_weights_leave_a_metric_out_with_the_reason(tmp_path: Path, capsys, monkeypatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("timm.create_model", refuse)
    result = evaluate(
        ToyTokenizer(),
        batches(images()),
        lpips="squeeze",
        lpips_trunk=tmp_path / "absent.pth",
        backbone="resnet50",
    )
    assert set(result.skipped) == {"lpips_squeeze", "feature_distance", "patch_grid"}
    assert all("\n" not in reason for reason in result.skipped.values())
    assert "psnr" in result.metrics and "feature_distance" not in result.metrics
    print_table(result)
    assert "left out Feature distance" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "resnet5"}, "timm has no backbone 'resnet5'; did you mean 'resnet50'"),
        ({"backbone": "zzz"}, "timm has no backbone 'zzz'$"),
        ({"layer": "blocks.77"}, "has no layer 'blocks.77'; did you mean"),
        ({"lpips": "squeezed"}, "no LPIPS net 'squeezed'"),
    ],
)
def test_networks_misspelt_stop_it_before_it_begins(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(ToyTokenizer(), batches(images()), **options)


def test_other_channel_counts_leave_the_networks_out() -> None:
    pictures = torch.rand(4, 5, 16, 16) * 2 - 1
    result = evaluate(ToyTokenizer(channels=5), batches(pictures), lpips="squeeze")
    assert set(result.skipped) == {"lpips_squeeze", "feature_distance", "patch_grid"} and "psnr" in result.metrics


def test_lpips_may_be_any_module_of_two_batches() -> None:
    class Distance(torch.nn.Module):
        key = ("toy", None)

        def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            return (first - second).abs().mean((1, 2, 3))

    tokenizer, pictures = ToyTokenizer(), images()
    result = evaluate(tokenizer, batches(pictures), lpips=Distance(), backbone=None)
    expected = (pictures - tokenizer.decode(tokenizer.encode(pictures))).abs().mean().item()
    assert result.metrics["lpips_toy"].value == pytest.approx(expected, rel=1e-5)
    assert result.metrics["lpips_toy"].definition["net"] == "toy"


def test_several_grids_and_levels() -> None:
    result = evaluate(SequenceTokenizer(), batches(images()), backbone=None)
    assert [stream.tokens for stream in result.usage.streams] == [20, 20, 60, 60]
    assert result.usage.bits_per_pixel == pytest.approx(16 * 3 / 256)


def test_refusals_are_one_line() -> None:
    with pytest.raises(ValueError, match="no images"):
        evaluate(ToyTokenizer(), [])
    mixed = [{"images": images(2)}, {"images": images(2)[..., :8]}]
    with pytest.raises(ValueError, match="one size"):
        evaluate(ToyTokenizer(), mixed, backbone=None)


class _Means:
    """Channel means as features, in place of a backbone."""

    dim = 3

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        return pictures.mean((2, 3))


def _shares(rank: int, world: int) -> list[tuple]:
    """Uneven shares, and a process without any."""
    return [everything(images()[:cut] if rank == 0 else images()[cut:]) for cut in (7, 10)]


def everything(part: torch.Tensor) -> tuple[dict, tuple[float, int], list[list[int]]]:
    """Evaluation without its times, feature distance, and a sparse histogram, of a share of the images."""
    tokenizer = ShadedTokenizer()
    result = evaluate(tokenizer, batches(part) if len(part) else [], backbone=None).to_dict()
    distance = metrics.FrechetDistance(_Means(), 3)
    distance.update(part, tokenizer.decode(tokenizer.encode(part)))
    histogram = Histogram(2**30)
    histogram.update(tokenizer.encode(part) * 10**8)
    pairs = [values.tolist() for values in histogram.join().pairs()]
    return {key: value for key, value in result.items() if key != "speed"}, distance.compute(), pairs


def test_two_processes_equal_one() -> None:
    results = in_processes(2, _shares)
    whole, distance, pairs = everything(images())
    assert "patch_grid" in whole["metrics"]
    for result in results:
        for joined, joined_distance, joined_pairs in result:
            assert joined["usage"] == whole["usage"] and joined["data"] == whole["data"]
            for name, metric in whole["metrics"].items():
                assert joined["metrics"][name]["value"] == pytest.approx(metric["value"], rel=1e-6)
                assert joined["metrics"][name]["images"] == 10
            assert joined_distance == pytest.approx(distance)
            assert joined_pairs == pairs


def test_originals_are_looked_at_once_for_several_evaluations() -> None:
    originals: dict = {}
    images = [{"images": torch.rand(4, 3, 32, 32) * 2 - 1}]
    first, second, alone = (
        evaluate(ToyTokenizer(), images, originals=kept).metrics["feature_distance"]
        for kept in (originals, originals, None)
    )
    assert list(originals) == ["feature_distance"] and originals["feature_distance"].compute()[2] == 4
    assert first == second == alone


def test_names_in_tables_are_text_alone(capsys) -> None:
    """Square brackets of a path are no markup, and a control character does not reach the terminal."""
    evaluation = evaluate(ToyTokenizer(), batches(torch.rand(2, 3, 16, 16) * 2 - 1), backbone=None)
    print_table(evaluation, "photos[red] [/]\x1b[2J")
    shown = capsys.readouterr().out
    assert "photos[red] [/]\\x1b[2J" in shown and "\x1b" not in shown
