"""What the laws measure with: slopes by finite differences, steps in one process and in two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.laws.adversaries import (
    DISCRIMINATORS,
    OBJECTIVES,
    DiscriminatorCase,
    ObjectiveCase,
    make_record,
)
from tests.laws.law import Role
from tests.laws.regularisers import REGULARISERS, RegulariserCase
from tests.laws.terms import TERMS
from tokenizers_vq.discriminators.base import Judgement
from tokenizers_vq.losses.objectives import Hinge
from tokenizers_vq.losses.record import Record
from tokenizers_vq.losses.terms import Term
from tokenizers_vq.training import gradients
from tokenizers_vq.training.adversary import Adversary

Steps = dict[tuple[str, str], dict[str, Tensor]]
"""what one process found: (role, case) -> tensors by name; a `leaf` has one row an image"""


def own_gradients(adversary: Adversary, record: Record, wrapped: nn.Module | None = None) -> dict[str, Tensor]:
    """The discriminator's loss, without the parts that have none, and its gradients at the trainable parameters."""
    loss, figures = adversary.own_loss(adversary.discriminator if wrapped is None else wrapped, record)
    loss.backward()
    found = {"loss": loss.detach(), **{f"figure {name}": value for name, value in figures.items()}}
    for name, parameter in adversary.discriminator.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            found[name] = parameter.grad
    return found


def close(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-4, atol: float = 1e-4) -> None:
    """`atol` is of each tensor's largest value."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(value.abs().max().item(), 1e-9)
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=atol * scale, msg=lambda m, n=name: f"{n}: {m}")


def along(parameters: Sequence[Tensor], direction: Sequence[Tensor], step: float) -> None:
    with torch.no_grad():
        for parameter, d in zip(parameters, direction, strict=True):
            parameter.add_(d, alpha=step)


def is_slope(value: Callable[[], Tensor], parameters: Sequence[Tensor], found: gradients.Gradients) -> bool:
    """Whether `found` is the gradient of `value()`: a central difference along it, and some way to its side, agrees.

    Far away a kink may lie between, near by sums in float32 are too coarse; a wrong gradient is wrong at each distance.
    """
    slopes = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
    length = torch.stack([g.norm() for g in slopes]).norm()
    direction = [g / length + 0.3 * torch.randn_like(g) / sum(p.numel() for p in parameters) ** 0.5 for g in slopes]
    expected = sum((g * d).sum().item() for g, d in zip(slopes, direction, strict=True))
    for step in (1e-5, 1e-6, 1e-7, 1e-8, 1e-9):
        values = []
        for move in (step, -2 * step):
            along(parameters, direction, move)
            values.append(value().item())
        along(parameters, direction, step)
        if (values[0] - values[1]) / (2 * step) == pytest.approx(expected, rel=1e-4):
            return bool(length > 0)
    return False


def logits(rows: slice = slice(None), scale: float = 1.0) -> tuple[list[Tensor], list[Tensor]]:
    """Real and fake logits at two scales, one logit an image and a map of them."""
    generator = torch.Generator().manual_seed(3)
    shapes = ((8, 1), (8, 1, 3, 5))
    real, fake = ([scale * torch.randn(*shape, generator=generator)[rows] for shape in shapes] for _ in range(2))
    return [part + 0.5 for part in real], fake


def judged(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Record:
    """A record whose judgements are given."""
    record = Record(torch.zeros(8, 3, 4, 4), torch.zeros(8, 3, 4, 4))
    record.real, record.fake = (Judgement(list(side), [], {}) for side in (real, fake))
    return record


def at_logits(case: ObjectiveCase, real: Sequence[Tensor], fake: Sequence[Tensor]) -> dict[str, Tensor]:
    """Gradients of both losses at the logits."""
    real, fake = ([part.requires_grad_() for part in side] for side in (real, fake))
    record = judged(real, fake)
    generator = torch.autograd.grad(case.config.generator(record), fake)
    own = torch.autograd.grad(case.config.discriminator(record.real, record.fake), [*real, *fake])
    named = zip(("generator", "real", "fake"), (generator, own[: len(real)], own[len(real) :]), strict=True)
    return {f"{name} {i}": g for name, parts in named for i, g in enumerate(parts)}


def trained(term: Term) -> list[Tensor]:
    """The term's own parameters."""
    return [parameter for parameter in term.parameters() if parameter.requires_grad]


def at_places(term: Term, record: Record) -> gradients.Gradients:
    """Gradients at the leaves, then at what the term trains."""
    return gradients.at(term(record), (*record.leaves, *trained(term)))


def _of_adversary(case: DiscriminatorCase | RegulariserCase, rows: slice) -> dict[str, Tensor]:
    """After one step: gradients, buffers."""
    adversary = case.adversary()
    record = make_record(adversary.discriminator, rows)
    at_output, *_ = torch.autograd.grad(Hinge().generator(record), record.leaves, allow_unused=True)
    alone = rows == slice(None)
    wrapped = adversary.discriminator if alone else DistributedDataParallel(adversary.discriminator)
    found = own_gradients(adversary, record, wrapped)
    adversary.after_step()
    found = {name: value for name, value in found.items() if not name.startswith(("loss", "figure"))}
    for module in (adversary.discriminator, *adversary.regularisers):
        found |= {f"buffer {name}": buffer for name, buffer in module.named_buffers()}
    return {"leaf 0": at_output, **found}


def _of_objective(case: ObjectiveCase, rows: slice) -> dict[str, Tensor]:
    real, fake = (Judgement(side, [], {}) for side in logits(rows))
    accuracy = case.config.accuracy(real, fake)._asdict().items()
    found = {f"leaf {name}": value for name, value in at_logits(case, *logits(rows)).items()}
    return found | {f"parameter accuracy {side}": value for side, value in accuracy}


def _of_term(case: Any, rows: slice) -> dict[str, Tensor]:
    record, term = case.record(rows), case.build()
    names = [f"leaf {i}" for i in range(len(record.leaves))] + [f"parameter {i}" for i in range(len(trained(term)))]
    found = zip(names, at_places(term, record), strict=True)
    return {name: value for name, value in found if value is not None}


def steps(rank: int, world: int) -> Steps:
    """Of every case on every `world`-th image, which keeps StyleGAN2's groups the same."""
    rows = slice(rank, None, world) if world > 1 else slice(None)
    measured: list[tuple[Role, Callable[[Any, slice], dict[str, Tensor]]]] = [
        (DISCRIMINATORS, _of_adversary),
        (REGULARISERS, _of_adversary),
        (OBJECTIVES, _of_objective),
        (TERMS, _of_term),
    ]
    return {
        (role.noun, case.name): measure(case, rows)
        for role, measure in measured
        for case in role.cases
        if "processes" not in case.exempt and not getattr(case, "missing", None)
    }


def two_equal_one(runs: Sequence[Steps], role: str, case: str) -> None:
    """Rows of both processes in their order, halved since each one's loss is a mean; parameters of terms averaged."""
    alone, *pair = (run[role, case] for run in runs)
    assert all(part.keys() == alone.keys() for part in pair)
    rows = {name: torch.stack([part[name] for part in pair], 1).flatten(0, 1) / 2 for name in alone if "leaf" in name}
    for part in pair:
        means = {name: sum(each[name] for each in pair) / 2 for name in alone if name.startswith("parameter")}
        close({**part, **means, **rows}, alone)
