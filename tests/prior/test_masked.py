"""Masked priors beyond law 11: schedules, orders, the loss against its formula, what is drawn at each step."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prior.conditions import ClassConfig
from prior.model import Prior, PriorConfig
from prior.networks.gpt import GptConfig
from prior.networks.masked import SCHEDULES, MaskedSampler, halton, halton_order, left_masked, tempered
from prior.networks.maskgit import MaskGitConfig
from prior.sampling import Sampler
from prior.sequences import LayoutConfig
from tests.laws.priors import all_rows, rows
from tokenizers_vq.codes import CodeLayout

LAYOUT = CodeLayout(((4, 5),), 2, (7, 5))


def build(layout: CodeLayout = LAYOUT, classes: int = 3, **fields: float) -> Prior:
    network = MaskGitConfig(**{"layers": 2, "dim": 32, "heads": 2, **fields})
    made = Prior(
        PriorConfig(network=network, condition=ClassConfig(num_classes=classes), layout=LayoutConfig.of(layout))
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made.eval()


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_fall_from_all_to_nothing(name: str) -> None:
    shares = SCHEDULES[name](torch.linspace(0, 1, 101, dtype=torch.float64))
    assert shares[0] == 1 and abs(float(shares[-1])) < 1e-12 and bool((shares.diff() < 0).all())
    half = {"cosine": math.cos(math.pi / 4), "arccos": 2 / 3, "linear": 0.5, "square": 0.75}[name]
    assert float(shares[50]) == pytest.approx(half)


def test_every_step_draws_one_code_at_least_and_the_last_all() -> None:
    for steps in (1, 3, 8, 40):
        sampler = MaskedSampler(steps=steps)
        unknown = torch.tensor([0, 1, 5, 20, 256])
        now = unknown
        for step in range(steps):
            left = left_masked(unknown, now, step, sampler)
            assert bool(((left < now) | (now == 0)).all()) and bool((left >= 0).all())
            if step + 1 < steps:  # one is kept for the steps that follow, while there is one
                assert bool((left[now > 1] >= 1).all())
                # as many as the schedule says, where those before left enough to choose from
                wanted = (unknown * math.cos(math.pi / 2 * (step + 1) / steps)).floor().clamp(min=1)
                assert bool((left == torch.minimum(wanted, now - 1).clamp(min=0)).all())
            now = left
        assert not now.any()


def test_halton_s_points_and_order() -> None:
    assert halton(6, 2).tolist() == [0.5, 0.25, 0.75, 0.125, 0.625, 0.375]
    torch.testing.assert_close(halton(4, 3), torch.tensor([1 / 3, 2 / 3, 1 / 9, 4 / 9], dtype=torch.float64))
    order = halton_order(CodeLayout(((4, 6),), 1, (2,)))
    assert sorted(order.tolist()) == list(range(24))
    assert [divmod(int(place), 6) for place in order[:3]] == [(2, 2), (1, 4), (3, 0)]
    several = CodeLayout(((1, 1), (2, 3)), 2, (3, 3, 3, 3))
    order = halton_order(several)
    assert order[:2].tolist() == [0, 1] and sorted(order.tolist()) == list(range(14))
    assert bool((order.view(-1, 2).diff(dim=1) == 1).all())  # levels follow each other
    assert sorted(halton_order(CodeLayout(((64, 64),), 1, (2,))).tolist()) == list(range(4096))
    assert halton_order(CodeLayout(((8,),), 1, (2,))).tolist() == [4, 2, 6, 1, 5, 3, 7, 0]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_smoothed_cross_entropy_of_masked_codes(smoothing: float) -> None:
    model = build(label_smoothing=smoothing)
    tokens = rows(LAYOUT, 6)
    seen: list[tuple[Tensor, Tensor]] = []
    hook = model.network.register_forward_hook(lambda module, given, out: seen.append((given[0], out)))
    torch.manual_seed(3)
    loss = model(tokens, 1)
    hook.remove()
    ((given, raw),) = seen
    assert torch.equal(given[given >= 0], tokens[given >= 0])
    counts = (given < 0).sum(dim=1)
    assert int(counts.min()) >= 1 and len(set(counts.tolist())) > 1
    sizes, losses = torch.tensor(LAYOUT.sizes)[LAYOUT.streams()], []
    for row, place in (given < 0).nonzero().tolist():
        size = int(sizes[place])
        losses.append(F.cross_entropy(raw[row, place, :size], tokens[row, place], label_smoothing=smoothing))
    torch.testing.assert_close(loss, torch.stack(losses).mean())


def test_the_schedule_says_how_many_codes_are_masked() -> None:
    layout = CodeLayout(((10, 10),), 1, (3,))
    for name, mean in (("cosine", 2 / math.pi), ("linear", 0.5), ("square", 2 / 3), ("arccos", 2 / math.pi)):
        model = build(layout, schedule=name, layers=1, dim=8)
        seen: list[Tensor] = []
        hook = model.network.register_forward_hook(lambda module, given, out, seen=seen: seen.append(given[0]))
        with torch.no_grad():
            model(rows(layout, 300), 0)
        hook.remove()
        assert abs(float((seen[0] < 0).float().mean()) - mean) < 0.05


@pytest.mark.parametrize("order", ["confidence", "halton", "random"])
def test_codes_once_kept_stay_and_orders_are_kept(order: str) -> None:
    model = build()
    seen: list[Tensor] = []
    hook = model.network.register_forward_hook(lambda module, given, out: seen.append(given[0].clone()))
    codes = model.sample(3, [0, 1, 2], order=order, steps=6, choice_temperature=1.0)
    hook.remove()
    assert len(seen) == 6
    places = halton_order(LAYOUT)
    for step, (before, after) in enumerate(zip(seen, [*seen[1:], codes], strict=True)):
        assert torch.equal(after[before >= 0], before[before >= 0])
        left = {int(count) for count in (after < 0).sum(dim=1)}
        assert left == {0 if step == 5 else max(1, math.floor(40 * math.cos(math.pi / 2 * (step + 1) / 6)))}
        if order == "halton":
            count = int((after[0] >= 0).sum())
            assert bool((after[:, places[:count]] >= 0).all())
    assert torch.equal(codes[1:2], model.sample(1, 1, order=order, steps=6, choice_temperature=1.0, first=1))


def test_halton_s_order_may_begin_anywhere() -> None:
    model, layout = build(), LAYOUT
    seen: list[Tensor] = []
    hook = model.network.register_forward_hook(lambda module, given, out: seen.append(given[0].clone()))
    settings = {"order": "halton", "halton_start": "random", "steps": layout.length}
    codes = model.sample(6, 1, **settings)
    hook.remove()
    order, begins = halton_order(layout).tolist(), []
    for row in range(6):
        after = [*seen[1:], codes]
        taken = [int(((now >= 0) & (then < 0))[row].nonzero()) for then, now in zip(seen, after, strict=True)]
        begins.append(order.index(taken[0]))
        assert taken == order[begins[-1] :] + order[: begins[-1]]
    assert len(set(begins)) > 2 and not any(begin % layout.levels for begin in begins)
    assert torch.equal(codes[2:3], model.sample(1, 1, first=2, **settings))
    several = CodeLayout(((1, 1), (2, 3)), 1, (3, 3))  # coarse grids stay first
    assert (model_order(several, 5)[:, 0] == 0).all()


def model_order(layout: CodeLayout, count: int) -> Tensor:
    """`(count, N)`: places in the order in which they are kept."""
    model = build(layout)
    seen: list[Tensor] = []
    hook = model.network.register_forward_hook(lambda module, given, out: seen.append((given[0] < 0).long()))
    model.sample(count, 1, order="halton", halton_start="random", steps=layout.length)
    hook.remove()
    return torch.stack(seen).sum(dim=0).argsort(dim=1)


def test_temperatures_of_the_published_samplers() -> None:
    model = build()
    settings = {"order": "halton", "steps": 5}
    warm = model.sample(4, 1, temperature=2.0, **settings)
    assert torch.equal(warm, model.sample(4, 1, logit_temperature=(2.0, 2.0), **settings))
    assert not torch.equal(warm, model.sample(4, 1, **settings))
    cold = model.sample(4, 1, temperature=0, order="halton", steps=1)
    assert torch.equal(cold, model.sample(4, 1, temperature=9.0, annealed=True, order="halton", steps=1))
    logits = torch.ones(1)
    for step, divisor in ((0, 1.1), (3, 0.5)):  # of TiTok's 4 steps: 0.5 + 0.8 (1 - (i + 1) / 4)
        sampler = MaskedSampler(steps=4, temperature=3.0, annealed=True, logit_temperature=(1.3, 0.5))
        found, there = tempered(logits, step, sampler)
        assert float(found) == pytest.approx(1 / divisor)
        assert there.temperature == pytest.approx(3 * (1 - (step + 1) / 4))


def test_without_noise_the_surest_codes_come_first() -> None:
    model = build()
    seen: list[Tensor] = []
    hook = model.network.register_forward_hook(lambda module, given, out: seen.append(given[0].clone()))
    codes = model.sample(1, 2, temperature=0, choice_temperature=0, steps=4)
    hook.remove()
    with torch.no_grad():
        sure = model.logits(torch.full((1, 40), -1), 2).log_softmax(dim=-1).amax(dim=-1)[0]
    kept = seen[1][0] >= 0
    assert sure[kept].min() >= sure[~kept].max()
    best = model.logits(torch.full((1, 40), -1), 2).argmax(dim=-1)[0]
    assert torch.equal(codes[0][kept], best[kept])


def test_a_sampler_belongs_to_a_kind() -> None:
    model = build()
    assert torch.equal(model.sample(2, 0, Sampler(seed=3)), model.sample(2, 0, MaskedSampler(seed=3)))
    network = GptConfig(layers=1, dim=32, heads=2, multiple=16)
    gpt = Prior(PriorConfig(network=network, layout=LayoutConfig.of(LAYOUT)))
    for call, says in (
        (
            lambda: gpt.sample(2, None, MaskedSampler()),
            "a gpt prior is drawn with AutoregressiveSampler, got MaskedSampler",
        ),
        (lambda: gpt.sample(2, steps=3), "steps: no such field"),
        (lambda: model.sample(2, 0, order="haltn"), "order: input should be 'confidence', 'halton' or 'random'"),
        (lambda: model.sample(2, 0, steps=0), "steps: input should be greater than or equal to 1"),
        (lambda: gpt.logits(torch.full((1, 40), -1)), "is -1, outside"),
        (lambda: model.logits(torch.full((1, 40), -2)), "is -2, outside"),
        (lambda: MaskGitConfig(layers=1, dim=32, heads=3), "heads: 3 heads do not divide the width 32"),
    ):
        with pytest.raises(ValueError, match=says):
            call()


def chain(model: Prior, tokens: Tensor, order: list[int], condition: int) -> Tensor:
    """`(B,)` nats of the codes, told one after the other in an order."""
    codes, total = torch.full_like(tokens, -1), torch.zeros(len(tokens))
    for place in order:
        logp = model.logits(codes, condition)[:, place].log_softmax(dim=-1)
        total += logp.gather(1, tokens[:, place : place + 1])[:, 0]
        codes[:, place] = tokens[:, place]
    return total


@pytest.mark.parametrize("layout", [CodeLayout(((2, 2),), 1, (3,)), CodeLayout(((1, 1), (1, 2)), 1, (4, 3))])
def test_one_code_a_step_draws_from_the_product_of_its_probabilities(layout: CodeLayout) -> None:
    model, everything, count = build(layout), all_rows(layout), 6000
    order = halton_order(layout).tolist()
    with torch.no_grad():
        wanted = chain(model, everything, order, 1).exp()
        assert float(wanted.sum()) == pytest.approx(1, abs=1e-4)
        for guidance in (1.0, 2.0):
            drawn = model.sample(count, 1, order="halton", steps=layout.length, guidance=guidance)
            shares = (drawn[:, None] == everything).all(dim=-1).sum(dim=0) / count
            close = ((shares - wanted).abs() < 4.5 * (wanted / count).sqrt() + 2 / count).all()
            assert bool(close) == (guidance == 1)
    shuffled = torch.randperm(layout.length, generator=torch.Generator().manual_seed(0)).tolist()
    with torch.no_grad():  # the bound is the likelihood of one such way
        found, told = model.log_likelihood(everything, 1), chain(model, everything, shuffled, 1)
    torch.testing.assert_close(found, told, atol=1e-5, rtol=1e-5)
