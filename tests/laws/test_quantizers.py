"""Laws 1 to 10 on every quantizer; a case says which do not apply and why (`tests.laws.table` prints them all)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.laws.quantizers import CASES, LAWS, Case, by_name
from tests.processes import in_processes
from tokenizers_vq.codes import Codes
from tokenizers_vq.quantizers import Quantizer, VectorQuantizer


def law(name: str) -> Callable[[Callable], Callable]:
    """Names the law that a test holds a quantizer to."""
    assert name in LAWS

    def mark(test: Callable) -> Callable:
        test.law = name  # type: ignore[attr-defined]
        return test

    return mark


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    applies = request.function.law
    if applies in request.param.exempt:
        pytest.skip(f"{applies} does not apply: {request.param.exempt[applies]}")
    return request.param


def state(quantizer: Quantizer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}


def same(left: Codes, right: Codes) -> bool:
    parts = [codes if isinstance(codes, tuple) else (codes,) for codes in (left, right)]
    return all(torch.equal(*pair) for pair in zip(*parts, strict=True))


def joined(results: list[Any]) -> Codes:
    return tuple(map(torch.cat, zip(*results, strict=True))) if isinstance(results[0], tuple) else torch.cat(results)


def test_exemptions_name_a_law_and_a_reason() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        assert set(case.exempt) <= set(LAWS), case.name
        assert all(len(reason) > 15 and "\n" not in reason for reason in case.exempt.values()), case.name


@law("lookup")
def test_lookup_is_what_forward_gives_bitwise(case: Case) -> None:
    quantizer, z = case.spread_build().eval(), case.features()
    result, layout = quantizer(z), quantizer.layout(case.grid)
    assert torch.equal(quantizer.lookup(result.codes), result.features)
    assert result.features.shape == (4, quantizer.dim, *case.grid)
    assert same(quantizer.encode(z), result.codes)
    tokens = layout.flatten(result.codes)
    assert tokens.dtype == torch.int64 and tokens.shape == (4, layout.length)


@law("idempotence")
def test_codes_are_the_codes_of_their_own_vectors(case: Case) -> None:
    quantizer = case.spread_build()
    codes = case.codes(quantizer, case.grid)
    assert same(quantizer.encode(quantizer.lookup(codes)), codes)


@law("nearest")
def test_codes_are_the_best_of_a_float64_search(case: Case) -> None:
    quantizer, z = case.spread_build(), case.features()
    assert case.excess(quantizer, z, quantizer.encode(z)).max() <= 1e-6


@law("finite")
def test_non_finite_features_are_an_error(case: Case) -> None:
    z = case.features()
    for bad in (float("nan"), float("inf")):
        z[1, 0].flatten()[17] = bad
        for call in (case.build().encode, case.build()):
            with pytest.raises(ValueError, match="NaN or infinite"):
                call(z)


@law("estimator")
def test_the_gradient_is_what_the_config_names(case: Case) -> None:
    quantizer, z = case.spread_build(), case.features().requires_grad_()
    upstream = torch.randn(4, quantizer.dim, *case.grid)
    (expected,) = torch.autograd.grad((case.estimator(quantizer, z) * upstream).sum(), z)
    (gradient,) = torch.autograd.grad((quantizer(z).features * upstream).sum(), z)
    assert torch.allclose(gradient, expected, atol=1e-6)


@law("losses")
def test_each_loss_trains_what_its_name_says(case: Case) -> None:
    quantizer, z = case.spread_build(), case.features().requires_grad_()
    parameters, result = list(quantizer.parameters()), quantizer(z)
    for name, loss in result.losses.items():
        assert loss.shape == () and loss.dtype == torch.float32
        to_z, *to_parameters = torch.autograd.grad(loss, [z, *parameters], retain_graph=True, allow_unused=True)
        trained = [gradient for gradient in to_parameters if gradient is not None and gradient.abs().sum() > 0]
        if name == "codebook":
            assert to_z is None and trained
        else:
            assert to_z is not None and to_z.abs().sum() > 0
            assert name != "commitment" or not trained
    total = result.features.square().sum() + sum(result.losses.values())
    for gradient in torch.autograd.grad(total, parameters) if parameters else ():
        assert gradient.abs().sum() > 0


@law("beta")
def test_beta_multiplies_the_commitment(case: Case) -> None:
    z = case.features()
    quantizers = [case.build(beta=beta).eval() for beta in (0.5, 1.0)]
    quantizers[1].load_state_dict(quantizers[0].state_dict())
    half, whole = (quantizer(z).losses for quantizer in quantizers)
    assert half[case.weighted] > 0
    for name in half:
        assert torch.allclose(half[name], whole[name] * (0.5 if name == case.weighted else 1.0))


@law("eval")
def test_eval_changes_nothing_and_draws_nothing(case: Case) -> None:
    quantizer, z = case.spread_build().eval(), case.features()
    before, generator = state(quantizer), torch.get_rng_state()
    whole = quantizer(z)
    parts = [quantizer(row[None]) for row in z]
    assert same(whole.codes, joined([part.codes for part in parts]))
    assert torch.equal(whole.features, torch.cat([part.features for part in parts]))
    quantizer.train()
    assert same(quantizer.encode(z), whole.codes)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(tensor, before[name]) for name, tensor in quantizer.state_dict().items())


@law("range")
def test_codes_and_their_statistics_are_in_range(case: Case) -> None:
    quantizer, z = case.spread_build(), case.features(16)
    result = quantizer(z)
    layout, perplexities = quantizer.layout(case.grid), []
    for codes, size in zip(layout.split(result.codes), layout.sizes, strict=True):
        share = codes.unique(return_counts=True)[1].double() / codes.numel()
        perplexities.append(torch.exp(-(share * share.log()).sum()))
        assert codes.min() >= 0 and codes.max() < size
    reported = result.stats["perplexity"].double()
    assert torch.isclose(reported, torch.stack(perplexities).mean(), rtol=1e-5)  # of the streams, where several
    assert 1 <= reported <= max(layout.sizes)
    assert not any(value.requires_grad for value in result.stats.values())


@law("grids")
@pytest.mark.parametrize("grid", [(9,), (1, 1), (3, 8)])
def test_other_grids_are_taken_or_refused(case: Case, grid: tuple[int, ...]) -> None:
    quantizer = case.spread_build().eval()
    z = torch.randn(2, quantizer.in_dim, *grid)
    try:
        layout = quantizer.layout(grid)
    except ValueError as error:
        assert "\n" not in str(error)
        with pytest.raises(ValueError):
            quantizer.encode(z)
        return
    codes = quantizer.encode(z)
    assert layout.flatten(codes).shape == (2, layout.length)
    assert quantizer.lookup(codes).shape == (2, quantizer.dim, *grid)


@law("precision")
def test_autocast_leaves_the_search_in_float32(case: Case) -> None:
    quantizer, z = case.spread_build().eval(), case.features()
    plain = quantizer(z)
    with torch.autocast("cpu", torch.bfloat16):
        cast = quantizer(z)
        assert same(plain.codes, quantizer.encode(z))
        assert torch.equal(plain.features, quantizer.lookup(plain.codes))
    assert same(plain.codes, cast.codes)
    assert all(
        loss.dtype == torch.float32 and torch.equal(loss, plain.losses[name]) for name, loss in cast.losses.items()
    )


@law("state")
def test_state_round_trips_bitwise(case: Case) -> None:
    quantizer, z = case.spread_build(), case.features()
    quantizer(z)
    other = case.build()
    other.load_state_dict(quantizer.state_dict(), strict=True)
    assert same(other.eval().encode(z), quantizer.eval().encode(z))


@law("partial")
def test_partial_of_all_levels_is_the_lookup_bitwise(case: Case) -> None:
    quantizer = case.spread_build().eval()
    codes = quantizer.encode(case.features())
    assert torch.equal(quantizer.partial(codes, quantizer.depth), quantizer.lookup(codes))
    parts = codes if isinstance(codes, tuple) else codes.unbind(-1) if quantizer.depth > 1 else (codes,)
    assert len(parts) == quantizer.depth
    before, total = torch.zeros(()), torch.zeros(())
    for upto in range(1, quantizer.depth + 1):
        first: Any = parts[:upto]
        if not isinstance(codes, tuple):
            first = torch.stack(first, -1) if quantizer.depth > 1 else codes
        found = quantizer.partial(codes, upto)
        assert found.shape == (4, quantizer.dim, *case.grid) and found.dtype == quantizer.lookup(codes).dtype
        assert torch.equal(quantizer.partial(first, upto), found)
        assert not torch.equal(found, before)
        before, total = found, total + quantizer.addend(parts[upto - 1], upto - 1)
        assert total.dtype == torch.float32 and torch.equal(total.to(found.dtype), found)
    for upto in (0, quantizer.depth + 1):
        with pytest.raises(ValueError, match=rf"upto must lie in 1 to {quantizer.depth}, .* got {upto}$"):
            quantizer.partial(codes, upto)
    if quantizer.depth > 1:
        with pytest.raises(ValueError, match="codes must"):
            quantizer.partial(first[:1] if isinstance(codes, tuple) else codes[..., :1], 2)


def _train(rank: int, world: int, name: str, before: dict[str, Tensor], batches: list[Tensor]) -> dict[str, Tensor]:
    """State after these batches, and the gradients of the last one's losses, scaled to the mean over processes."""
    quantizer = by_name(name).build()
    quantizer.load_state_dict(before)
    for step, batch in enumerate(batches):
        torch.manual_seed(step * 10 + rank)  # processes need not agree on their random state
        share = batch.shape[0] // world
        z = batch[rank * share : (rank + 1) * share].clone().requires_grad_()
        result = quantizer(z)
    total = (result.features * torch.linspace(-1, 1, result.features[0].numel()).view_as(result.features[0])).mean()
    (total + sum(result.losses.values())).backward()
    gradients = {f"gradient {key}": value.grad for key, value in quantizer.named_parameters()}
    assert z.grad is not None
    return {**quantizer.state_dict(), **gradients, "features": z.grad / world}


