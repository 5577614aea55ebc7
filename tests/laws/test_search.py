"""Law 3, nearest: codes equal a naive float64 search, ties go to the lowest index, N x K is never held."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tokenizers_vq.quantizers import launches, scores, search
from tokenizers_vq.quantizers.search import nearest_codes

SCORES = ["euclidean", "cosine", "dot"]


@pytest.fixture(params=["processor", "accelerator"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search as a CPU goes about it, and as an accelerator does, on the CPU."""
    if request.param == "accelerator":
        monkeypatch.setattr(search, "_blocked", search._launched)
        monkeypatch.setattr(launches, "_LAUNCH", 1 << 18)  # several blocks of vectors and codes at these sizes


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True).clamp(min=1e-300)


def costs(x: Tensor, codebook: Tensor, score: str) -> Tensor:
    """Naive float64 costs `(N, K)`, each pair by itself."""
    x, codebook = x.double(), codebook.double()
    if score == "euclidean":
        return torch.stack([(row - codebook).square().sum(1) for row in x])
    if score == "cosine":
        x, codebook = unit(x), unit(codebook)
    return torch.stack([-(row * codebook).sum(1) for row in x])


def assert_nearest(x: Tensor, codebook: Tensor, score: str = "euclidean") -> None:
    codes = nearest_codes(x, codebook, score=score)
    assert codes.shape == (len(x),) and codes.dtype == torch.int64
    naive = costs(x, codebook, score)
    least = naive.amin(1)
    # Rounding of a float64 sum: relative to the distance, or to the product of the lengths for a dot product.
    scale = least if score == "euclidean" else costs(x.abs(), codebook.abs(), score).abs().amax(1)
    excess = naive.gather(1, codes[:, None]).squeeze(1) - least
    slack = 4 * x.shape[1] * torch.finfo(torch.float64).eps * scale
    assert (excess <= slack).all(), f"{int((excess > slack).sum())} of {len(x)} codes are not nearest"
    clear = (naive <= (least + slack)[:, None]).sum(1) == 1
    assert (codes == naive.argmin(1))[clear].all()


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("score", SCORES)
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(1, 600),
    size=st.sampled_from([1, 2, 15, 16, 17, 255, 257, 1000, 4099]),
    width=st.sampled_from([1, 2, 3, 8, 31, 127, 128, 129, 300]),
    seed=st.integers(0, 1000),
)
def test_any_size(score: str, count: int, size: int, width: int, seed: int) -> None:
    count = min(count, max(1, 20_000_000 // (size * width)))
    generator = torch.Generator().manual_seed(seed)
    x, codebook = (torch.randn(n, width, generator=generator) for n in (count, size))
    assert_nearest(x, codebook, score)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("width", [8, 160])
@pytest.mark.parametrize(
    "case", ["offset", "far", "tiny", "denormal", "huge", "small codes", "long code", "near twins", "zeros", "on codes"]
)
def test_adverse_data(case: str, width: int, score: str) -> None:
    x, codebook = torch.randn(300, width), torch.randn(700, width)
    if case == "offset":  # |x|^2 is 10^4 times the gaps: the expansion of the square cancels
        x, codebook = x + 100, codebook + 100
    elif case == "far":
        x = 1000 * x + 5000
    elif case == "tiny":  # squares underflow in float32
        x, codebook = x * 1e-25, codebook * 1e-25
    elif case == "denormal":
        x, codebook = x * 1e-41, codebook * 1e-41
    elif case == "huge":  # squares overflow in float32
        x, codebook = x * 1e25, codebook * 1e25
    elif case == "small codes":  # the usual uniform(-1/K, 1/K) of an untrained codebook
        codebook = codebook.clamp(-1, 1) / 700
    elif case == "long code":
        codebook[333] *= 1e6
    elif case == "near twins":  # apart by single roundings
        codebook = codebook[:70].repeat(10, 1)
        codebook = torch.where(torch.rand_like(codebook) < 0.1, codebook * (1 + 2.0**-23), codebook)
        x = codebook[torch.randint(700, (300,))] + 0.1 * x
    elif case == "zeros":
        codebook[100:] = 0
        x[:10] = 0
    elif case == "on codes":
        x = codebook[torch.randperm(700)[:300]]
    assert_nearest(x, codebook, score)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("width", [8, 160])
def test_ties_go_to_the_lowest_index(width: int, score: str) -> None:
    distinct = torch.randn(50, width)
    order = torch.randint(50, (3000,))
    lowest = torch.full((50,), 3000).scatter_reduce(0, order, torch.arange(3000), "amin")
    x = distinct + 1e-3 * torch.randn_like(distinct)
    base = nearest_codes(x, distinct, score=score)
    assert torch.equal(nearest_codes(x, distinct[order], score=score), lowest[base])
    assert nearest_codes(x, distinct[:1].expand(3000, -1), score=score).eq(0).all()


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("width", [8, 160])
def test_batch_of_many_equals_batches_of_one(width: int, score: str) -> None:
    codebook = torch.randn(64, width).repeat(20, 1)
    codebook = codebook * (1 + 1e-7 * torch.randint(-2, 3, codebook.shape))
    x = torch.randn(300, width)
    codes = nearest_codes(x, codebook, score=score)
    assert torch.equal(codes, torch.cat([nearest_codes(row[None], codebook, score=score) for row in x]))
    assert torch.equal(codes, torch.cat([nearest_codes(part, codebook, score=score) for part in x.split(37)]))


@pytest.mark.usefixtures("either_way")
def test_float64_stays_float64() -> None:
    codebook = torch.randn(40, 8, dtype=torch.float64)
    codebook = torch.cat([codebook, codebook + 1e-12])  # equal once in float32
    assert torch.equal(nearest_codes(codebook, codebook), torch.arange(80))


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_searched_in_full(dtype: torch.dtype) -> None:
    x, codebook = torch.randn(200, 32).to(dtype), torch.randn(500, 32).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        codes = nearest_codes(x, codebook)
    assert torch.equal(codes, costs(x, codebook, "euclidean").argmin(1))


@pytest.mark.usefixtures("either_way")
def test_allowing_reduced_products_does_not_change_codes() -> None:
    x, codebook = torch.randn(200, 160), torch.randn(500, 160)
    torch.set_float32_matmul_precision("medium")
    try:
        assert_nearest(x, codebook)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_no_gradient_and_no_change_of_inputs() -> None:
    x, codebook = torch.randn(40, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    before = x.detach().clone(), codebook.detach().clone()
    assert not nearest_codes(x, codebook).requires_grad
    assert torch.equal(x, before[0]) and torch.equal(codebook, before[1])


class Live(TorchDispatchMode):
    """Most bytes of new storages alive at once."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.given = {tensor.untyped_storage().data_ptr() for tensor in given}
        self.alive: dict[int, tuple[object, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        from torch.multiprocessing.reductions import StorageWeakRef

        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.given:
                storage = tensor.untyped_storage()
                self.alive[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {at: (ref, size) for at, (ref, size) in self.alive.items() if not ref.expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


@pytest.mark.parametrize(
    ("count", "size", "width", "score"),
    [
        (4096, 8192, 8, "euclidean"),
        (512, 1 << 18, 8, "euclidean"),
        (2048, 8192, 256, "euclidean"),
        (2048, 8192, 256, "cosine"),
        (1 << 18, 64, 4, "cosine"),
        (100, 200, 8192, "dot"),
        (300, 300, 2000, "euclidean"),
    ],
)
def test_memory(count: int, size: int, width: int, score: str) -> None:
    x, codebook = torch.randn(count, width), torch.randn(size, width)
    with Live(x, codebook) as live:
        codes = nearest_codes(x, codebook, score=score)
    assert live.peak - codes.nbytes < 10e6


def test_memory_where_every_code_ties() -> None:
    x, codebook = torch.randn(3000, 64), torch.zeros(5000, 64)
    with Live(x, codebook) as live:
        codes = nearest_codes(x, codebook)
    assert live.peak - codes.nbytes < 10e6 and codes.eq(0).all()


@pytest.mark.parametrize(
    ("count", "size", "width", "score"),
    [
        (1024, 32_768, 8, "euclidean"),
        (60_000, 1024, 256, "cosine"),
        (200_000, 16, 256, "cosine"),
        (2000, 70_000, 32, "dot"),
    ],
)
@pytest.mark.parametrize("ties", [False, True])
def test_memory_on_an_accelerator(count: int, size: int, width: int, score: str, ties: bool) -> None:
    """As `Live` counts it on the CPU; where every code ties, of fewer vectors."""
    count = min(count, 200) if ties else count
    x, codebook = torch.randn(count, width), torch.randn(size, width)
    codebook = codebook[:1].expand(size, -1).contiguous() if ties else codebook
    with Live(x, codebook) as live:
        codes = launches.launched(x, codebook, score)  # type: ignore[arg-type]
    assert live.peak - 4 * codes.nbytes < 400e6
    assert not ties or codes.eq(0).all()


@pytest.mark.parametrize("score", ["euclidean", "dot"])
def test_a_few_long_codes_leave_few_pairs_to_float64(score: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = []
    cost = scores.pair_costs
    monkeypatch.setattr(launches, "pair_costs", lambda x, codes, s: (pairs.append(len(x)), cost(x, codes, s))[1])
    x, codebook = torch.randn(256, 64), torch.randn(4096, 64) / 50
    codebook[::200] *= 1e4
    codes = launches.launched(x, codebook, score)  # type: ignore[arg-type]
    assert torch.equal(codes, nearest_codes(x, codebook, score=score))  # type: ignore[arg-type]
    assert sum(pairs) < 256 * 50


@pytest.mark.parametrize("width", [1, 3, 100, 256])
def test_equal_codes_tie_exactly_in_any_number_of_pairs(width: int) -> None:
    x, code = torch.randn(1, width), torch.randn(1, width)
    for score in SCORES:
        costs_ = {
            scores.pair_costs(x.expand(count, -1), code.expand(count, -1), score)[place].item()  # type: ignore[arg-type]
            for count in (1, 2, 7, 64, 1001)
            for place in (0, count - 1)
        }
        assert len(costs_) == 1


@pytest.mark.parametrize("score", SCORES)
def test_traced_codes_equal_eager(score: str) -> None:
    class Search(torch.nn.Module):
        def forward(self, x: Tensor, codebook: Tensor) -> Tensor:
            return nearest_codes(x, codebook, score=score)  # type: ignore[arg-type]

    codebook = torch.randn(50, 8).repeat(100, 1)
    inputs = [(torch.randn(count, 8), codebook) for count in (30, 70)]
    eager = [nearest_codes(*pair, score=score) for pair in inputs]
    rows = torch.export.Dim("rows", min=2, max=4096)
    exported = torch.export.export(Search(), inputs[0], dynamic_shapes={"x": {0: rows}, "codebook": None}).module()
    torch._dynamo.reset()
    compiled = torch.compile(Search(), fullgraph=True, backend="eager", dynamic=True)
    for pair, codes in zip(inputs, eager, strict=True):
        assert torch.equal(exported(*pair), codes)
        assert torch.equal(compiled(*pair), codes)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_is_an_error(value: float) -> None:
    x, codebook = torch.randn(40, 8), torch.randn(50, 8)
    bad = x.clone()
    bad[17, 3] = value
    with pytest.raises(ValueError, match="features to quantize hold NaN or infinite"):
        nearest_codes(bad, codebook)
    with pytest.raises(ValueError, match="codebook holds NaN or infinite"):
        nearest_codes(x, bad)


def test_wrong_arguments() -> None:
    x = torch.randn(4, 8)
    with pytest.raises(ValueError, match="holds no code"):
        nearest_codes(x, torch.empty(0, 8))
    with pytest.raises(ValueError, match="flatten to one width"):
        nearest_codes(x, torch.randn(5, 7))
    with pytest.raises(ValueError, match="is none of"):
        nearest_codes(x, x, score="manhattan")  # type: ignore[arg-type]
    assert nearest_codes(torch.empty(0, 8), x).shape == (0,)
