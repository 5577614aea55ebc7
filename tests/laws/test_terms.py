"""Law 14 on every term; a case says which laws do not apply and why."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from tests.laws.measure import Steps, at_places, is_slope, trained, two_equal_one
from tests.laws.terms import TERMS, Case
from tokenizers_vq.losses import TermConfig
from tokenizers_vq.losses.record import Record
from tokenizers_vq.networks.frozen import Frozen


@pytest.fixture(autouse=True)
def _possible(request: pytest.FixtureRequest) -> None:
    case = getattr(request.node, "callspec", None) and request.node.callspec.params.get("case")
    if case and case.missing:
        pytest.skip(case.missing)


def test_exemptions_name_a_law_and_a_reason() -> None:
    TERMS.check()


@TERMS.law("value")
def test_a_term_is_its_formula(case: Case) -> None:
    term = case.build()
    value, exact = term(case.record()), case.formula(copy.deepcopy(term).double(), case.record(dtype=torch.float64))
    assert value.shape == () and value.dtype == torch.float32
    assert value.item() == pytest.approx(exact.item(), rel=1e-4)
    assert abs(value.item()) > 1e-3


@TERMS.law("gradient")
def test_a_term_has_the_gradient_of_finite_differences(case: Case) -> None:
    term = case.build()
    found = at_places(term, case.record())
    assert all(g is not None and g.abs().sum() > 0 for g in found[len(found) - len(trained(term)) :])
    exact, start = copy.deepcopy(term).double(), case.record(dtype=torch.float64)
    began = (copy.deepcopy(exact), case.record(dtype=torch.float64))
    places = [*(leaf.detach() for leaf in start.leaves), *trained(exact)]

    def value() -> Tensor:
        # A new record each time: they keep what they made.
        moved = Record(
            start.batch,
            places[0],
            features=places[1],
            quantized=start.quantized,
            tokenizer=start.tokenizer,
            discriminator=start.discriminator,
        )
        with torch.no_grad():
            return case.slope(exact, moved, *began) if case.slope else case.formula(exact, moved)

    assert is_slope(value, places, tuple(None if g is None else g.double() for g in found))


@TERMS.law("zero")
@pytest.mark.parametrize("black", [False, True])
def test_a_perfect_reconstruction_has_no_loss_and_no_gradient(case: Case, black: bool) -> None:
    record = case.record(output=case.perfect, black=black)
    loss = case.build()(record)
    (gradient,) = torch.autograd.grad(loss, record.output)
    assert loss.item() == 0
    assert gradient.eq(0).all()


@TERMS.law("precision")
def test_a_term_is_float32_under_autocast(case: Case) -> None:
    term = case.build()
    exact = term(case.record())
    with torch.autocast("cpu", torch.bfloat16):
        record = case.record()
        value = term(record)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact.item(), rel=0.03)
    assert all(g is None or g.isfinite().all() for g in at_places(term, record))


@TERMS.law("once")
def test_no_backbone_passes_twice(case: Case) -> None:
    """Two terms alike share the pass of the images; each has one of the reconstructions."""
    terms, rows = [case.build(), case.build()], []
    networks = [module for term in terms for module in term.modules() if isinstance(module, Frozen)]
    assert networks
    for network in networks:
        first = next(module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear)))
        first.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    record = case.record()
    assert terms[0](record) == terms[1](record)
    assert 0 < sum(rows) <= len(record.images) * (1 + len(terms))


@TERMS.law("state")
def test_what_a_term_trains_is_saved_and_frozen_weights_are_not(case: Case) -> None:
    term, other = nn.ModuleList([case.build()]), nn.ModuleList([case.build()])
    with torch.no_grad():
        for parameter in trained(term[0]):  # type: ignore[arg-type]
            parameter.add_(0.1)
    state = term.state_dict()
    frozen = {name for name, parameter in term.named_parameters() if not parameter.requires_grad}
    assert {name for name, _ in term.named_parameters()} - frozen <= state.keys()
    assert not frozen & state.keys()
    other.load_state_dict(state, strict=True)
    assert torch.equal(other[0](case.record()), term[0](case.record()))
    config: Any = case.config()
    read: Any = TypeAdapter(TermConfig).validate_python(json.loads(json.dumps(config.to_dict())))
    assert read == config


@TERMS.law("processes")
def test_terms_of_two_processes_equal_one(case: Case, shared_steps: list[Steps]) -> None:
    two_equal_one(shared_steps, TERMS.noun, case.name)