def _train_all(rank: int, world: int, jobs: list[tuple]) -> list[dict[str, Tensor]]:
    return [_train(rank, world, *job) for job in jobs]


@pytest.fixture(scope="module")
def trained() -> dict[str, list[dict[str, Tensor]]]:
    """Results by a case's name: of one process, then of each of two, started once for all cases."""
    torch.manual_seed(0)
    cases = [case for case in CASES if "processes" not in case.exempt]
    jobs = [(case.name, state(case.spread_build()), [case.features(4) for _ in range(6)]) for case in cases]
    runs = [_train_all(0, 1, jobs), *in_processes(2, _train_all, jobs)]
    return {job[0]: [run[number] for run in runs] for number, job in enumerate(jobs)}


@law("processes")
def test_two_processes_equal_one(case: Case, trained: dict[str, list[dict[str, Tensor]]]) -> None:
    alone, *pair = trained[case.name]
    for name, tensor in alone.items():
        if name == "features":
            assert torch.allclose(tensor, torch.cat([result[name] for result in pair]), atol=1e-6)
        elif name.startswith("gradient "):  # DDP's mean
            assert torch.allclose(tensor, sum(result[name] for result in pair) / 2, atol=1e-6), name
        else:
            assert all(torch.allclose(tensor.double(), result[name].double(), atol=2e-6) for result in pair), name


