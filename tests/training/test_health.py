"""What the doctor finds in made-up logs, and that it finds nothing in healthy ones."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
from torch import Tensor

from tokenizers_vq.discriminators.base import Judgement
from tokenizers_vq.losses.objectives import Objective
from tokenizers_vq.losses.record import Record
from tokenizers_vq.training.health import Finding, diagnose, looks_at_usage, summary, usage_warning
from tokenizers_vq.training.recipe import Recipe, load_recipe

HEALTHY = {
    "quantizer/usage": 1.0,
    "quantizer/perplexity": 700.0,
    "gradient/tokenizer": 1.0,
    "gradient/l1": 1e-3,
    "gradient/perceptual": 2e-3,
    "lr/tokenizer": 1e-4,
}
FACING = {
    "generator": 0.5,
    "gradient/generator": 5e-4,
    "adversary/adaptive": 0.1,
    "gradient/last_reconstruction": 1.0,
    "gradient/last_adversary": 5.0,
    "discriminator": 0.8,
    "adversary/logits_real": 0.3,
    "adversary/logits_fake": -0.3,
}


def recipe(*overrides: str) -> Recipe:
    return load_recipe("vqgan-tiny-64", overrides)


def log(count: int = 40, every: int = 50, facing: bool = True, **figures: Any) -> list[dict[str, Any]]:
    """A healthy log but for `figures`, numbers or functions of the line's index; `a__b` is the figure a/b."""
    lines = []
    for i in range(count):
        l1 = 0.1 + 0.3 * math.exp(-i / 8)
        line = {"step": (i + 1) * every, "reconstruction": 3 * l1, "l1": l1, "perceptual": 2 * l1}
        line |= {**HEALTHY, **(FACING if facing and i > 15 else {})}
        given = {name.replace("__", "/"): value for name, value in figures.items()}
        line |= {name: value(i) if callable(value) else value for name, value in given.items()}
        lines.append(line)
    return lines


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_a_healthy_log_is_healthy_at_every_step() -> None:
    lines = log()
    for length in range(len(lines) + 1):
        assert diagnose(recipe(), lines[:length]) == []
    assert summary(recipe(), lines)["usage"] == 1.0
    assert summary(recipe(), lines)["loss at first"] == pytest.approx(1.2)


ILL = [
    {"adversary__adaptive": 0.2, "gradient__last_adversary": 0.01},
    {"gradient__last_adversary": 0.0, "gradient__generator": 0.0},
    {"gradient__l1": 1e-9},
    {"discriminator": 0.01, "adversary__logits_real": 3.0, "adversary__logits_fake": -3.0},
]


@pytest.mark.parametrize("figures", ILL, ids=["clamp", "no gradient", "vanishing", "won"])
def test_few_lines_are_no_verdict_however_ill_they_look(figures: dict[str, float]) -> None:
    lines = [{**line, "step": i + 1} for i, line in enumerate(log(**figures)[16:])]
    for length in range(5):
        assert diagnose(recipe(), lines[:length]) == []
    long = [{**line, "step": 20 * line["step"]} for line in lines]
    assert diagnose(recipe(), long) != []


def test_the_gradient_of_an_untrained_discriminator_is_no_verdict() -> None:
    small = {"adversary__adaptive": 0.2, "gradient__last_adversary": 0.01, "gradient__generator": 1e-9}
    lines = log(**small)[16:]
    assert diagnose(recipe(), [{**line, "step": i + 1} for i, line in enumerate(lines)]) == []
    assert diagnose(recipe(), [{**line, "step": 10 * (i + 1)} for i, line in enumerate(lines)]) != []


@pytest.mark.parametrize(
    ("figures", "what"),
    [
        ({"quantizer__usage": 0.02}, "the codebook collapsed"),
        ({"quantizer__perplexity": 3.0}, "few codes carry a batch"),
    ],
)
def test_a_collapsed_codebook(figures: dict[str, float], what: str) -> None:
    plain = recipe("model.quantizer={kind: vector, num_codes: 1024, dim: 256}")
    finding = only(diagnose(plain, log(**figures)))
    assert finding.what == what
    advice = " ".join(map(str, finding.advice))
    assert "model.quantizer.revive_after=100" in advice and "distance=cosine model.quantizer.dim=8 " in advice
    factorised = " ".join(map(str, only(diagnose(recipe(), log(**figures))).advice))
    assert "distance=cosine" not in factorised and "revive_after" not in factorised, "the recipe has them"


def test_usage_counts_once_its_window_is_full_and_as_the_recipe_asks() -> None:
    assert diagnose(recipe(), log(count=10, every=20, quantizer__usage=0.1)) == []
    assert diagnose(recipe("warn_usage=0.0"), log(quantizer__usage=0.1)) == []


def test_the_window_is_one_of_updates_not_of_steps() -> None:
    early = log(count=10, every=20, quantizer__usage=0.1)  # to step 200
    assert only(diagnose(recipe("accumulate=2"), early)).what == "the codebook collapsed"


