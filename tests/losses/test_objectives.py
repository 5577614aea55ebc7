"""Objectives on two discrete distributions: the best discriminator and the least loss have closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tokenizers_vq.config import ConfigError, parse
from tokenizers_vq.discriminators.base import Judgement
from tokenizers_vq.losses.objectives import (
    Hinge,
    LeastSquares,
    Minimax,
    NonSaturating,
    Objective,
    RelativisticAverage,
    Wasserstein,
)
from tokenizers_vq.training.recipe import load_recipe

REAL, FAKE = torch.tensor([1, 2, 5, 8, 4]), torch.tensor([6, 5, 5, 3, 1])
"""how often each of five images stands in a batch of twenty; both sides have all"""
P, Q = (REAL / 20).double(), (FAKE / 20).double()


def loss_of(objective: Objective, table: Tensor) -> Tensor:
    """The discriminator's loss where image k has the logit `table[k]`."""
    sides = [torch.repeat_interleave(table, count)[:, None] for count in (REAL, FAKE)]
    return objective.discriminator(*(Judgement([side], [], {}) for side in sides))


def least(objective: Objective) -> tuple[Tensor, float]:
    """The best logits, by descent, and the loss there."""
    table = torch.zeros(5, requires_grad=True)
    descent = torch.optim.LBFGS([table], max_iter=200, line_search_fn="strong_wolfe", tolerance_change=0)

    def closure() -> Tensor:
        descent.zero_grad()
        (loss := loss_of(objective, table)).backward()
        return loss

    descent.step(closure)
    return table.detach().double(), loss_of(objective, table).item()


def kullback_leibler(p: Tensor, q: Tensor) -> float:
    return float((p * (p / q).log()).sum())


@pytest.mark.parametrize("objective", [Minimax(), NonSaturating()], ids=lambda objective: objective.kind)
def test_the_best_sigmoid_is_p_over_p_plus_q(objective: Objective) -> None:
    """And its loss is 2 ln 2 less twice the Jensen-Shannon divergence (arXiv 1406.2661, prop. 1, theorem 1)."""
    table, loss = least(objective)
    torch.testing.assert_close(torch.sigmoid(table), P / (P + Q), rtol=0, atol=1e-3)
    middle = (P + Q) / 2
    jensen_shannon = (kullback_leibler(P, middle) + kullback_leibler(Q, middle)) / 2
    assert loss == pytest.approx(2 * math.log(2) - 2 * jensen_shannon, abs=1e-5)


@pytest.mark.parametrize("objective", [Minimax(real_target=0.9), NonSaturating(real_target=0.9)])
def test_smoothed_the_best_sigmoid_is_a_share_of_that(objective: Objective) -> None:
    """t p / (p + q) (arXiv 1606.03498, section 3.4), and its cross-entropy."""
    table, loss = least(objective)
    best = 0.9 * P / (P + Q)
    torch.testing.assert_close(torch.sigmoid(table), best, rtol=0, atol=1e-3)
    entropy = -((P + Q) * (best * best.log() + (1 - best) * (1 - best).log())).sum()
    assert loss == pytest.approx(entropy.item(), abs=1e-5)


@pytest.mark.parametrize("targets", [(0.0, 1.0, 1.0), (-1.0, 1.0, 0.0), (0.5, 2.0, 1.0)])
def test_the_best_least_squares_discriminator_weighs_its_targets(targets: tuple[float, float, float]) -> None:
    """(b p + a q) / (p + q) (arXiv 1611.04076, eq. 5), and (b - a)^2 / 2 times the harmonic overlap."""
    a, b, c = targets
    objective = LeastSquares(targets=targets)
    table, loss = least(objective)
    torch.testing.assert_close(table, (b * P + a * Q) / (P + Q), rtol=0, atol=1e-3)
    assert loss == pytest.approx((b - a) ** 2 / 2 * float((P * Q / (P + Q)).sum()), abs=1e-5)
    # Where b - c = 1 and b - a = 2 the generator then pays Pearson's distance of p + q from 2q (eq. 7).
    if targets == (-1.0, 1.0, 0.0):
        paid = ((P + Q) * (table - c).square()).sum() / 2
        assert paid.item() == pytest.approx(float(((2 * Q - (P + Q)).square() / (P + Q)).sum()) / 2, abs=1e-3)


@pytest.mark.parametrize(
    "objective",
    [Minimax(), NonSaturating(real_target=0.9), LeastSquares(), LeastSquares(targets=(0.5, 2.0, 1.0)), Hinge()],
    ids=lambda objective: objective.kind,
)
def test_the_best_discriminator_is_right_as_often_as_anybody_can_be(objective: Objective) -> None:
    """`(1 + total variation) / 2`, by `threshold`: with smoothed labels this is where p = q too."""
    table = torch.sign(P - Q).float() if objective.kind == "hinge" else least(objective)[0].float()
    sides = [Judgement([torch.repeat_interleave(table, count)[:, None]], [], {}) for count in (REAL, FAKE)]
    right = sum(side.item() for side in objective.accuracy(*sides)) / 2
    assert right == pytest.approx((1 + float((P - Q).abs().sum()) / 2) / 2, abs=1e-6)