def _refusal(case: Case, rank: int) -> str:
    z = case.features()
    if rank == 0:
        z[0, 0].flatten()[0] = torch.nan
    try:
        case.build()(z)
    except ValueError as error:
        return str(error)
    return "took it"


def _refusals(rank: int, world: int, names: list[str]) -> dict[str, str]:
    return {name: _refusal(by_name(name), rank) for name in names}


def test_one_process_s_nan_stops_all_of_them() -> None:
    for answers in in_processes(2, _refusals, [case.name for case in CASES]):
        for name, answer in answers.items():
            assert "features to quantize hold NaN" in answer, name


@pytest.mark.parametrize("case", [case for case in CASES if case.quantizer is VectorQuantizer], ids=lambda c: c.name)
def test_a_codebook_fallen_out_of_use_is_revived(case: Case) -> None:
    quantizer = case.build(revive_after=5)
    assert isinstance(quantizer, VectorQuantizer)
    with torch.no_grad():  # all codes but the first lie far from every feature
        quantizer.weight.copy_(torch.cat([torch.ones(1, quantizer.dim), -50 - torch.rand_like(quantizer.weight[1:])]))
    used = set()
    for step in range(30):
        codes = quantizer(torch.rand(8, quantizer.dim, 8, 8) + 0.5).codes
        if step >= 15:
            used |= set(codes.flatten().tolist())
    assert len(used) > 0.9 * quantizer.num_codes
    quiet = copy.deepcopy(quantizer)
    quiet.config = quiet.config.replace(revive_after=None)
    assert torch.equal(quiet.eval().codebook, quantizer.eval().codebook)


def test_while_k_means_moves_the_codebook_its_gradient_is_zero_not_none() -> None:
    quantizer = by_name("kmeans").spread_build()
    result = quantizer(by_name("kmeans").features())
    (gradient,) = torch.autograd.grad(result.losses["codebook"], list(quantizer.parameters()))
    assert not gradient.any()
