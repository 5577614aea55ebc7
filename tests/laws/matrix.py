"""Discriminators x wrappers x objectives x regularisers x precisions, each combination for one step of training.

    python -m tests.laws.matrix [--all] [--compile] [--every N]

Parts come from the cases of the laws, wrappers from the union of configs: a new part joins by itself. What may not
combine is no list here: the parts themselves refuse it, in one line. Without `--all`: a covering array, in which every
pair of parts appears at least once, or is refused whatever stands beside it.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import random
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from tests.laws.adversaries import (
    DIM,
    DISCRIMINATORS,
    LABELS,
    OBJECTIVES,
    PLAIN,
    make_adversary,
    make_record,
    tokenizer,
)
from tests.laws.measure import own_gradients
from tests.laws.regularisers import REGULARISERS
from tokenizers_vq.batch import Batch
from tokenizers_vq.discriminators import DiscriminatorConfig
from tokenizers_vq.discriminators.base import Judgement, judge
from tokenizers_vq.training import gradients
from tokenizers_vq.training.adversary import Adversary
from tokenizers_vq.training.loop import LoopConfig, make_accelerator

BARE, UNREGULARISED = "bare", "none"
_GIVEN = {"num_classes": LABELS, "dim": DIM}
"""fields of wrappers without a default"""
_TRIES = 40


class Combination(NamedTuple):
    """One of each kind of part, by name."""

    discriminator: str
    wrapper: str
    objective: str
    regulariser: str
    precision: str

    def __str__(self) -> str:
        return " + ".join(self)


class Array(NamedTuple):
    """A covering array."""

    rows: list[Combination]
    refused: dict[tuple[tuple[int, str], tuple[int, str]], str]
    """pairs (place in a combination, name) that no combination may hold, and what the product says of one"""


def _wrapper(kind: Any) -> Callable[[Any], Any]:
    fields = {name: value for name, value in _GIVEN.items() if name in kind.model_fields}
    if "discriminators" in kind.model_fields:
        return lambda inner: kind(discriminators=(inner, PLAIN), **fields)
    return lambda inner: kind(discriminator=inner, **fields)


_UNION = get_args(get_args(DiscriminatorConfig)[0])
_HOLDS = {"discriminator", "discriminators"}
WRAPPERS: dict[str, Callable[[Any], Any]] = {BARE: lambda inner: inner} | {
    kind.model_fields["kind"].default: _wrapper(kind) for kind in _UNION if _HOLDS & kind.model_fields.keys()
}
INNER = {case.name: case.config for case in DISCRIMINATORS.cases if not _HOLDS & type(case.config).model_fields.keys()}
FACTORS: tuple[dict[str, Any], ...] = (
    INNER,
    WRAPPERS,
    {case.name: case.config for case in OBJECTIVES.cases},
    {UNREGULARISED: None} | {case.name: case.config.replace(every=1) for case in REGULARISERS.cases},
    {"fp32": None, "bf16": torch.bfloat16},
)


@functools.cache
def batch() -> Batch:
    """What every combination is checked with."""
    return make_record(make_adversary().discriminator).batch


def make(combination: Combination) -> Adversary:
    """The adversary, which has checked the batch. Raises `ValueError` where its parts may not combine."""
    inner, wrap, objective, regulariser, _ = (factor[name] for factor, name in zip(FACTORS, combination, strict=True))
    adversary = make_adversary(
        discriminator=wrap(inner), objective=objective, regularisers=() if regulariser is None else (regulariser,)
    )
    adversary.check(batch())
    return adversary


def refusal(combination: Combination) -> str | None:
    """What the product says against the combination before step 0; None where it may be."""
    try:
        make(combination)
    except ValueError as error:
        return str(error)
    return None


def step(combination: Combination, compiled: bool = False) -> dict[str, Tensor]:
    """One step of both sides; the gradients that it found. Raises `AssertionError` naming what is wrong."""
    adversary = make(combination)
    record = make_record(adversary.discriminator)
    half = FACTORS[-1][combination.precision]
    with torch.autocast("cpu", half) if half else nullcontext():
        output = tokenizer().decoder(record.features)
        rec = gradients.at((record.reconstructions - record.images).abs().mean(), record.leaves)
        loss, at_leaves, weight, figures = adversary.generator(record, output, rec, _accelerator())
        discriminator = torch.compile(adversary.discriminator, backend="aot_eager") if compiled else None
        found = own_gradients(adversary, record, discriminator)
    at_output = at_leaves[0]
    assert at_output is not None and at_output.abs().sum() > 0, "the generator gets no gradient"
    sides = {"generator's loss": loss, "generator's gradient": at_output, "weight": weight, **figures, **found}
    for name, value in sides.items():
        assert value.isfinite().all(), f"{name} is not finite"
    trained = {name: p for name, p in adversary.discriminator.named_parameters() if p.requires_grad}
    largest = max(found[name].norm() for name in trained)
    idle = [name for name in trained if found[name].norm() <= 1e-5 * largest]
    reached = _reached(combination) if idle else set()
    assert reached.issuperset(idle), f"{', '.join(set(idle) - reached)} get no gradient"
    torch.optim.SGD(trained.values(), lr=1e-3).step()
    adversary.after_step()
    for name, parameter in trained.items():
        assert parameter.isfinite().all(), f"{name} is not finite after the step"
    return found


def _accelerator() -> Any:
    return make_accelerator(LoopConfig(), Path(), "cpu")


def _reached(combination: Combination) -> set[str]:
    """Parameters with a gradient from images alone or from reconstructions alone: of both together it may cancel.

    As at the last bias, under a loss that sees differences of logits alone.
    """
    found: set[str] = set()
    for side in range(2):
        adversary = make(combination)
        record = make_record(adversary.discriminator)
        sides = [
            judge(adversary.discriminator, record, images, frozen=False)
            for images in (record.images, record.reconstructions.detach())
        ]
        sides[1 - side] = Judgement([logits.detach() for logits in sides[1 - side].logits], [], {})
        own = [loss for judgement in sides for loss in judgement.losses.values()]
        sum(own, adversary.config.objective.discriminator(*sides)).backward()
        named = adversary.discriminator.named_parameters()
        found |= {name for name, p in named if p.grad is not None and p.grad.abs().max() > 1e-6}
    return found


def everything() -> Iterator[Combination]:
    """The full product."""
    return (Combination(*names) for names in itertools.product(*FACTORS))


def covering(seed: int = 0) -> Array:
    """Few combinations that may be, in which every pair of parts appears; pairs that are refused beside anything."""
    draw = random.Random(seed)
    places = range(len(FACTORS))
    left = {((i, a), (j, b)) for i, j in itertools.combinations(places, 2) for a in FACTORS[i] for b in FACTORS[j]}
    said: dict[tuple[str, str, str], str | None] = {}  # objectives refuse none: one that did would stop its row's step
    rows: list[Combination] = []
    refused: dict[Any, str] = {}

    def answer(row: Combination) -> str | None:
        parts = (row.discriminator, row.wrapper, row.regulariser)
        if parts not in said:
            said[parts] = refusal(row)
        return said[parts]

    while left:
        pair = min(left)
        reason = ""
        for row in _completions(pair, left, draw):
            reason = answer(row) or ""
            if not reason:
                rows.append(row)
                left -= set(_pairs(row))
                break
        else:
            refused[pair] = reason
            left.remove(pair)
    return Array(rows, refused)


def _pairs(row: Combination) -> Iterator[Any]:
    return itertools.combinations(enumerate(row), 2)


def _completions(pair: Any, left: set[Any], draw: random.Random) -> Iterator[Combination]:
    """Combinations that hold the pair: first those with the most pairs that are left, at last plain ones and all."""
    free = [place for place in range(len(FACTORS)) if place not in dict(pair)]
    drawn = [{**dict(pair), **{place: draw.choice(list(FACTORS[place])) for place in free}} for _ in range(_TRIES)]
    tried = [Combination(*(row[place] for place in range(len(FACTORS)))) for row in drawn]
    yield from sorted(tried, key=lambda row: -sum(each in left for each in _pairs(row)))[: _TRIES // 4]
    # Parts refuse each other by discriminator, wrapper and regulariser; a pair is refused only where all of these are.
    plain = {0: "patchgan-none", 1: BARE, 2: "hinge", 3: UNREGULARISED, 4: "fp32"}
    open_to = [list(FACTORS[place]) if place in (0, 1) and place in free else [plain[place]] for place in range(5)]
    for place, name in pair:
        open_to[place] = [name]
    yield from (Combination(*names) for names in itertools.product(*open_to))


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--all", action="store_true", help="the full product instead of a covering array")
    options.add_argument("--compile", action="store_true", help="with the discriminator compiled (aot_eager)")
    options.add_argument("--every", type=int, default=1, metavar="N", help="each N-th combination, in a drawn order")
    given = options.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    array = Array(list(everything()), {}) if given.all else covering()
    random.Random(0).shuffle(array.rows)
    done, refused, failed = 0, dict.fromkeys(array.refused.values(), 0), 0
    for row in array.rows[:: given.every]:
        if given.compile:
            torch.compiler.reset()
        try:
            step(row, given.compile)
            done += 1
        except ValueError as error:
            refused[str(error)] = refused.get(str(error), 0) + 1
        except Exception as error:  # each is a finding; the others go on
            failed += 1
            print(f"{row}: {type(error).__name__}: {error}")
    for reason in refused:
        print(f"refused: {reason}")
    names = " x ".join(f"{len(factor)}" for factor in FACTORS)
    print(
        f"{names} = {len(list(everything())):,} combinations; {done:,} steps, {failed} failed, "
        f"{len(refused)} reasons to refuse; {time.perf_counter() - begin:.0f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
