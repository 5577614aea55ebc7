"""Law 13 on every objective: its losses on given logits; a case says which laws do not apply and why."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from tests.laws.adversaries import OBJECTIVES, ObjectiveCase
from tests.laws.measure import Steps, at_logits, judged, logits, two_equal_one
from tokenizers_vq.discriminators.base import Judgement
from tokenizers_vq.losses import ObjectiveConfig


@OBJECTIVES.law("processes")
def test_objectives_of_two_processes_equal_one(case: ObjectiveCase, shared_steps: list[Steps]) -> None:
    two_equal_one(shared_steps, OBJECTIVES.noun, case.name)


@OBJECTIVES.law("formula")
def test_losses_are_those_of_their_formulas(case: ObjectiveCase) -> None:
    real, fake = logits(scale=3.0)
    record = judged(real, fake)
    for loss, formula in (
        (case.config.generator(record), case.generator),
        (case.config.discriminator(record.real, record.fake), case.discriminator),
    ):
        scales = [formula(r.double(), f.double()) for r, f in zip(real, fake, strict=True)]
        assert loss.shape == () and loss.dtype == torch.float32
        assert loss.item() == pytest.approx(float(sum(scales)) / len(scales), rel=1e-5)


@OBJECTIVES.law("chance")
def test_chance_is_the_least_loss_of_one_answer_to_all(case: ObjectiveCase) -> None:
    same = [Judgement([torch.full((4, 1), value)], [], {}) for value in torch.linspace(-4, 4, 801).tolist()]
    losses = [case.config.discriminator(judgement, judgement).item() for judgement in same]
    assert min(losses) == pytest.approx(case.config.chance, abs=1e-5)
    reals = [Judgement([torch.full((4, 1), value)], [], {}) for value in torch.linspace(-31, 31, 621).tolist()]
    fakes = [Judgement([torch.full((4, 1), value)], [], {}) for value in (-30.0, -1.0, 0.0)]
    best = min(case.config.discriminator(real, fake).item() for real in reals for fake in fakes)
    if case.config.best == -math.inf:
        assert best < -60
    else:
        assert best == pytest.approx(case.config.best, abs=1e-4)


@OBJECTIVES.law("accuracy")
def test_accuracy_is_the_share_of_right_answers(case: ObjectiveCase) -> None:
    at = case.config.threshold
    (above, below), same = (Judgement([at + part for part in side], [], {}) for side in _apart()), _said(at)
    assert case.config.accuracy(above, below) == (1, 1)
    assert case.config.accuracy(below, above) == (0, 0)
    assert sum(case.config.accuracy(same, same)) == 1
    assert case.config.discriminator(same, same).item() == pytest.approx(case.config.chance, abs=1e-5)
    # Of four images one is taken for a fake, of four reconstructions two for real, at the one scale of two.
    mixed = _said(at, [2.0, 3.0, 1.5, -9.0]), _said(at, [-2.0, -3.0, 1.1, 8.0])
    found = case.config.accuracy(*mixed)
    assert [side.item() for side in found] == pytest.approx([0.875, 0.75])


def _apart() -> list[list[torch.Tensor]]:
    return [[sign * torch.tensor([[1.0], [2.0]]), sign * torch.rand(2, 1, 3, 3)] for sign in (1, -1)]


def _said(at: float, beyond: Sequence[float] = (0.0, 0.0, 0.0, 0.0)) -> Judgement:
    """Two scales; at the other one images and reconstructions are what they should be, if these are."""
    sign = 1.0 if sum(beyond[:2]) >= 0 else -1.0
    other = torch.full((4, 1), sign) if any(beyond) else torch.zeros(4, 1)
    return Judgement([at + torch.tensor(beyond).view(4, 1), at + other], [], {})


@OBJECTIVES.law("descent")
def test_generator_and_discriminator_pull_the_logits_apart_and_together(case: ObjectiveCase) -> None:
    near = ([part + case.between for part in side] for side in logits(scale=0.1))
    for name, gradient in at_logits(case, *near).items():
        assert gradient.sum() > 0 if name.startswith("fake") else gradient.sum() < 0, name


@OBJECTIVES.law("finite")
def test_losses_and_gradients_are_finite_far_out(case: ObjectiveCase) -> None:
    far = [torch.tensor([[1e4], [-1e4]])]
    for sign in (1, -1):
        sides = far, [sign * part for part in far]
        record = judged(*sides)
        losses = case.config.generator(record), case.config.discriminator(record.real, record.fake)
        assert all(loss.isfinite() for loss in losses)
        assert all(gradient.isfinite().all() for gradient in at_logits(case, *sides).values())


@OBJECTIVES.law("precision")
def test_objectives_are_float32_under_autocast(case: ObjectiveCase) -> None:
    real, fake = ([part.bfloat16() for part in side] for side in logits())
    exact = judged([part.float() for part in real], [part.float() for part in fake])
    with torch.autocast("cpu", torch.bfloat16):
        record = judged(real, fake)
        losses = case.config.generator(record), case.config.discriminator(record.real, record.fake)
    expected = case.config.generator(exact), case.config.discriminator(exact.real, exact.fake)
    assert all(loss.dtype == torch.float32 for loss in losses)
    torch.testing.assert_close(losses, expected)


@OBJECTIVES.law("described")
def test_an_objective_is_of_the_union(case: ObjectiveCase) -> None:
    read: Any = TypeAdapter(ObjectiveConfig).validate_python(json.loads(json.dumps(case.config.to_dict())))
    assert read == case.config and read.chance == case.config.chance
