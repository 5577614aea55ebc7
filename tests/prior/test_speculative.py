"""Speculative Jacobi decoding: rows are drawn as one by one, whatever the window, the settings and what is known."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chi2
from torch import Tensor

from prior.model import Prior
from prior.networks.autoregressive import Autoregressive
from prior.networks.gpt import GptConfig
from prior.networks.speculative import report, speculate
from prior.sampling import Sampler, guidance_at, guide, probabilities, uniforms
from tests.laws.priors import CASES, LAYOUTS, TINY, Case, all_rows, rows
from tokenizers_vq.codes import CodeLayout

SEQUENTIAL = [
    case
    for case in CASES
    if case.refusal is None and "speculative" not in case.exempt and isinstance(case.build().network, Autoregressive)
]
PARTS = {
    "cross": {"entry": ("prefix", "cross"), "norm": "layer", "mlp": "gelu"},
    "llamagen": {"positions": "llamagen"},
    "rar": {
        "positions": "learned",
        "entry": ("prefix", "adaln"),
        "begin": True,
        "qk_norm": True,
        "adaln_places": True,
        "order": "random",
    },
}
"""fields of a GPT that change how its keys and values are kept"""


def chain(model: Prior, tokens: Tensor, condition: Any, sampler: Sampler) -> Tensor:
    """float64 `(B,)`: the probability of each row when codes are drawn one by one with these settings."""
    length, found = tokens.shape[1], torch.ones(len(tokens), dtype=torch.float64)
    told, null = model.logits(tokens, condition), None
    if sampler.guidance != 1:
        null = model.logits(tokens, None)
    for place in range(length):
        logits = told[:, place]
        if null is not None:
            logits = guide(torch.cat((logits, null[:, place])), guidance_at(sampler, place / length))
        found *= probabilities(logits, sampler).double().gather(1, tokens[:, place : place + 1])[:, 0]
    return found


def check_frequencies(drawn: Tensor, everything: Tensor, wanted: Tensor) -> None:
    """Pearson's chi-square, rows that are expected fewer than five times taken together."""
    digits = (int(everything.max()) + 1) ** torch.arange(everything.shape[1])
    names, order = (everything * digits).sum(dim=1).sort()
    found = (drawn * digits).sum(dim=1).bincount(minlength=int(names[-1]) + 1)[names].double()
    assert int(found.sum()) == len(drawn)  # nothing else was drawn
    counts = torch.empty_like(found).scatter(0, order, found)
    expected = wanted * len(drawn)
    assert float(expected.sum()) == pytest.approx(len(drawn), rel=1e-4) and not counts[wanted == 0].any()
    rare = expected < 5
    counts = torch.cat((counts[~rare], counts[rare].sum()[None]))
    expected = torch.cat((expected[~rare], expected[rare].sum()[None].clamp(min=1e-9)))
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert statistic < chi2.ppf(1 - 1e-4, len(counts) - 1), statistic


