"""Law 13 on parts together: every pair of parts of an adversary trains, or is refused in one line."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
import torch

from tests.laws import matrix
from tests.laws.measure import close
from tokenizers_vq.discriminators import DiscriminatorConfig


@pytest.fixture(scope="module")
def array() -> matrix.Array:
    return matrix.covering()


def test_the_matrix_holds_every_kind_of_discriminator() -> None:
    inner = {config.kind for config in matrix.INNER.values()}
    kinds = {config.model_fields["kind"].default for config in get_args(get_args(DiscriminatorConfig)[0])}
    assert inner | matrix.WRAPPERS.keys() - {matrix.BARE} == kinds


def test_every_pair_of_parts_is_covered_or_refused_in_one_line(array: matrix.Array) -> None:
    covered = {pair for row in array.rows for pair in itertools.combinations(enumerate(row), 2)}
    factors = [[(place, name) for name in factor] for place, factor in enumerate(matrix.FACTORS)]
    every = {pair for a, b in itertools.combinations(factors, 2) for pair in itertools.product(a, b)}
    assert every == covered | array.refused.keys() and not covered & array.refused.keys()
    assert array.refused and not any("\n" in reason for reason in array.refused.values())
    of_norms = {names for names, reason in array.refused.items() if "which the norm '" in reason}
    assert {regulariser for _, (_, regulariser) in of_norms} >= {"gradient-penalty", "gradient-penalty-zero"}
    assert {discriminator for (_, discriminator), _ in of_norms} >= {"patchgan-batch", "patchgan-virtual"}


def test_every_pair_of_parts_trains(array: matrix.Array) -> None:
    failed = []
    for row in array.rows:
        try:
            matrix.step(row)
        except (AssertionError, RuntimeError) as error:
            failed.append(f"{row}: {error}")
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize(
    "row",
    [
        ("unet", "class_head", "relativistic-average", "r1", "fp32"),
        ("stylegan2", "pair", "wasserstein", "gradient-penalty", "bf16"),
        ("multiscale", "projection", "non-saturating", "matching-aware", "fp32"),
    ],
    ids=lambda row: "-".join(row[:2]),
)
def test_combinations_compiled_are_the_eager_ones(row: tuple[str, ...]) -> None:
    torch.compiler.reset()
    combination = matrix.Combination(*row)
    half = combination.precision == "bf16"
    eager, compiled = matrix.step(combination), matrix.step(combination, compiled=True)
    close(compiled, eager, rtol=0.1 if half else 1e-3, atol=0.05 if half else 1e-4)
