"""FSDP: a prior in shards learns what a whole one does, and goes on from where it stopped, bit for bit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from prior.models import load
from prior.recipe import load_recipe
from prior.training import train
from tests.prior.conftest import SMALL
from tests.processes import in_processes
from tokenizers_vq.training import loop, sharding
from tokenizers_vq.training.checkpoint import newest

STEPS = ["steps=4", "checkpoint_every=2", "evaluate_every=2", "keep_checkpoints=9"]
STEPS += ["model.label_dropout=0.0"]  # what is dropped is drawn by each process for itself


def run(rank: int, world: int, codes: Path, out: Path) -> tuple[float, int]:
    """Train in shards, at once, and stopped and resumed; bits of what is held out, bytes of weights of this process."""
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    found = train(load_recipe("gpt-tiny", codes, [*SMALL, *STEPS]), out / "once", device="cpu")
    for steps in (2, 4):  # a run takes its group of processes down as it ends
        dist.init_process_group("gloo", init_method=f"file://{out}/group-{steps}", rank=rank, world_size=world)
        train(load_recipe("gpt-tiny", codes, [*SMALL, *STEPS, f"steps={steps}"]), out / "twice", device="cpu")
    index = json.loads((out / "once" / "checkpoints" / "4" / "checkpoint.json").read_text())
    return found.bits_per_token, index["parts"]["modules.prior"]["files"][rank]["bytes"]


def test_a_sharded_prior_is_the_whole_one(codes: Path, tmp_path: Path) -> None:
    held = in_processes(2, run, codes, tmp_path)
    once, twice = (newest(tmp_path / name / "checkpoints") for name in ("once", "twice"))
    assert once is not None and twice is not None and once[0] == twice[0] == 4
    _equal(once[1], twice[1])  # bit for bit
    whole = sum(tensor.nbytes for tensor in load(tmp_path / "once").state_dict().values())
    assert held[0][0] == held[1][0] and all(part < 0.7 * whole for _, part in held)

    # One process learns, of the same batches, the same within rounding; and it goes on from the parts of two.
    for steps, bound in ((4, 2e-5), (5, 5e-5)):
        recipe = load_recipe("gpt-tiny", codes, [*SMALL, *STEPS, f"steps={steps}"])
        found = train(recipe, tmp_path / "alone", device="cpu")
        if steps == 4:
            assert abs(found.bits_per_token - held[0][0]) < 1e-4
        else:
            train(recipe, tmp_path / "once", device="cpu")
        alone, shards = (load(tmp_path / name).state_dict() for name in ("alone", "once"))
        assert alone.keys() == shards.keys()
        assert all(torch.allclose(alone[key], shards[key], atol=bound) for key in alone)


def _equal(one: object, two: object) -> None:
    if isinstance(one, torch.Tensor):
        assert isinstance(two, torch.Tensor) and torch.equal(one, two)
    elif isinstance(one, dict):
        assert isinstance(two, dict) and one.keys() == two.keys()
        for key in one:
            _equal(one[key], two[key])
    elif isinstance(one, (list, tuple)):
        for first, second in zip(one, two, strict=True):  # type: ignore[call-overload]
            _equal(first, second)
    else:
        assert one == two


def test_one_process_has_nothing_to_share_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    sharding.take_over()
    assert not sharding.asked()


def test_what_is_not_sharded_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "_asked", True)
    task = SimpleNamespace(modules={"tokenizer": torch.nn.Linear(1, 1)})
    with pytest.raises(ValueError, match="FSDP shards priors; a tokenizer trains whole in every process"):
        loop._sharded(task)  # type: ignore[arg-type]
