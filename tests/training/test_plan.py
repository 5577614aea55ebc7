"""What a run takes, told before it: counts against formulas, memory against a process that trains."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from prior.cli import main as prior_main
from prior.planning import plan as plan_prior
from tests.benchmarks.ours import step_overrides
from tests.cli.conftest import tvq_command as tvq_command
from tokenizers_vq.devices import without_memory
from tokenizers_vq.training import estimate
from tokenizers_vq.training.recipe import load_recipe
from tokenizers_vq.verbs.plan import plan

FACTOR = 1.5
"""by which the memory may be wrong, as docs/results/serve.md states it"""


def test_what_is_kept_and_computed_is_counted() -> None:
    mode = FakeTensorMode()
    with without_memory():
        layers = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU())
    made = estimate.faked(layers, mode)
    with mode:
        whole = estimate.count(lambda: made(torch.empty(10, 64)), [made])
        # The input, and what the two ReLUs give (the first is also the second layer's input).
        assert whole.kept == 4 * 10 * (64 + 128 + 32) and whole.largest == 4 * 10 * 128
        products = 2 * 10 * (64 * 128 + 128 * 32)
        assert whole.flops == 2 * products + 2 * 10 * 128 * 32  # the first layer's input needs no gradient
        blocks = [nn.Sequential(*layers[:2]), nn.Sequential(*layers[2:])]
        anew = estimate.count(lambda: blocks[1](blocks[0](torch.empty(10, 64))), [made], blocks)
    # The inputs of both, and the inside of the larger.
    assert anew.kept == 4 * 10 * (64 + 128) + 4 * 10 * (64 + 128)
    assert anew.flops == whole.flops + products


def test_memory_is_that_of_a_process_that_trains_within_the_stated_factor() -> None:
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.memory",
        "--alone",
        "step",
        "--width",
        "64",
        "--precision",
        "fp32",
    ]
    used = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    found = plan(load_recipe("vqgan-tiny-64", ["data=PATH", *step_overrides(64, 64), "batch_size=8"]))
    assert not found.left_out
    assert used / FACTOR < found.needed < used * FACTOR, (found.needed / 1e6, used / 1e6)


def test_cards_share_the_batch_and_with_fsdp_the_state() -> None:
    one = plan_prior("gpt-tiny", "vqgan-tiny-64", ["batch_size=16"], memory=0.05)
    four = plan_prior("gpt-tiny", "vqgan-tiny-64", ["batch_size=16"], gpus=4, memory=0.05, fsdp=True)
    assert (one.micro, four.micro) == (16, 4) and not one.fits
    assert four.held == sum(one.state) // 4
    assert four.days("A100") == pytest.approx(one.days("A100") / 4)
    assert one.state.optimizer == 2 * one.state.gradients == 8 * sum(one.parameters.values())
    with pytest.raises(ValueError, match="batch_size 16 does not part into 3 GPUs"):
        plan("vqgan-tiny-64", "batch_size=16", gpus=3)


@pytest.mark.parametrize(
    ("recipe", "tokenizer"),
    [
        ("gpt-tiny", "vqgan-tiny-64"),
        ("maskgit-tiny", "vqgan-tiny-64"),
        ("var-tiny", "var-tiny-64"),
        ("rq-tiny", "rqvae-tiny-64"),
    ],
)
def test_priors_are_planned_over_a_tokenizers_codes(recipe: str, tokenizer: str) -> None:
    found = plan_prior(recipe, tokenizer, ["batch_size=8"], classes=10)
    less = plan_prior(recipe, tokenizer, ["batch_size=8", "gradient_checkpointing=true"], classes=10)
    assert found.image > less.image > 0 and less.flops > found.flops > 0
    # A product of B rows costs 2 B a weight, three times over with the backward; the rest is attention.
    tokens = found.parameters["prior"]
    assert found.flops > 2 * tokens


def test_the_commands_say_it_in_lines_and_in_json(tvq_command: Callable, capfd: pytest.CaptureFixture[str]) -> None:
    said = tvq_command("plan", "vqvae2-tiny-64", "--gpus", "2", "--memory", "24", "--json")
    found = json.loads(said.out)
    assert said.status == 0 and found["micro"] * 2 == found["batch"] and found["fits"] and found["days"]["H100"] > 0
    with pytest.raises(SystemExit) as stop:
        prior_main(["plan", "gpt-3b", "llamagen-f16", "--gpus", "8", "--fsdp"])
    out = capfd.readouterr().out
    assert not stop.value.code and "prior 3,096,659,200" in out and "an estimate from shapes" in out
