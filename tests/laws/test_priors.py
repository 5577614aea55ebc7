"""Law 11 on every prior and kind of layout; a case says what does not apply and why (`tests.laws.table`)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prior.model import Prior
from prior.sampling import Sampler
from tests.laws.priors import CASES, PRIORS, TINY, Case, all_rows, by_name, dependence, rows, stopped_and_resumed
from tests.processes import in_processes


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def cold(prior: Prior, **settings: Any) -> Sampler:
    """The likeliest codes."""
    return prior.network.Sampler(temperature=0, **settings)


def test_exemptions_name_a_law_and_a_reason() -> None:
    PRIORS.check()


@PRIORS.law("layouts")
def test_a_layout_is_taken_or_refused(case: Case) -> None:
    if case.refusal is not None:
        with pytest.raises(ValueError, match=case.refusal) as caught:
            case.build()
        assert "\n" not in str(caught.value)
        return
    model, layout = case.spread(), case.layout
    assert model.network.exact == model.exact and model.network.trunk_blocks()
    sizes = torch.tensor(layout.sizes)[layout.streams()]
    tokens = rows(layout, 2)
    logits = model.logits(tokens)
    assert logits.shape == (2, layout.length, max(layout.sizes))
    impossible = torch.arange(max(layout.sizes)) >= sizes[:, None]
    assert torch.equal(logits.isneginf(), impossible.expand(2, -1, -1)) and not logits.isnan().any()
    codes = model.sample(32, temperature=5.0)
    assert codes.dtype == torch.int64 and bool(((codes >= 0) & (codes < sizes)).all())
    assert torch.equal(layout.flatten(layout.unflatten(codes)), codes)
    assert bool(model.log_likelihood(codes).isfinite().all())
    assert model(tokens).shape == () and bool(model(tokens).isfinite())


@PRIORS.law("causality")
def test_logits_depend_on_what_they_may_see(case: Case) -> None:
    model = case.spread()
    found = dependence(model) if case.embedded is None else _by_gradient(model, case.embedded(model))
    assert torch.equal(found, case.sees(case.layout))


def _by_gradient(model: Prior, embedded: nn.Module) -> Tensor:
    """Bool `(N, N)`: the logits of a place (row) have a gradient to the vector of a code (column)."""
    layout, vectors = model.layout, []
    hook = embedded.register_forward_hook(lambda module, given, out: vectors.append(out))
    logits = model.logits(rows(layout, 1))
    hook.remove()
    finite = logits.masked_fill(logits.isinf(), 0)
    found = torch.zeros(layout.length, layout.length)
    for place in range(layout.length):
        target = (finite[0, place] * torch.randn(logits.shape[-1])).sum()
        gradients = torch.autograd.grad(target, vectors, retain_graph=True, allow_unused=True)
        for gradient in gradients:
            if gradient is not None:
                found[place, : gradient.shape[1]] += gradient[0].abs().sum(dim=-1)
    return found > 0


@PRIORS.law("cache")
@pytest.mark.parametrize("classes", [None, 3])
def test_place_by_place_gives_the_logits_of_all_at_once(case: Case, classes: int | None) -> None:
    model, layout = case.spread(classes=classes), case.layout
    tokens, told = rows(layout, 3), None if classes is None else torch.arange(3)
    with torch.no_grad():
        wanted = model.logits(tokens, told)
        for start in (0, 1, layout.length // 2, layout.length - 1):
            found = case.stepwise(model, tokens, told, start)
            torch.testing.assert_close(found, wanted[:, start:], atol=2e-5, rtol=1e-5)


@PRIORS.law("seeds")
@pytest.mark.parametrize("classes", [None, 3])
def test_drawing_follows_the_seed(case: Case, classes: int | None) -> None:
    model, labels = case.spread(classes=classes), None if classes is None else [0, 1, 2, 0]
    codes = model.sample(4, labels, seed=5)
    torch.manual_seed(1)  # the generator of everything else is nothing to it
    assert torch.equal(codes, model.sample(4, labels, seed=5))
    assert not torch.equal(codes, model.sample(4, labels, seed=6))
    assert torch.equal(codes[2:3], model.sample(1, None if labels is None else labels[2], seed=5, first=2))
    assert torch.equal(codes[1:3], model.sample(2, None if labels is None else labels[1:3], seed=5, first=1))
    assert len({tuple(row) for row in codes.tolist()}) > 1  # of a sharp distribution two may be alike


@PRIORS.law("guidance")
def test_guidance_one_is_off(case: Case) -> None:
    model = case.spread(classes=3)
    off = model.sample(6, 1, seed=1)
    assert torch.equal(off, model.sample(6, 1, seed=1, guidance=1.0))
    assert torch.equal(off, model.sample(6, 1, seed=1, guidance=1.0000001))
    assert not torch.equal(off, model.sample(6, 1, seed=1, guidance=4))
    with pytest.raises(ValueError, match="guidance 2 needs a class"):
        model.sample(6, guidance=2)
    with pytest.raises(ValueError, match="guidance 2 needs a condition"):
        case.spread().sample(6, guidance=2)
    with pytest.raises(ValueError, match="never learnt"):
        case.build(classes=3, dropout=0.0).sample(6, 1, guidance=2)


@PRIORS.law("known")
@pytest.mark.parametrize("guidance", [1, 2])
def test_known_codes_are_kept(case: Case, guidance: float) -> None:
    model, layout = case.spread(classes=3), case.layout
    codes, half = rows(layout, 3), rows(layout, 3)
    half[:, layout.length // 2 :] = -1
    scattered = torch.where(torch.rand(3, layout.length) < 0.4, codes, -1)
    row = scattered[0]
    for known in (codes, half, scattered, row):
        drawn = model.sample(3, 0, guidance=guidance, known=known)
        kept = known.expand(3, -1)
        assert torch.equal(drawn[kept >= 0], kept[kept >= 0])
        assert bool((drawn >= 0).all())
    assert not torch.equal(model.sample(3, 0, known=half), model.sample(3, 0, known=half, seed=1))


@PRIORS.law("learns")
def test_eight_rows_are_learnt_and_drawn(case: Case) -> None:
    model = case.build(classes=8, dropout=0.0)
    tokens, labels = rows(case.layout, 8), torch.arange(8)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=5e-3, weight_decay=0)
    for step in range(case.steps):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / case.steps)
        optimizer.zero_grad()
        model(tokens, labels).backward()
        optimizer.step()
    model.eval()
    assert -model.log_likelihood(tokens, labels).min() / case.layout.length < 0.02
    assert torch.equal(model.sample(8, labels, cold(model)), tokens)


@PRIORS.law("likelihood")
def test_likelihoods_are_those_of_a_distribution(case: Case) -> None:
    model, everything = case.spread(TINY[case.layout_name], classes=2), all_rows(TINY[case.layout_name])
    with torch.no_grad():
        found = model.log_likelihood(everything, 1)
        assert found.shape == (len(everything),) and found.dtype == torch.float32
        total = float(found.double().exp().sum())
        assert abs(total - 1) < 1e-4 if model.exact else 0 < total < 1 + 1e-4
        torch.testing.assert_close(model.log_likelihood(everything[5:6], 1), found[5:6], atol=1e-5, rtol=1e-5)
        assert torch.equal(model.log_likelihood(everything, 1), found)


@PRIORS.law("draws")
def test_rows_are_drawn_as_often_as_is_likely(case: Case) -> None:
    layout, count = TINY[case.layout_name], 6000
    model, everything = case.spread(layout, classes=2), all_rows(layout)
    with torch.no_grad():
        wanted = model.log_likelihood(everything, 0).exp()
    drawn = model.sample(count, 0)
    shares = (drawn[:, None] == everything).all(dim=-1).sum(dim=0) / count
    assert ((shares - wanted).abs() < 4.5 * (wanted / count).sqrt() + 2 / count).all()


def _gradients(rank: int, world: int, name: str, state: dict[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
    model = by_name(name).build(classes=2)
    model.load_state_dict(state)
    share = len(tokens) // world
    mine, labels = tokens[rank * share :][:share], (torch.arange(len(tokens)) % 2)[rank * share :][:share]
    wrapped = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    wrapped(mine, labels).backward()  # in eval mode: what is dropped is drawn in each process
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def _all_gradients(rank: int, world: int, jobs: list[tuple]) -> list[dict[str, Tensor]]:
    return [_gradients(rank, world, *job) for job in jobs]


@pytest.fixture(scope="module")
def gradients() -> dict[str, list[dict[str, Tensor]]]:
    """By a case's name: of one process, then of each of two, started once for all cases."""
    torch.manual_seed(0)
    tried = [case for case in CASES if "processes" not in case.exempt]
    jobs = [(case.name, case.spread(classes=2).state_dict(), rows(case.layout, 8)) for case in tried]
    runs = [_all_gradients(0, 1, jobs), *in_processes(2, _all_gradients, jobs)]
    return {job[0]: [run[number] for run in runs] for number, job in enumerate(jobs)}


@PRIORS.law("processes")
def test_two_processes_equal_one(case: Case, gradients: dict[str, list[dict[str, Tensor]]]) -> None:
    alone, *pair = gradients[case.name]
    assert alone
    for found in pair:
        assert found.keys() == alone.keys()
        for name, gradient in alone.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


@PRIORS.law("resume")
def test_training_goes_on_bitwise(case: Case) -> None:
    models = [case.build(classes=2, dropout=0.3) for _ in range(3)]
    expected, found = stopped_and_resumed(models, lambda step: torch.arange(4) % 2, half=3, steps=5)
    assert torch.equal(found, expected)
    state = models[2].state_dict()
    assert not [name for name, value in models[0].state_dict().items() if not torch.equal(state[name], value)]
