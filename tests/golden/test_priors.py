"""Every recorded prior: converted, its logits are the reference's within their tolerance, its greedy codes equal."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import prior
from prior import Prior
from prior.conversion import SOURCES
from tests.conftest import SHARED, shared
from tests.golden.priors import HOW, How


def cases() -> list[str]:
    """`source/case` of every recorded prior that a source reads; one that skips where there are none."""
    if not SHARED.exists():
        return ["none"]
    return sorted(
        f"{path.parent.parent.name}/{path.parent.name}"
        for path in (SHARED / "golden").glob("*/*/io.safetensors")
        if path.parent.parent.name in SOURCES and weights(path.parent) is not None
    )


def weights(folder: Path) -> Path | None:
    """The checkpoint of a case as a user has it; None where order alone was recorded."""
    names = ("weights.safetensors", "model.ckpt", "model.pt")
    return next((folder / name for name in names if (folder / name).exists()), None)


def config(folder: Path) -> Path | None:
    """The config of a case as a user has it."""
    return next((path for path in (folder / "config.yaml", folder / "config.json") if path.exists()), None)


class Recorded:
    """A converted prior beside what was recorded of the reference."""

    def __init__(self, case: str) -> None:
        folder = shared("golden" if case == "none" else f"golden/{case}")
        source = folder.parent.name
        self.how: How = HOW[source]
        self.io = load_file(folder / "io.safetensors")
        self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
        said = self.how.config(folder) or config(folder)
        self.prior: Prior = prior.convert(source, weights(folder), said, book=self.how.book(folder))
        self.condition = self.how.condition(self.io["condition"]) if "condition" in self.io else None

    def tokens(self, name: str) -> Tensor:
        """Recorded codes as `(B, N)`."""
        return self.io[name].flatten(1).long()

    @property
    def given(self) -> Tensor:
        """The codes `(B, N)` whose logits were recorded, -1 where masked."""
        if "mask" in self.io:
            return self.tokens("masked_codes").masked_fill(self.io["mask"].flatten(1), -1)
        return self.tokens("input_codes")

    def error(self, name: str, condition: Any) -> Tensor:
        """Largest difference of our logits to the recorded ones."""
        with torch.no_grad():
            ours = self.prior.logits(self.given, condition)
        theirs = self.io[name].flatten(1, -2)
        theirs = theirs[..., : theirs.shape[-1] - self.how.unused]
        assert ours.shape == theirs.shape
        return (ours - theirs).abs().max()

    def greedy(self, **settings: Any) -> Tensor:
        """Our likeliest codes `(B, N)`."""
        sampler = {"temperature": 0, **self.how.sampler(self.meta), **settings}
        return self.prior.sample(len(self.given), self.condition, sampler)


recorded = cache(Recorded)


@pytest.mark.parametrize("case", cases())
def test_a_converted_prior_gives_the_reference_s_logits(case: str) -> None:
    found = recorded(case)
    assert found.error("logits", found.condition) <= found.meta["tolerance_logits"]
    if "logits_null" in found.io:
        assert found.error("logits_null", None) <= found.meta["tolerance_logits"]


@pytest.mark.parametrize("case", cases())
def test_a_converted_prior_draws_the_reference_s_greedy_codes(case: str) -> None:
    found = recorded(case)
    assert torch.equal(found.greedy(), found.tokens("greedy_codes"))
    if "greedy_codes_guided" in found.io:
        assert torch.equal(found.greedy(**found.how.guidance(found.meta)), found.tokens("greedy_codes_guided"))
    for name, settings in found.how.also(found.meta).items():
        assert torch.equal(found.greedy(**settings), found.tokens(name)), name


@pytest.mark.parametrize("case", cases())
def test_a_converted_prior_has_the_reference_s_parameters(case: str) -> None:
    found = recorded(case)
    if found.how.parameters is not None:
        assert found.how.parameters(found.prior, found.meta) == found.meta["n_parameters"]


@pytest.mark.parametrize("case", cases())
def test_a_converted_prior_is_saved_and_loaded(case: str, tmp_path: Path) -> None:
    found = recorded(case)
    found.prior.save_pretrained(tmp_path)
    again = prior.load(tmp_path)
    with torch.no_grad():
        assert torch.equal(again.logits(found.given, found.condition), found.prior.logits(found.given, found.condition))