def test_a_batch_of_few_tokens_is_no_collapse() -> None:
    few = recipe("model.quantizer.num_codes=65536", "batch_size=4")
    assert diagnose(few, log(quantizer__perplexity=700.0)) == []
    assert only(diagnose(few, log(quantizer__perplexity=50.0))).what == "few codes carry a batch"


def test_a_discriminator_that_wins() -> None:
    won = {"discriminator": 0.01, "adversary__logits_real": 3.0, "adversary__logits_fake": -3.0}
    finding = only(diagnose(recipe(), log(**won)))
    assert finding.what == "the discriminator wins"
    assert ("adversary.optimizer.lr=0.0001",) in [advice.overrides for advice in finding.advice]
    inherited = recipe("adversary.optimizer=null")
    (own,) = only(diagnose(inherited, log(**won))).advice[0].overrides
    given = recipe(own).adversary.optimizer
    assert given.lr == 1e-4 and given.replace(lr=inherited.optimizer.lr) == inherited.optimizer, "all else stays"
    warming_up = [{k: v for k, v in line.items() if k != "generator"} for line in log(**won)]
    assert diagnose(recipe(), warming_up) == [], "alone it may win"


@pytest.mark.parametrize(("kind", "loss"), [("hinge", 1.0), ("non_saturating", 2 * math.log(2))])
def test_a_discriminator_at_chance(kind: str, loss: float) -> None:
    lines = log(discriminator=loss, adversary__logits_real=0.01, adversary__logits_fake=0.0)
    asked = recipe(f"adversary.objective={{kind: {kind}}}")
    assert only(diagnose(asked, lines)).what == "the discriminator is at chance"
    assert diagnose(asked, lines[:18]) == [], "it has just begun"


def test_an_adaptive_weight_at_its_clamp_that_leaves_nothing() -> None:
    clamped = {"adversary__adaptive": 0.2}
    assert diagnose(recipe(), log(**clamped)) == [], "the recipe's clamp is meant"
    finding = only(diagnose(recipe(), log(**clamped, gradient__last_adversary=0.1)))
    assert finding.what == "the adaptive weight is at its clamp"
    assert ("adversary.max_adaptive=2",) in [advice.overrides for advice in finding.advice]
    assert only(diagnose(recipe(), log(gradient__last_adversary=0.0))).what == "the adversary has no gradient"


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("losses.1.weight=0.0", "losses.1.weight"),
        ("losses.1.weight={begin: 0.0, end: 0.0, over: [0, 100]}", "losses.1.weight"),
        ("losses.1.weight={begin: 0.0, end: 1.0, over: [5000, 6000]}", "losses.1.weight"),
        ("quantizer_losses={commitment: 0.0}", "quantizer_losses.commitment"),
        ("adversary.weight=0.0", "adversary.weight"),
    ],
)
def test_a_weight_of_zero(override: str, path: str) -> None:
    finding = only(diagnose(recipe(override), []))
    assert "has weight 0" in finding.what and path in finding.evidence
    assert diagnose(recipe("losses.1.weight={begin: 1.0, end: 0.0, over: [0, 100]}"), []) == []


def test_a_loss_without_gradient() -> None:
    finding = only(diagnose(recipe(), log(gradient__l1=1e-9)))
    assert finding.what == "the l1 loss has no gradient to speak of"
    assert str(finding.advice[0]).startswith("losses.0.weight=")
    assert only(diagnose(recipe(), log(gradient__generator=0.0))).what.startswith("the generator loss has no gradient")


def test_a_learning_rate_of_zero() -> None:
    early = recipe("optimizer.lr={kind: cosine, begin: 1e-3, end: 0.0, over: [0, 1000]}")
    finding = only(diagnose(early, log()))
    assert finding.what == "the learning rate is 0: optimizer.lr"
    assert finding.advice[0].overrides == ("optimizer.lr.over=[0, 1.0]",)
    assert str(finding.advice[0]).startswith("'optimizer.lr.over=[0, 1.0]'  ("), "as a shell takes it"
    assert diagnose(recipe("optimizer.lr={kind: cosine, begin: 1e-3, end: 0.0, over: [0, 1.0]}"), log()) == []
    assert "all" not in only(diagnose(recipe("adversary.optimizer.lr=0.0"), log())).what
    assert only(diagnose(recipe("optimizer.lr=0.0"), log())).when == "steps 0 to 3000"


def test_a_learning_rate_that_is_too_high() -> None:
    def rising(scale: float) -> Any:
        return lambda i: scale * (0.2 if i < 20 else 0.2 + 0.05 * (i - 20))

    finding = only(diagnose(recipe(), log(l1=rising(1), perceptual=rising(2))))
    assert finding.what == "the learning rate is too high" and "l1 rose from 0.2" in finding.evidence
    assert finding.advice[0].overrides == ("optimizer.lr.parts.0.end=5e-05", "optimizer.lr.parts.1.begin=5e-05")
    assert diagnose(recipe(), log(l1=rising(1))) == [], "another term falls"
    flat = only(diagnose(recipe("optimizer.lr=0.1"), log(l1=0.5, perceptual=1.0)))
    assert "hardly fell" in flat.evidence
    assert diagnose(recipe(), log(l1=0.5, perceptual=1.0)) == [], "fine-tuning at a usual rate"
    leap = only(diagnose(recipe(), log(l1=lambda i: 900.0 if i == 3 else 0.4)))
    assert "l1 leapt from 0.4 to 900" in leap.evidence