def test_the_least_hinge_loss_is_the_overlap() -> None:
    """1 - total variation, at the sign of p - q (arXiv 1705.02894)."""
    best = torch.sign(P - Q).float()
    assert loss_of(Hinge(), best).item() == pytest.approx(float(torch.minimum(P, Q).sum()), abs=1e-6)
    generator = torch.Generator().manual_seed(0)
    others = [best + 3 * torch.randn(5, generator=generator) for _ in range(200)]
    assert min(loss_of(Hinge(), other).item() for other in others) >= float(torch.minimum(P, Q).sum()) - 1e-6


def test_the_gap_of_the_best_critic_is_wassersteins_distance() -> None:
    """Images on a line: of all critics whose slope is at most 1 the best one's gap is the area between both CDFs."""
    places = torch.tensor([0.0, 0.5, 2.0, 2.25, 4.0], dtype=torch.float64)
    apart = (P - Q).cumsum(0)[:-1]
    distance = float((apart.abs() * places.diff()).sum())
    slopes = torch.zeros(4, requires_grad=True)

    def critic(slopes: Tensor) -> Tensor:
        return torch.cat([torch.zeros(1), (slopes * places.diff().float()).cumsum(0)])

    # Linear in the slopes: the best ones lie at the bounds, against the gradient.
    (gradient,) = torch.autograd.grad(loss_of(Wasserstein(), critic(slopes)), slopes)
    best = -gradient.sign()
    assert torch.equal(best, -apart.sign().float())
    assert -loss_of(Wasserstein(), critic(best)).item() == pytest.approx(distance, abs=1e-6)


def test_the_best_relativistic_discriminator_of_two_images() -> None:
    """p = (s, 1 - s), q the reverse: logits w, -w with s^2 sigmoid(-2sw) = (1-s)^2 sigmoid(2(1-s)w), dL/dw = 0."""
    s, low, high = 0.75, 0.0, 50.0

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    for _ in range(100):
        w = (low + high) / 2
        rising = (1 - s) ** 2 * sigmoid(2 * (1 - s) * w) > s**2 * sigmoid(-2 * s * w)
        low, high = (low, w) if rising else (w, high)
    expected = -2 * (s * math.log(sigmoid(2 * s * w)) + (1 - s) * math.log(sigmoid(-2 * (1 - s) * w)))

    def loss(logit: Tensor) -> Tensor:
        real, fake = (logit * torch.tensor(signs) for signs in ([[1.0], [1], [1], [-1]], [[-1.0], [-1], [-1], [1]]))
        return RelativisticAverage().discriminator(Judgement([real], [], {}), Judgement([fake], [], {}))

    logit = torch.tensor(w, requires_grad=True)
    value = loss(logit)
    value.backward()
    assert logit.grad is not None and abs(logit.grad.item()) < 1e-6
    assert value.item() == pytest.approx(expected, abs=1e-6)
    assert all(loss(torch.tensor(w + step)) > value for step in (-0.1, 0.1))


@pytest.mark.parametrize(
    "objective",
    [Minimax(), NonSaturating(), NonSaturating(real_target=0.9), LeastSquares(), Hinge(), RelativisticAverage()],
)
def test_against_itself_nothing_beats_chance(objective: Objective) -> None:
    """Where p = q the best discriminator says the same of all, and its loss is `chance`."""
    same: Callable[[Tensor], Tensor] = lambda table: objective.discriminator(  # noqa: E731
        *[Judgement([torch.repeat_interleave(table, REAL)[:, None]], [], {})] * 2
    )
    table = torch.tensor([0.7, -0.5, 0.3, 1.2, -0.9], requires_grad=True)
    descent = torch.optim.Adam([table], 0.05)
    for _ in range(300):
        descent.zero_grad()
        (loss := same(table)).backward()
        descent.step()
    assert loss.item() == pytest.approx(objective.chance, abs=1e-4)


@pytest.mark.parametrize("kind", ["hinge", "least_squares", "wasserstein"])
def test_label_smoothing_without_a_sigmoid_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_recipe("vqgan-tiny-64", [f"adversary.objective={{kind: {kind}, real_target: 0.9}}"])
    assert str(error.value) == (
        "recipe vqgan-tiny-64: adversary.objective.real_target: label smoothing needs an objective with a sigmoid, and "
        f"{kind} has none: take it out, or choose one of minimax, non_saturating, relativistic_average"
    )


def test_targets_of_least_squares_must_lie_apart() -> None:
    with pytest.raises(ConfigError, match=r"^targets: images must lie above reconstructions, got \[1.0, 1.0, 1.0\]$"):
        parse(LeastSquares, {"targets": [1.0, 1.0, 1.0]})
