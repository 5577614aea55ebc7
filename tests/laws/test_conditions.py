"""Law 11 on every condition, under GPT and MaskGIT; a case says what does not apply and why (`tests.laws.table`)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import prior
from tests.laws.conditions import CONDITIONS, LAYOUT, TINY, Case
from tests.laws.priors import all_rows, rows, step_by_step, stopped_and_resumed


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_exemptions_name_a_law_and_a_reason() -> None:
    CONDITIONS.check()


@CONDITIONS.law("alone")
def test_a_row_is_told_the_same_alone(case: Case) -> None:
    model, tokens = case.spread(), rows(LAYOUT, 4)
    with torch.no_grad():
        together = model.logits(tokens, case.told([0, 3, 5, 6]))
        for row, number in enumerate([0, 3, 5, 6]):
            alone = model.logits(tokens[row : row + 1], case.told([number]))
            torch.testing.assert_close(alone, together[row : row + 1], atol=2e-4, rtol=1e-4)
    context = model.context(case.told([0, 3]), 2)
    assert context.mask is None or bool(context.mask[:, -1].all())  # padding never stands last


@CONDITIONS.law("cache")
def test_place_by_place_gives_the_logits_of_all_at_once(case: Case) -> None:
    model, tokens = case.spread(), rows(LAYOUT, 3)
    with torch.no_grad():
        for told in (case.told([1, 4, 6]), None):
            found = step_by_step(model, tokens, told, 0)
            torch.testing.assert_close(found, model.logits(tokens, told), atol=5e-5, rtol=1e-4)


@CONDITIONS.law("seeds")
def test_drawing_follows_the_seed(case: Case) -> None:
    model = case.spread()
    codes = model.sample(4, case.told([0, 1, 2, 7]), seed=5)
    assert torch.equal(codes, model.sample(4, case.told([0, 1, 2, 7]), seed=5))
    assert not torch.equal(codes, model.sample(4, case.told([0, 1, 2, 7]), seed=6))
    assert torch.equal(codes[1:3], model.sample(2, case.told([1, 2]), seed=5, first=1))


@CONDITIONS.law("guidance")
def test_guidance_one_is_off(case: Case) -> None:
    model = case.spread()
    off = model.sample(6, case.told([1] * 6), seed=1)
    assert torch.equal(off, model.sample(6, case.told([1] * 6), seed=1, guidance=1.0))
    assert not torch.equal(off, model.sample(6, case.told([1] * 6), seed=1, guidance=6))
    for refused in (lambda: model.sample(6, guidance=2), lambda: case.build(0.0).sample(1, case.told([1]), guidance=2)):
        with pytest.raises(ValueError, match=r"guidance 2 (needs|compares)") as caught:
            refused()
        assert "\n" not in str(caught.value)


@CONDITIONS.law("null")
def test_nothing_in_any_form_is_the_null(case: Case) -> None:
    model = case.spread()
    null = model.context(case.told([0, 1]), 2).null
    assert null is not None
    for nothing in case.nothing:
        found = model.context(nothing, 2)
        torch.testing.assert_close(found.vectors, null.vectors, atol=1e-5, rtol=1e-4)
        assert (found.mask is None) == (null.mask is None)
        assert found.mask is None or null.mask is None or torch.equal(found.mask, null.mask)
    with pytest.raises(ValueError, match="never learnt to do without"):
        case.build(0.0).sample(2)


@CONDITIONS.law("dropout")
def test_rows_are_left_out_at_the_rate(case: Case) -> None:
    model, count = case.build(0.3).train(), 1000
    told = case.told([number % 8 for number in range(count)])
    with torch.no_grad():
        found = model.context(told, count)
        assert found.null is not None
        gone = (found.vectors - found.null.vectors).abs().amax(dim=(1, 2)) < 1e-4
        if found.mask is not None and found.null.mask is not None:
            gone &= (found.mask == found.null.mask).all(dim=1)
        assert abs(float(gone.float().mean()) - 0.3) < 4.5 * (0.21 / count) ** 0.5
        first, second = (model.eval().context(told, count).vectors for _ in range(2))
    assert torch.equal(first, second)


@CONDITIONS.law("learns")
def test_eight_rows_are_learnt_and_drawn(case: Case) -> None:
    model, tokens = case.build(0.0), all_rows(TINY)[torch.randperm(81)[:8]].repeat_interleave(2, 1)[:, 1:7]
    every = case.told(range(8))
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=5e-3, weight_decay=0)
    for step in range(case.steps):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / case.steps)
        optimizer.zero_grad()
        model(tokens, every).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        assert -model.log_likelihood(tokens, every).min() / LAYOUT.length < 0.1
        assert -model.log_likelihood(tokens, case.told(range(7, -1, -1))).mean() / LAYOUT.length > 0.5
    assert torch.equal(model.sample(8, every, temperature=0), tokens)


@CONDITIONS.law("likelihood")
def test_likelihoods_are_those_of_a_distribution(case: Case) -> None:
    model, everything = case.spread(TINY), all_rows(TINY)
    with torch.no_grad():
        for told in (case.told([3] * len(everything)), None):
            total = float(model.log_likelihood(everything, told).double().exp().sum())
            assert abs(total - 1) < 1e-4 if model.exact else 0 < total < 1 + 1e-4


@CONDITIONS.law("resume")
def test_training_goes_on_bitwise(case: Case) -> None:
    models = [case.build(0.3) for _ in range(3)]
    expected, found = stopped_and_resumed(models, lambda step: case.told([step, 1, 2, 7]), half=2, steps=4)
    assert torch.equal(found, expected)


@CONDITIONS.law("saved")
def test_saved_and_loaded(case: Case, tmp_path: Path) -> None:
    model = case.spread()
    model.save_pretrained(tmp_path / "p")
    again = prior.load(tmp_path / "p")
    assert again.config == model.config and again.state_dict().keys() == model.state_dict().keys()
    told = case.told([2, 5])
    assert torch.equal(again.sample(2, told), model.sample(2, told))