def test_a_run_that_stopped() -> None:
    nan = {"step": 7, "stopped": "step 6: l2 became NaN or infinite; the last checkpoint is kept"}
    finding = only(diagnose(recipe(), [nan]))
    assert finding.what.startswith("the learning rate is too high") and finding.when == "step 7"
    other = only(diagnose(recipe(), [*log(), {"step": 2001, "stopped": "a.png cannot be read"}]))
    assert other.what == "the run stopped on an error" and other.evidence == "a.png cannot be read"


def test_a_discriminator_that_never_starts() -> None:
    alone = log(facing=False)
    assert "ever starts" in only(diagnose(recipe("adversary.start=3000"), alone)).what
    assert "never sees" in only(diagnose(recipe("adversary.start=2900"), alone)).what
    assert "ever started" in only(diagnose(recipe("adversary.start=auto", "steps=900"), alone[:3])).what
    waiting = recipe("adversary.start=auto", "steps=2000")
    assert diagnose(waiting, alone[:30]) == []
    assert "ever started" in only(diagnose(waiting, alone)).what


def test_clipped_weights() -> None:
    """Most of them at the clip is a finding; so small a gap as they leave a critic is none."""
    asked = recipe("adversary.objective={kind: wasserstein}", "adversary.regularisers=[{kind: weight_clipping}]")
    near = {"discriminator": -0.01, "adversary__logits_real": 0.01, "adversary__logits_fake": 0.0}
    assert diagnose(asked, log(**near, adversary__clipped=0.2)) == []
    finding = only(diagnose(asked, log(**near, adversary__clipped=0.8)))
    assert finding.what == "most weights of the discriminator are clipped" and finding.evidence.startswith(
        "80% of them"
    )
    for advice in finding.advice:
        recipe("adversary.regularisers=[{kind: weight_clipping}]", *advice.overrides)
    assert finding.advice[0].overrides == ("adversary.regularisers.0.limit=0.05",)


@pytest.mark.parametrize(
    ("objective", "won", "playing"),
    [
        ("{kind: least_squares}", (0.02, 0.9, 0.1), (0.15, 0.7, 0.3)),
        ("{kind: non_saturating, real_target: 0.9}", (0.4, 2.2, -4.0), (1.0, 0.8, -0.8)),
    ],
)
def test_a_won_game_is_known_by_the_objectives_best(
    objective: str, won: tuple[float, float, float], playing: tuple[float, float, float]
) -> None:
    names = ("discriminator", "adversary__logits_real", "adversary__logits_fake")
    asked = recipe(f"adversary.objective={objective}")
    finding = only(diagnose(asked, log(**dict(zip(names, won, strict=True)))))
    assert finding.what == "the discriminator wins"
    assert diagnose(asked, log(**dict(zip(names, playing, strict=True)))) == []


def test_usage_is_looked_at_seldom_and_said_plainly() -> None:
    assert [step for step in range(1, 5000) if looks_at_usage(recipe(), step)] == [256, 512, 1024, 2048, 4096]
    (said,) = usage_warning(recipe("model.quantizer={kind: vector, num_codes: 8192, dim: 256}"), 256, 0.03)
    assert said.startswith("step 256: only 3% of the codes") and "model.quantizer.revive_after=100" in said
    assert usage_warning(recipe(), 256, 0.6) == usage_warning(recipe("warn_usage=0.0"), 256, 0.0) == []


class Gap(Objective):
    """Wasserstein's: the discriminator's loss is the gap itself, with no least value."""

    kind: Literal["gap"] = "gap"

    @property
    def chance(self) -> float:
        return 0.0

    def generator(self, record: Record) -> Tensor:
        return -record.fake.logits[0].mean()

    def discriminator(self, real: Judgement, fake: Judgement) -> Tensor:
        return fake.logits[0].mean() - real.logits[0].mean()


def test_the_doctor_knows_an_objective_by_its_chance_alone() -> None:
    given = recipe()
    assert given.adversary is not None
    adversary = given.adversary.model_copy(update={"objective": Gap()})
    asked = given.model_copy(update={"adversary": adversary})
    far = {"discriminator": -6.0, "adversary__logits_real": 3.0, "adversary__logits_fake": -3.0}
    assert diagnose(asked, log(**far)) == [], "a critic is meant to be ahead"
    near = {"discriminator": -0.01, "adversary__logits_real": 0.01, "adversary__logits_fake": 0.0}
    finding = only(diagnose(asked, log(**near)))
    assert finding.what == "the discriminator is at chance" and "(0 = chance)" in finding.evidence