def draw_from_table(window: int, count: int, given: dict[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of five codes of three, each code depending on the two before it: drawn, all rows, how likely each is."""
    torch.manual_seed(3)
    table = torch.randn(5, 4, 4, 3) * 1.5  # by place and the two codes before it, 3 where there is none

    def look(codes: Tensor, first: Tensor, ahead: int) -> Tensor:
        before = F.pad(codes, (2, 0), value=3)
        where = (first[:, None] + torch.arange(ahead)).clamp(max=4)
        return table[where, before.gather(1, where), before.gather(1, where + 1)]

    known = torch.full((count, 5), -1)
    everything = torch.cartesian_prod(*[torch.arange(3)] * 5)
    for place, code in given.items():
        known[:, place] = code
        everything = everything[everything[:, place] == code]
    shares = look(everything, torch.zeros(len(everything), dtype=torch.long), 5).double().softmax(dim=-1)
    shares = shares.gather(2, everything[..., None])[..., 0]
    wanted = torch.stack([shares[:, place] for place in range(5) if place not in given]).prod(dim=0)
    generators: dict[int, Tensor] = {}

    def noise(draw: int, length: int) -> Tensor:
        return generators.setdefault(draw, torch.rand(count, length, generator=torch.Generator().manual_seed(draw)))

    result = speculate(known, look, Sampler(), window, noise, torch.full((5,), 3))
    return result.codes, everything, wanted


@pytest.mark.parametrize("given", [{}, {1: 2, 4: 0}, {0: 1, 1: 1}], ids=str)
@pytest.mark.parametrize("window", [1, 2, 3, 5])
def test_rows_of_a_known_distribution(window: int, given: dict[int, int]) -> None:
    check_frequencies(*draw_from_table(window, 50_000, given))


@pytest.mark.parametrize("case", SEQUENTIAL, ids=lambda case: case.name)
def test_rows_are_drawn_as_often_as_is_likely(case: Case) -> None:
    torch.manual_seed(0)
    layout = TINY[case.layout_name]
    model, everything = case.spread(layout, classes=2), all_rows(layout)
    with torch.no_grad():
        wanted = model.log_likelihood(everything, 0).double().exp()
    check_frequencies(model.sample(1000, 0, window=3), everything, wanted)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7, "top_k": 2},
        {"guidance": 2.5, "guidance_schedule": "linear", "top_p": 0.9},
        {"min_p": 0.2, "guidance": 0.0},
    ],
    ids=str,
)
def test_settings_and_known_codes_are_kept(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layout = CodeLayout(((5,),), 1, (3,))
    case = Case("gpt", GptConfig(layers=1, dim=16, heads=1, multiple=16), "row")
    model, everything = case.spread(layout, classes=2), all_rows(layout)
    sampler = model.network.Sampler(window=3, **settings)
    with torch.no_grad():
        wanted = chain(model, everything, 1, sampler)
    check_frequencies(model.sample(1500, 1, sampler), everything, wanted)
    known = torch.tensor([-1, 2, -1, -1, 0])  # each drawn code given those before it
    there = ((everything == known) | (known < 0)).all(dim=1)
    given = torch.ones(len(everything), dtype=torch.float64)
    with torch.no_grad():
        told, null = (model.logits(everything, one) for one in (1, None))
    for place in (0, 2, 3):
        logits = told[:, place]
        if sampler.guidance != 1:
            logits = guide(torch.cat((logits, null[:, place])), guidance_at(sampler, place / 5))
        given *= probabilities(logits, sampler).double().gather(1, everything[:, place : place + 1])[:, 0]
    check_frequencies(model.sample(1500, 1, sampler, known=known), everything[there], given[there])


@pytest.mark.parametrize("parts", PARTS.values(), ids=list(PARTS))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_looking_at_a_window_gives_the_logits_of_all_places(parts: dict[str, Any], layout: str) -> None:
    torch.manual_seed(0)
    case = Case("gpt", GptConfig(layers=2, dim=32, heads=2, multiple=16, **parts), layout)
    check_look(case)


@pytest.mark.parametrize("case", SEQUENTIAL, ids=lambda case: case.name)
def test_a_window_gives_the_logits_of_all_places(case: Case) -> None:
    torch.manual_seed(0)
    check_look(case)


def check_look(case: Case) -> None:
    model, layout = case.spread(classes=3), case.layout
    tokens, length, network = rows(layout, 3), layout.length, model.network
    assert isinstance(network, Autoregressive)
    with torch.no_grad():
        context = model.context([0, 1, 2], 3)
        wanted, state = network(tokens, context), network.start(tokens[:, :1], context)
        drafts = tokens.clone()
        drafts[:, 3:] = rows(layout, 3)[:, 3:]  # other codes, which are looked at and then put right
        network.look(state, drafts, context, torch.tensor([2, 2, 2]), length - 2)
        network.look(state, drafts, context, torch.tensor([2, 3, 3]), 2)
        for first in (torch.tensor([3, 4, 4]), torch.tensor([length - 2, 4, length - 1])):
            codes = tokens if int(first.max()) == length - 1 else torch.where(torch.arange(length) < 6, tokens, drafts)
            found = network.look(state, codes, context, first, 2)
            for row in range(3):
                for ahead in range(2):
                    place = int(first[row]) + ahead
                    if place < min(length, 7 if codes is not tokens else length):
                        torch.testing.assert_close(found[row, ahead], wanted[row, place], atol=2e-5, rtol=1e-5)
            if codes is not tokens:  # bring the rows up to where they stand next
                network.look(state, tokens, context, torch.tensor([3, 4, 4]), length - 3)


@pytest.mark.parametrize("window", [2, 5, 64])
def test_the_contract_of_drawing(window: int) -> None:
    torch.manual_seed(0)
    case = Case("gpt", GptConfig(layers=2, dim=32, heads=2, multiple=16), "levels")
    model, layout = case.spread(classes=3), case.layout
    drawn = model.sample(4, [0, 1, 2, 0], seed=5, window=window)
    assert torch.equal(drawn[2:3], model.sample(1, 2, seed=5, first=2, window=window))
    assert not torch.equal(drawn, model.sample(4, [0, 1, 2, 0], seed=6, window=window))
    cold = model.sample(4, [0, 1, 2, 0], temperature=0, guidance=2)
    assert torch.equal(cold, model.sample(4, [0, 1, 2, 0], temperature=0, guidance=2, window=window))
    half = torch.where(torch.rand(4, layout.length) < 0.5, rows(layout, 4), -1)
    half[0, :4], half[1], half[2, 0] = rows(layout, 1)[0, :4], rows(layout, 1)[0], -1
    filled = model.sample(4, 1, known=half, window=window, guidance=1.5)
    assert torch.equal(filled[half >= 0], half[half >= 0]) and bool((filled >= 0).all())
    assert torch.equal(filled[3:], model.sample(1, 1, known=half[3], window=window, guidance=1.5, first=3))
    assert torch.equal(model.sample(1, 1, known=filled[0], window=window)[0], filled[0])


def test_a_code_that_depends_on_none_is_kept_at_once(caplog: pytest.LogCaptureFixture) -> None:
    logits = torch.randn(20, 7)

    def noise(draw: int, count: int) -> Tensor:
        return uniforms(3, count, 0, draw=draw)

    def look(codes: Tensor, first: Tensor, count: int) -> Tensor:
        return logits[(first[:, None] + torch.arange(count)).clamp(max=19)]

    result = speculate(torch.full((3, 20), -1), look, Sampler(), 5, noise, torch.full((20,), 7))
    # The drafts of the first pass are of any code and kept by chance alone; from then on a window is five codes.
    assert bool((result.passes <= 20 / 2).all()) and bool((result.passes >= 4).all())
    assert report(result).endswith(f"60 codes of 3 images in {int(result.passes.sum())} passes")
    model = Case("gpt", GptConfig(layers=1, dim=32, heads=2, multiple=16), "row").build()
    with caplog.at_level(logging.INFO, "prior"):
        model.sample(2, window=4)
    assert "codes a pass: 18 codes of 2 images in" in caplog.text
