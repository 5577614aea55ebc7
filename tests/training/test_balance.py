"""The balance of the two sides: figures of a step by hand, in the log where it is written, and what the doctor says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tokenizers_vq as tvq
from tests.laws.adversaries import make_adversary, make_record
from tests.training.conftest import SMALL
from tests.training.test_health import log, only, recipe
from tests.training.test_runs import run
from tokenizers_vq.config import read_yaml
from tokenizers_vq.training import gradients
from tokenizers_vq.training.balance import EQUAL, GROWS, WINS
from tokenizers_vq.training.health import diagnose, summary
from tokenizers_vq.training.recipe import Recipe
from tokenizers_vq.training.tracking import read_log

DISCRIMINATOR = "adversary.discriminator"
WON = {"discriminator": 0.01, "adversary__logits_real": 3.0, "adversary__logits_fake": -3.0}
CRITIC = "adversary.objective={kind: wasserstein}"
SURE = {"adversary__accuracy_real": 1.0, "adversary__accuracy_fake": 0.999}


def test_shares_are_those_of_the_gradient_at_the_last_weight() -> None:
    head = torch.nn.Conv2d(4, 3, 3, padding=1)
    hidden, images = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 8, 8)
    output = head(hidden)
    l1, l2 = (output - images).abs().mean(), 5 * (output - images).square().mean()
    sides = {name: gradients.at(loss, [output])[0] for name, loss in (("l1", l1), ("l2", l2))}
    found = gradients.shares(output, head.weight, {name: g for name, g in sides.items() if g is not None})
    norms = [torch.autograd.grad(loss, head.weight, retain_graph=True)[0].norm() for loss in (l1, l2)]
    for name, norm in zip(("l1", "l2"), norms, strict=True):
        torch.testing.assert_close(found[name], norm / (norms[0] + norms[1]))
    nothing = gradients.shares(output, head.weight, {"l1": torch.zeros_like(output)})
    assert nothing["l1"] == 0


def test_figures_of_the_balance_are_made_for_lines_of_the_log_alone() -> None:
    adversary = make_adversary()
    record = make_record(adversary.discriminator)
    told, figures = adversary.own_loss(adversary.discriminator, record)
    quiet, few = adversary.own_loss(adversary.discriminator, record, logged=False)
    assert torch.equal(told, quiet) and set(few) == {"discriminator"}
    (real,), (fake,) = record.real.logits, record.fake.logits
    assert figures["adversary/logits_real"].item() == pytest.approx(real.mean().item(), rel=1e-5)
    assert figures["adversary/gap"].item() == pytest.approx((real.mean() - fake.mean()).item(), rel=1e-4)
    assert figures["adversary/accuracy_real"].item() == pytest.approx((real > 0).float().mean().item())
    assert figures["adversary/accuracy_fake"].item() == pytest.approx((fake <= 0).float().mean().item())


INNER = "{kind: patchgan, width: 4, layers: 1, norm: none}"
ENSEMBLE = (
    f"{DISCRIMINATOR}={{kind: several, discriminators: ["
    f"{{kind: augmented, p: ada, ramp: 16, target: -0.99, policy: [color], discriminator: {INNER}}}, "
    f"{{kind: bottleneck, target: 0.01, rate: 1.0, discriminator: {INNER}}}]}}"
)


def lines_of(out: Path, pictures: Path, *asked: str) -> tuple[Recipe, list[dict[str, Any]]]:
    """The recipe and the log of a real run, of one micro-batch a step, whose two sides meet at once."""
    alone = ["accumulate=1", "adversary.start=0", "adversary.warmup=0", "steps=12", "checkpoint_every=12"]
    run(out, [*SMALL, f"data.path={pictures}", *alone, *asked])
    return Recipe(**read_yaml(out / "recipe.yaml")), read_log(out / "log.jsonl")


def test_a_real_log_holds_the_balance_in_each_line(pictures: Path, tmp_path: Path) -> None:
    given, lines = lines_of(tmp_path / "run", pictures, ENSEMBLE, "adversary.optimizer={lr: 0.02}")
    assert [line["step"] for line in lines] == list(range(2, 13, 2))
    for line in lines:
        shares = [line[f"share/{name}"] for name in ("l1", "l2", "generator") if f"share/{name}" in line]
        assert sum(shares) == pytest.approx(1, abs=1e-5) and min(shares) > 0
        assert 0 <= line["adversary/accuracy_real"] <= 1 and 0 <= line["adversary/accuracy_fake"] <= 1
        assert line["adversary/kl_1"] > 0 and line["adversary/multiplier_1"] > 0 and "adversary/p_1" not in line
    assert len(shares) == 3
    assert lines[-1]["adversary/multiplier_1"] != lines[0]["adversary/multiplier_1"]
    assert lines[0]["adversary/p_0"] == 0 and lines[-1]["adversary/p_0"] == 1
    found = {finding.what: finding for finding in diagnose(given, [*lines, lines[-1], lines[-1], lines[-1]])}
    ada = found["ADA's probability is at its limit"]
    assert ada.evidence == "p is 1.00 and cannot rise: real logits still have a mean sign above -0.99"
    assert ada.advice[0].overrides == (f"{DISCRIMINATOR}.discriminators.0.policy=[color, cutout, translation]",)
    assert 0 <= summary(given, lines)["discriminator is right"] <= 1


def test_a_real_run_whose_weights_are_clipped(pictures: Path, tmp_path: Path) -> None:
    clipping = "adversary.regularisers=[{kind: weight_clipping, limit: 0.001}]"
    norm = f"{DISCRIMINATOR}.norm=none"
    given, lines = lines_of(tmp_path / "run", pictures, CRITIC, clipping, norm, "adversary.optimizer={lr: 0.01}")
    found = {finding.what: finding for finding in diagnose(given, lines)}
    clipped = found["most weights of the discriminator are clipped"]
    assert "at adversary.regularisers.0.limit 0.001" in clipped.evidence
    assert clipped.advice[1].overrides == ("adversary.regularisers.0={kind: gradient_penalty}",)


def test_a_pair_without_blur_wins_by_equality() -> None:
    pair = f"{DISCRIMINATOR}={{kind: augmented, discriminator: {{kind: pair, blur: 0.0, discriminator: {INNER}}}}}"
    finding = only(diagnose(recipe(pair), log(**WON, **SURE)))
    assert finding.what == EQUAL and f"{DISCRIMINATOR}.discriminator.blur 0" in finding.evidence
    (advice,) = finding.advice
    assert advice.overrides == (f"{DISCRIMINATOR}.discriminator.blur=null",)
    cured = recipe(pair, *advice.overrides)
    assert only(diagnose(cured, log(**WON, **SURE))).what == WINS, "with a blur it wins by what it sees"
    assert diagnose(recipe(pair), log()) == [], "it plays"
    critic = {"discriminator": -6.0, "adversary__logits_real": 3.0, "adversary__logits_fake": -3.0}
    assert only(diagnose(recipe(pair, CRITIC), log(**critic, **SURE))).what == EQUAL, "a critic has no least loss"
    assert diagnose(recipe(CRITIC), log(**critic, **SURE)) == []


def test_advice_to_bound_slopes_takes_what_mixes_with_it() -> None:
    finding = only(diagnose(recipe(f"{DISCRIMINATOR}={{kind: patchgan, norm: batch}}"), log(**WON)))
    r1 = ("adversary.regularisers=[{kind: r1}]", f"{DISCRIMINATOR}.norm=none")
    assert r1 in [advice.overrides for advice in finding.advice]
    given = recipe(f"{DISCRIMINATOR}={{kind: patchgan, norm: batch, width: 4}}", *r1)
    assert given.adversary is not None
    built = given.adversary.discriminator.build(3, (64, 64))
    given.adversary.regularisers[0].build(built, given.adversary.objective)
    mixing = f"{DISCRIMINATOR}={{kind: minibatch, discriminator: {INNER}}}"
    advice = [advice.overrides for advice in only(diagnose(recipe(mixing), log(**WON))).advice]
    assert not any("r1" in override for overrides in advice for override in overrides)
    assert (f"{DISCRIMINATOR}.discriminator.norm=spectral",) in advice


@pytest.mark.parametrize("p", [1.0, 0.4])
def test_adas_probability_at_its_limit(p: float) -> None:
    ada = recipe(f"{DISCRIMINATOR}={{kind: augmented, p: ada, discriminator: {INNER}}}")
    findings = diagnose(ada, log(adversary__p=p))
    assert [finding.what for finding in findings] == (["ADA's probability is at its limit"] if p == 1 else [])
    fixed = recipe(f"{DISCRIMINATOR}={{kind: augmented, p: 1.0, discriminator: {INNER}}}")
    assert diagnose(fixed, log(adversary__p=p)) == []


def test_a_bottlenecks_multiplier() -> None:
    bottleneck = recipe(f"{DISCRIMINATOR}={{kind: bottleneck, target: 0.2, discriminator: {INNER}}}", "steps=2000")
    assert diagnose(bottleneck, log(adversary__multiplier=0.1, adversary__kl=0.21)) == []
    idle = only(diagnose(bottleneck, log(adversary__multiplier=0.0, adversary__kl=0.05)))
    assert idle.what == "the bottleneck's multiplier is at its limit, 0"
    assert idle.advice[0].overrides == (f"{DISCRIMINATOR}.target=0.025",)
    slow = log(adversary__multiplier=0.1, adversary__kl=7.0)
    assert diagnose(bottleneck, slow[:15]) == [], "it may yet come down"
    far = only(diagnose(bottleneck, slow))
    assert far.what == "the bottleneck stays far above its target" and "7 nats a position" in far.evidence
    for advice in (*idle.advice, *far.advice):
        recipe(f"{DISCRIMINATOR}={{kind: bottleneck, discriminator: {INNER}}}", *advice.overrides)


@pytest.mark.parametrize(
    ("objective", "sign"), [(CRITIC, -1.0), ("adversary.objective={kind: least_squares}", 0.0)], ids=["critic", "least"]
)
def test_a_gap_that_keeps_growing(objective: str, sign: float) -> None:
    def growing(**more: Any) -> list[dict[str, Any]]:
        lines = log(60, discriminator=0.1, l1=0.1, perceptual=0.2, reconstruction=0.3, **more)
        for i, line in enumerate(lines):
            line["adversary/logits_real"], line["adversary/logits_fake"] = 0.2 + i / 20, 0.0
            if sign:
                line["discriminator"] = sign * line["adversary/logits_real"]
        return lines

    finding = only(diagnose(recipe(objective), growing()))
    assert finding.what == GROWS and "window by window" in finding.evidence
    assert diagnose(recipe(objective), log(60)) == []
    for i, line in enumerate(better := growing()):
        line["reconstruction"] = 1 / (1 + i)
    assert diagnose(recipe(objective), better) == [], "it learns what there is to learn"
    for line in (even := growing()):
        line["discriminator"] = 0.24
    if not sign:
        assert diagnose(recipe(objective), even) == [], "its loss is near chance"


def test_every_decoder_has_a_last_weight_to_share() -> None:
    for name in ("vqgan-tiny-64", "vqvae-tiny-64", "vit-vqgan-tiny-64", "vqvae2-tiny-64", "titok-tiny-64"):
        tokenizer = tvq.create(name)
        assert tokenizer.decoder.head.weight.requires_grad, name
