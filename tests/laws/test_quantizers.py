"""Laws 1 to 6, 9 and 10 on every quantizer."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.laws.processes import in_processes
from tests.laws.quantizers import CASES, Case
from tokenizers_vq.quantizers import Quantizer, VectorQuantizer


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def spread(quantizer: Quantizer) -> Quantizer:
    """Codes as far apart as features are, so that many are used."""
    with torch.no_grad():
        quantizer.weight.copy_(quantizer._as_looked_up(torch.randn_like(quantizer.weight)))
        if "cluster_sum" in quantizer.state_dict():
            quantizer.cluster_sum.copy_(quantizer.weight)
    return quantizer


def features(case: Case, batch: int = 4) -> Tensor:
    return torch.randn(batch, case.fields["dim"], 5, 7)


def state(quantizer: Quantizer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}


def test_lookup_is_what_forward_gives_bitwise(case: Case) -> None:
    quantizer, z = spread(case.build()).eval(), features(case)
    result = quantizer(z)
    assert torch.equal(quantizer.lookup(result.codes), result.features)
    assert torch.equal(quantizer.encode(z), result.codes)
    assert result.codes.dtype == torch.int64
    assert quantizer.layout((5, 7)).flatten(result.codes).shape == (4, 35)


def test_codes_are_the_codes_of_their_own_vectors(case: Case) -> None:
    quantizer = spread(case.build())
    codes = torch.arange(case.fields["num_codes"]).reshape(1, 1, -1)
    assert torch.equal(quantizer.encode(quantizer.lookup(codes)), codes)


def test_codes_are_the_nearest_of_a_float64_search(case: Case) -> None:
    quantizer, z = spread(case.build()), features(case)
    rows = z.movedim(1, -1).reshape(-1, z.shape[1]).double()
    book = quantizer.weight.double()
    if case.fields.get("distance") == "cosine":
        rows, book = F.normalize(rows, dim=1), F.normalize(book, dim=1)
    distances = torch.cdist(rows, book)
    chosen = distances.gather(1, quantizer.encode(z).reshape(-1, 1)).squeeze(1)
    assert torch.allclose(chosen, distances.amin(1), rtol=0, atol=1e-6)


def test_non_finite_features_are_an_error(case: Case) -> None:
    z = features(case)
    z[1, 0, 2, 3] = float("nan")
    for call in (case.build().encode, case.build()):
        with pytest.raises(ValueError, match="NaN or infinite"):
            call(z)


def test_the_straight_through_gradient_is_what_the_config_names(case: Case) -> None:
    quantizer, z = spread(case.build()), features(case).requires_grad_()
    upstream = torch.randn_like(z)
    (gradient,) = torch.autograd.grad((quantizer(z).features * upstream).sum(), z)
    through_norm = case.fields.get("distance") == "cosine" and case.fields.get("gradient_through_norm", True)
    if through_norm:
        (expected,) = torch.autograd.grad((F.normalize(z, dim=1) * upstream).sum(), z)
        assert torch.allclose(gradient, expected, atol=1e-6)
    else:
        assert torch.equal(gradient, upstream)


def test_each_loss_trains_what_its_name_says(case: Case) -> None:
    quantizer, z = spread(case.build()), features(case).requires_grad_()
    losses = quantizer(z).losses
    (gradient,) = torch.autograd.grad(losses["commitment"], z, retain_graph=True)
    assert gradient.abs().sum() > 0
    by_gradient = case.fields.get("codebook", "gradient") == "gradient"
    assert ("codebook" in losses) == by_gradient == isinstance(quantizer.weight, torch.nn.Parameter)
    if by_gradient:
        to_z, to_book = torch.autograd.grad(losses["codebook"], (z, quantizer.weight), allow_unused=True)
        fitted = "kmeans_batches" in case.fields  # instead of learning
        assert to_z is None and (to_book.abs().sum() > 0) != fitted
        assert torch.autograd.grad(losses["commitment"], quantizer.weight, allow_unused=True) == (None,)


def test_beta_multiplies_the_commitment(case: Case) -> None:
    z = features(case)
    quantizers = [type(case.build())(**case.fields, beta=beta).eval() for beta in (0.5, 1.0)]
    quantizers[1].load_state_dict(quantizers[0].state_dict())
    half, whole = (quantizer(z).losses for quantizer in quantizers)
    weighted = "codebook" if case.fields.get("legacy_beta") else "commitment"
    for name in half:
        assert torch.allclose(half[name], whole[name] * (0.5 if name == weighted else 1.0))


def test_eval_changes_nothing_and_draws_nothing(case: Case) -> None:
    quantizer, z = spread(case.build()).eval(), features(case)
    before, generator = state(quantizer), torch.get_rng_state()
    whole = quantizer(z)
    parts = [quantizer(row[None]) for row in z]
    assert torch.equal(whole.codes, torch.cat([part.codes for part in parts]))
    assert torch.equal(whole.features, torch.cat([part.features for part in parts]))
    quantizer.train()
    quantizer.encode(z)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(tensor, before[name]) for name, tensor in quantizer.state_dict().items())


def test_codes_and_their_statistics_are_in_range(case: Case) -> None:
    quantizer, z = spread(case.build()), features(case, 16)
    result = quantizer(z)
    counts = torch.bincount(result.codes.flatten(), minlength=case.fields["num_codes"]).double()
    share = counts[counts > 0] / counts.sum()
    assert result.codes.min() >= 0 and result.codes.max() < case.fields["num_codes"]
    assert torch.isclose(result.stats["perplexity"].double(), torch.exp(-(share * share.log()).sum()), rtol=1e-5)
    assert 1 <= result.stats["perplexity"] <= case.fields["num_codes"]


def test_autocast_leaves_the_search_in_float32(case: Case) -> None:
    quantizer, z = spread(case.build()).eval(), features(case)
    plain = quantizer(z)
    with torch.autocast("cpu", torch.bfloat16):
        cast = quantizer(z)
    assert torch.equal(plain.codes, cast.codes)
    assert all(
        loss.dtype == torch.float32 and torch.equal(loss, plain.losses[name]) for name, loss in cast.losses.items()
    )


def test_state_round_trips_bitwise(case: Case) -> None:
    quantizer, z = spread(case.build()), features(case)
    quantizer(z)
    other = case.build()
    other.load_state_dict(quantizer.state_dict(), strict=True)
    assert torch.equal(other.eval().encode(z), quantizer.eval().encode(z))


def _train(rank: int, world: int, case: Case, before: dict[str, Tensor], batches: list[Tensor]) -> dict[str, Tensor]:
    quantizer = case.build()
    quantizer.load_state_dict(before)
    for step, batch in enumerate(batches):
        torch.manual_seed(step * 10 + rank)  # processes need not agree on their random state
        share = batch.shape[0] // world
        quantizer(batch[rank * share : (rank + 1) * share])
    return dict(quantizer.state_dict())


def _train_all(rank: int, world: int, jobs: list[tuple]) -> list[dict[str, Tensor]]:
    return [_train(rank, world, *job) for job in jobs]


@pytest.fixture(scope="module")
def trained() -> dict[str, list[dict[str, Tensor]]]:
    """States by a case's name: of one process, then of each of two, started once for all cases."""
    torch.manual_seed(0)
    jobs = [(case, state(spread(case.build())), [features(case, 4) for _ in range(6)]) for case in CASES]
    runs = [_train_all(0, 1, jobs), *in_processes(2, _train_all, jobs)]
    return {job[0].name: [run[number] for run in runs] for number, job in enumerate(jobs)}


