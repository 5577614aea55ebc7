"""Filters against brute force, the draw's distribution, seeds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prior.networks.packing import product, product_add
from prior.sampling import Sampler, draw, filter_logits, guidance_at, guide, uniforms


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.one_of(st.none(), st.integers(1, 15)), st.floats(0.01, 1.0))
def test_filters_against_brute_force(seed: int, codes: int, top_k: int | None, top_p: float) -> None:
    logits = torch.randn(codes, generator=torch.Generator().manual_seed(seed)) * 2
    kept = filter_logits(logits[None], top_k, top_p)[0]
    ranked = sorted(range(codes), key=lambda code: -logits[code].item())[: top_k or codes]
    weights = torch.tensor([logits[code] for code in ranked]).softmax(dim=0).tolist()
    wanted, reached = [], 0.0
    for code, weight in zip(ranked, weights, strict=True):
        if abs(reached - top_p) < 1e-5:
            return  # rounding decides
        if reached >= top_p:
            break
        wanted.append(code)
        reached += weight
    assert kept.isfinite().nonzero()[:, 0].tolist() == sorted(wanted)
    assert torch.equal(kept[wanted], logits[wanted])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.floats(0.0, 1.0))
def test_min_p_against_brute_force(seed: int, codes: int, min_p: float) -> None:
    logits = torch.randn(codes, generator=torch.Generator().manual_seed(seed)) * 2
    shares = (logits.double().softmax(dim=0) / logits.double().softmax(dim=0).max()).tolist()
    if any(abs(share - min_p) < 1e-5 for share in shares if share < 1):
        return  # rounding decides
    kept = filter_logits(logits[None], min_p=min_p)[0].isfinite().tolist()
    assert kept == [share >= min_p for share in shares]


def test_guidance_rises_by_its_schedule_within_its_interval() -> None:
    steps = [step / 8 for step in range(8)]
    for guidance in (3.0, 0.5, -1.0):
        linear = [guidance_at(Sampler(guidance=guidance, guidance_schedule="linear"), share) for share in steps]
        assert linear == pytest.approx([1 + (guidance - 1) * step / 8 for step in range(8)])
        for power in (0.5, 1.0, 2.75):
            sampler = Sampler(guidance=guidance, guidance_schedule="cosine", guidance_power=power)
            found = [guidance_at(sampler, share) for share in steps]
            wanted = [1 + (guidance - 1) * (1 - math.cos(math.pi * share**power)) / 2 for share in steps]
            assert found == pytest.approx(wanted) and found[0] == 1
            assert guidance_at(sampler, 1.0) == pytest.approx(guidance)
        for constant in (
            Sampler(guidance=guidance),
            Sampler(guidance=guidance, guidance_schedule="cosine", guidance_power=0),
        ):
            assert [guidance_at(constant, share) for share in steps] == pytest.approx([guidance] * 8)
        between = Sampler(guidance=guidance, guidance_interval=(0.25, 0.5))
        assert [guidance_at(between, share) for share in steps] == [1, 1, *[guidance] * 3, 1, 1, 1]
    for interval, says in (([0.5, 0.2], "ends before it begins"), ([-0.1, 1.0], "guidance_interval"), ([0.1], "guid")):
        with pytest.raises(ValueError, match=says):
            Sampler(guidance_interval=interval)


def test_ties_and_the_likeliest_stay() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0]])
    assert filter_logits(logits, top_k=1).isfinite().tolist() == [[False, True, True, False]]
    assert filter_logits(logits, top_p=1e-6).isfinite().tolist() == [[False, True, False, False]]
    assert torch.equal(filter_logits(logits, 4, 1.0), logits)


def test_draw_follows_the_distribution() -> None:
    logits = torch.tensor([float("-inf"), 1.0, 0.0, float("-inf"), 2.0, -1.0, float("-inf")])
    uniform = uniforms(1, 200_000, 3)[0]
    for sampler in (
        Sampler(),
        Sampler(temperature=0.5),
        Sampler(top_k=2),
        Sampler(top_p=0.8, temperature=2.0),
        Sampler(min_p=0.3),
    ):
        codes = draw(logits.expand(200_000, -1), sampler, uniform)
        tempered = logits[None] / sampler.temperature
        wanted = filter_logits(tempered, sampler.top_k, sampler.top_p, sampler.min_p).softmax(dim=-1)[0]
        counts = torch.bincount(codes, minlength=7) / 200_000
        assert (counts - wanted).abs().max() < 0.005
        assert bool((counts[wanted == 0] == 0).all())


def test_the_ends_of_the_unit_interval_draw_possible_codes() -> None:
    logits = torch.tensor([float("-inf"), 0.0, 0.3, -20.0, float("-inf")]).expand(2, -1)
    assert draw(logits, Sampler(), torch.tensor([0.0, 1 - 2**-24])).tolist() in ([1, 2], [1, 3])


def test_uniforms_depend_on_seed_and_sample_alone() -> None:
    rows = uniforms(6, 10, seed=4)
    assert torch.equal(uniforms(2, 10, seed=4, first=3), rows[3:5])
    assert torch.equal(uniforms(6, 7, seed=4), rows[:, :7])
    everything = torch.cat([uniforms(50, 4, seed) for seed in range(20)])
    assert everything.unique(dim=0).shape[0] == 1000
    assert everything.min() >= 0 and everything.max() < 1
    assert abs(everything.mean() - 0.5) < 0.02


def test_guide() -> None:
    conditional, unconditional = torch.randn(3, 5), torch.randn(3, 5)
    conditional[:, 4] = unconditional[:, 4] = float("-inf")
    guided = guide(torch.cat((conditional, unconditional)), 2.5)
    torch.testing.assert_close(guided[:, :4], (unconditional + 2.5 * (conditional - unconditional))[:, :4])
    assert bool((guided[:, 4] == float("-inf")).all())


def test_products() -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.05), (torch.float64, 1e-12)):
        weight, x, y = (torch.randn(*shape).to(dtype) for shape in ((24, 40), (3, 40), (3, 24)))
        torch.testing.assert_close(product(weight, 3)(x), x @ weight.T, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(product_add(weight, 3)(x, y), y + x @ weight.T, atol=tolerance, rtol=tolerance)
