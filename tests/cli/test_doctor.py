"""`tvq doctor` on real runs: healthy, ill, stopped, not yet begun."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tokenizers_vq.training.loop import NonFiniteLossError
from tokenizers_vq.training.recipe import load_recipe
from tokenizers_vq.training.runs import train
from tokenizers_vq.training.tracking import read_log

NETWORK = "{kind: vqvae, width: 8, downsamples: 2, blocks: 1}"


@pytest.fixture
def tiny(photos: Path) -> list[str]:
    small = ["model.image_size=32", f"model.encoder={NETWORK}", f"model.decoder={NETWORK}", "batch_size=2"]
    small += ["steps=270", "log_every=2", "image_every=0", "data.workers=0", "data.split=train"]
    return [*small, f"data.path={photos}"]


def test_a_collapsed_run_is_told_so_while_it_trains_and_afterwards(tvq_command, tiny, tmp_path, notes) -> None:
    run = tmp_path / "run"
    plain = "model.quantizer={kind: vector, num_codes: 512, dim: 64}"
    weights = "losses=[{kind: l2}, {kind: l1, weight: 0.0}]"
    train(load_recipe("vqvae-tiny-64", [*tiny, plain, weights]), run, device="cpu")
    (warning,) = [line for line in notes().splitlines() if "of the codes were used" in line]
    assert warning.startswith("step 256: only") and "model.quantizer.revive_after=100" in warning
    assert all(line["gradient/l2"] > 0 for line in read_log(run / "log.jsonl"))

    said = tvq_command("doctor", run)
    assert said.status == 1
    assert f"{run}, step 270 of 270: 2 findings" in said.out
    assert "the codebook collapsed" in said.out and "the l1 loss has weight 0" in said.out
    told = tvq_command("doctor", run, "--json")
    assert told.status == 1
    found = json.loads(told.out)
    assert [finding["what"] for finding in found["findings"]] == ["the l1 loss has weight 0", "the codebook collapsed"]
    assert not found["healthy"] and found["figures"]["usage"] < 0.5


def test_a_run_that_stopped_is_told_why_until_it_goes_on(tvq_command, tiny, tmp_path, monkeypatch) -> None:
    from tokenizers_vq.losses.terms import L2

    forward, run = L2.forward, tmp_path / "run"
    recipe = load_recipe("vqvae-tiny-64", [*tiny, "steps=6", "checkpoint_every=2"])
    with monkeypatch.context() as patch, pytest.raises(NonFiniteLossError):
        patch.setattr(L2, "forward", lambda self, r: forward(self, r) * (math.nan if r.step == 3 else 1.0))
        train(recipe, run, device="cpu")
    assert [line["step"] for line in read_log(run / "log.jsonl")] == [2, 4]
    said = tvq_command("doctor", run)
    assert said.status == 1
    assert "the learning rate is too high: the run became NaN or infinite" in said.out
    assert "l2 and the gradient at the decoder's output became NaN" in said.out

    train(recipe, run, device="cpu")
    assert all("stopped" not in line for line in read_log(run / "log.jsonl"))
    said = tvq_command("doctor", run)
    assert (said.status, said.out.count("\n")) == (0, 1)
    assert f"{run}, step 6 of 6: healthy; loss at first" in said.out
    assert json.loads(tvq_command("doctor", run, "--json").out)["healthy"]


def test_what_is_no_run_is_one_line(tvq_command, tmp_path) -> None:
    assert "holds no recipe.yaml" in tvq_command("doctor", tmp_path).err
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("steps: 3\n")
    assert "is not a run of a tokenizer" in tvq_command("doctor", tmp_path).err
    import yaml

    recipe.write_text(yaml.safe_dump(load_recipe("vqvae-tiny-64").to_dict()))
    assert "has not logged yet" in tvq_command("doctor", tmp_path).err
    (tmp_path / "log.jsonl").write_text("")
    empty = tvq_command("doctor", tmp_path)
    assert (empty.status, empty.err.count("\n")) == (2, 1)
    assert "the first comes after 20 steps" in empty.err