def test_two_processes_equal_one(case: Case, trained: dict[str, list[dict[str, Tensor]]]) -> None:
    alone, *pair = trained[case.name]
    for result in pair:
        for name, tensor in alone.items():
            assert torch.allclose(tensor.double(), result[name].double(), atol=2e-6), name


def _refusal(rank: int, world: int) -> str:
    quantizer = VectorQuantizer(num_codes=16, dim=4).train()
    z = torch.rand(2, 4, 3, 3)
    if rank == 0:
        z[0, 0, 0, 0] = torch.nan
    try:
        quantizer(z)
    except ValueError as error:
        return str(error)
    return "took it"


def test_one_process_s_nan_stops_all_of_them() -> None:
    assert all("features to quantize hold NaN" in answer for answer in in_processes(2, _refusal))


def test_a_codebook_fallen_out_of_use_is_revived(case: Case) -> None:
    fields = {**case.fields, "revive_after": 5}
    quantizer = type(case.build())(**fields)
    with torch.no_grad():  # all codes but the first lie far from every feature
        quantizer.weight.copy_(torch.cat([torch.ones(1, fields["dim"]), -50 - torch.rand_like(quantizer.weight[1:])]))
    used = set()
    for step in range(30):
        codes = quantizer(torch.rand(8, fields["dim"], 8, 8) + 0.5).codes
        if step >= 15:
            used |= set(codes.flatten().tolist())
    assert len(used) > 0.9 * fields["num_codes"]
    quiet = copy.deepcopy(quantizer)
    quiet.config = quiet.config.replace(revive_after=None)
    assert torch.equal(quiet.eval().codebook, quantizer.eval().codebook)
