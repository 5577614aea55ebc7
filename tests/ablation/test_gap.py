"""`examples/ablations/gap_follows_quality.py`: two short runs, measured at each checkpoint, gone on with."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.training.conftest import SMALL, pictures  # noqa: F401  (a fixture)
from tokenizers_vq.training import runs
from tokenizers_vq.training.recipe import load_recipe

SCRIPT = ROOT / "examples" / "ablations" / "gap_follows_quality.py"


def test_a_figure_is_ranked_with_the_feature_distance_and_a_killed_command_goes_on(
    pictures: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny = [override for override in SMALL if override.split("=")[0].startswith("model.")]
    recipe = load_recipe("vqgan-tiny-64", [*SMALL, f"data.path={pictures}", "adversary=null", "steps=2"])
    runs.train(recipe, tmp_path / "model", device="cpu")
    discriminator = "adversary.discriminator={kind: patchgan, width: 4, layers: 1, norm: none}"
    given = [*tiny, discriminator, "steps=2", "log_every=1", "adversary.warmup=0", "batch_size=4"]
    script = runpy.run_path(str(SCRIPT))
    names = script["main"].__globals__
    names["CHECKPOINTS"] = 3
    command = [str(tmp_path / "model"), str(pictures), str(pictures), str(tmp_path / "out"), *given]
    script["main"](*command)
    printed = capsys.readouterr().out
    for run, figure in script["FIGURES"].items():
        points = json.loads((tmp_path / "out" / f"{run}.json").read_text())
        assert [point["step"] for point in points] == [2, 4, 6]
        logged = [json.loads(line) for line in (tmp_path / "out" / run / "log.jsonl").read_text().splitlines()]
        values = {line["step"]: line[figure] for line in logged}
        assert points[1][figure] == pytest.approx((values[3] + values[4]) / 2)
        order = [sorted(points, key=lambda point, n=name: point[n]) for name in (figure, "feature_distance")]
        apart = sum((order[0].index(point) - order[1].index(point)) ** 2 for point in points)
        rho = 1 - 6 * apart / (3 * (3**2 - 1))  # Spearman's
        assert f"{run}: rank correlation of {figure} with the feature distance {rho:+.2f}, n = 3" in printed
    kept = (tmp_path / "out" / "minimax.json").read_bytes()
    names["train"] = None  # nothing is trained again
    script["main"](*command)
    assert (tmp_path / "out" / "minimax.json").read_bytes() == kept
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "a"])
    with pytest.raises(SystemExit, match=r"gap_follows_quality.py MODEL PHOTOS TEST OUT"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
