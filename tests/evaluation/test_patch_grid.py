"""The patch grid: values by hand, and the layouts that have one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.evaluation.toy import SequenceTokenizer, ShadedTokenizer, ToyTokenizer, batches
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.evaluation import evaluate
from tokenizers_vq.evaluation.patch_grid import PatchGrid, patch_stride
from tokenizers_vq.evaluation.report import write_report
from tokenizers_vq.evaluation.tables import rows


def layout(*grids: tuple[int, ...]) -> CodeLayout:
    return CodeLayout(grids, 1, (16,) * len(grids))


@pytest.mark.parametrize(
    ("grids", "size", "stride"),
    [
        (((8, 8),), (64, 64), (8, 8)),
        (((4, 8),), (64, 64), (16, 8)),
        (((8, 8), (16, 16)), (64, 64), (4, 4)),  # of several grids the finest
        (((1, 1), (3, 3), (16, 16)), (256, 256), (16, 16)),
        (((32,),), (64, 64), None),
        (((64, 64),), (64, 64), None),
        (((1, 8),), (64, 64), None),
        (((5, 5),), (64, 64), None),
    ],
)
def test_stride_of_a_layout(grids: tuple, size: tuple[int, int], stride: tuple[int, int] | None) -> None:
    assert patch_stride(layout(*grids), *size) == stride


def ramp(border: float, inside: float, size: int = 12, patch: int = 4) -> torch.Tensor:
    """Grey rows that rise by `inside` at each pixel, by `border` between patches; columns alike."""
    steps = torch.full((size - 1,), inside)
    steps[patch - 1 :: patch] = border
    line = torch.cat([torch.zeros(1), steps.cumsum(0)])
    return (line[:, None] + line[None])[None, None] - 0.9


def test_by_hand() -> None:
    grid = PatchGrid((4, 4))
    grid.update(ramp(border=0.12, inside=0.03))
    assert grid.compute() == (pytest.approx(4, rel=1e-5), 1)
    grid.update(ramp(border=0.03, inside=0.03))
    value, count = grid.compute()
    assert value == pytest.approx((0.12 + 0.03) / (0.03 + 0.03), rel=1e-5) and count == 2
    other = PatchGrid((4, 3))  # a grid that lies elsewhere finds part of it only
    other.update(ramp(border=0.12, inside=0.03))
    assert 1 < other.compute()[0] < 4


def test_without_a_grid_it_is_one() -> None:
    grid = PatchGrid((8, 8))
    grid.update(torch.rand(64, 3, 64, 64) * 2 - 1)
    assert grid.compute()[0] == pytest.approx(1, rel=0.02)


def test_whatever_the_batches() -> None:
    images = torch.rand(7, 3, 16, 16) * 2 - 1
    whole, parts = PatchGrid((4, 4)), PatchGrid((4, 4))
    whole.update(images)
    for part in images.split(3):
        parts.update(part)
    assert parts.compute() == (pytest.approx(whole.compute()[0], rel=1e-12), 7)


def test_flat_patches_have_no_ratio() -> None:
    grid = PatchGrid((4, 4))
    grid.update(ramp(border=0.1, inside=0.0))
    with pytest.raises(ValueError, match="flat inside"):
        grid.compute()


def pictures() -> torch.Tensor:
    return torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_an_evaluation_sets_it_beside_the_originals(tmp_path: Path) -> None:
    page = write_report(ShadedTokenizer(), batches(pictures()), tmp_path, backbone=None)
    found = json.loads((tmp_path / "report.json").read_text())["metrics"]["patch_grid"]
    assert found["patch"] == [4, 4] and found["better"] == "originals" and found["images"] == 8
    assert found["value"] > 1.1 and found["originals"] == pytest.approx(1, abs=0.1)
    assert f"{found['originals']:.2f} in the originals" in page.read_text()
    table = rows(evaluate(ShadedTokenizer(), batches(pictures()), backbone=None))
    (said,) = [text for name, _, text in table if name == "Patch grid"]
    # Blurred borders lie below the originals' figure and are no improvement.
    assert "best where the originals' is" in said and "lower is better" not in said


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [(SequenceTokenizer(), "the codes do not stand for patches"), (ToyTokenizer(), "every patch is flat inside")],
)
def test_without_one_the_reason_is_given(tokenizer: ToyTokenizer, reason: str) -> None:
    result = evaluate(tokenizer, batches(pictures()), backbone=None)
    assert "patch_grid" not in result.metrics and reason in result.skipped["patch_grid"]
