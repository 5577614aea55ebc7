"""Law 9: usage and perplexity equal a direct count."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.evaluation.usage import CodeUsage, Histogram


def test_one_code_has_perplexity_one_and_uniform_use_has_k() -> None:
    layout = CodeLayout(((4, 4),), 1, (16,))
    one, uniform = CodeUsage(layout, 256), CodeUsage(layout, 256)
    one.update(torch.full((5, 4, 4), 7))
    uniform.update(torch.arange(16).reshape(1, 4, 4).expand(5, -1, -1))
    (stream,) = one.compute().streams
    assert (stream.perplexity, stream.entropy, stream.used, stream.dead, stream.usage) == (1.0, 0.0, 1, 15, 1 / 16)
    result = uniform.compute()
    (stream,) = result.streams
    assert stream.perplexity == pytest.approx(16) and stream.entropy == pytest.approx(4) and stream.dead == 0
    assert result.bits_per_pixel == pytest.approx(16 * 4 / 256) == pytest.approx(result.entropy_bits_per_pixel)
    # every image says the same: no position varies
    assert stream.position_entropy is not None and torch.equal(stream.position_entropy, torch.zeros(4, 4).double())


@pytest.mark.parametrize("size", [50, 2**20 + 1, 2**40])
def test_counts_equal_a_direct_count(size: int) -> None:
    layout = CodeLayout(((2, 3), (2, 3)), 2, (size,) * 4)
    usage = CodeUsage(layout, 64)
    drawn = (torch.rand(9, 2, 2, 3, 2) ** 3 * size).long()
    for part in drawn.split(4):
        usage.update((part[:, 0], part[:, 1]))
    result = usage.compute()
    assert result.images == 9 and result.tokens == drawn.numel()
    for index, stream in enumerate(result.streams):
        codes = drawn[:, index // 2, ..., index % 2]
        counted = Counter(codes.flatten().tolist())
        assert dict(zip(stream.codes.tolist(), stream.counts.tolist(), strict=True)) == counted
        shares = [n / 54 for n in counted.values()]
        assert stream.entropy == pytest.approx(-sum(share * math.log2(share) for share in shares))
        assert stream.perplexity == pytest.approx(math.exp(-sum(share * math.log(share) for share in shares)))
        assert stream.rank_frequency()[0].item() == pytest.approx(max(shares))
        assert stream.position_entropy is not None
        at = [n / 9 for n in Counter(codes[:, 1, 2].tolist()).values()]
        assert stream.position_entropy[1, 2].item() == pytest.approx(-sum(share * math.log2(share) for share in at))


def test_too_many_pairs_of_position_and_code_leave_the_map_out() -> None:
    usage = CodeUsage(CodeLayout(((4,),), 1, (2**62,)), 16)
    usage.update(torch.tensor([[0, 2**62 - 1, 5, 5]]))
    (stream,) = usage.compute().streams
    assert stream.used == 3 and stream.position_entropy is None


def test_sparse_histogram_merges_and_refuses_foreign_codes() -> None:
    dense, sparse = Histogram(100), Histogram(100, dense_limit=10)
    for _ in range(4):
        values = torch.randint(0, 60, (500,))
        dense.update(values)
        sparse.update(values)
        assert all(torch.equal(a, b) for a, b in zip(dense.pairs(), sparse.pairs(), strict=True))
    for histogram in (dense, sparse):
        with pytest.raises(ValueError, match=r"\[0, 100\)"):
            histogram.update(torch.tensor([100]))
