"""Law 13 on every discriminator and regulariser; a case says which laws do not apply and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from tests.laws.adversaries import (
    DISCRIMINATORS,
    OBJECTIVES,
    SIDE,
    DiscriminatorCase,
    make_record,
    tokenizer,
)
from tests.laws.law import Role
from tests.laws.measure import Steps, close, is_slope, own_gradients, two_equal_one
from tests.laws.regularisers import REGULARISERS, RegulariserCase
from tokenizers_vq.discriminators import DiscriminatorConfig, saved
from tokenizers_vq.discriminators.base import Discriminator, judge
from tokenizers_vq.losses import RegulariserConfig
from tokenizers_vq.losses.objectives import Hinge
from tokenizers_vq.losses.record import Record
from tokenizers_vq.training import gradients
from tokenizers_vq.training.adversary import Adversary
from tokenizers_vq.training.loop import LoopConfig, make_accelerator


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def unchanged(module: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("role", [DISCRIMINATORS, OBJECTIVES, REGULARISERS], ids=lambda role: role.noun)
def test_exemptions_name_a_law_and_a_reason(role: Role) -> None:
    role.check()


@DISCRIMINATORS.law("step")
def test_one_step_is_finite_and_trains_everything(case: DiscriminatorCase) -> None:
    adversary = case.adversary()
    record = make_record(adversary.discriminator)
    output = tokenizer().decoder(record.features)
    accelerator = make_accelerator(LoopConfig(), Path(), "cpu")
    rec = gradients.at((record.reconstructions - record.images).abs().mean(), record.leaves)
    loss, at_leaves, weight, figures = adversary.generator(record, output, rec, accelerator)
    at_output = at_leaves[0]
    assert at_output is not None and at_output.isfinite().all() and at_output.abs().sum() > 0
    assert loss.isfinite() and weight > 0 and all(figure.isfinite() for figure in figures.values())
    for name, value in own_gradients(adversary, record).items():
        assert value.isfinite().all(), name
        assert name.startswith(("loss", "figure")) or value.abs().sum() > 0, f"{name} gets no gradient"


@DISCRIMINATORS.law("precision")
def test_under_autocast_losses_are_near_those_of_float32(case: DiscriminatorCase) -> None:
    exact = own_gradients(adversary := case.adversary(), make_record(adversary.discriminator))
    adversary = case.adversary()
    with torch.autocast("cpu", torch.bfloat16):
        record = make_record(adversary.discriminator)
        _ = record.real, record.fake  # the casts that autocast keeps of these must not cost the gradients below
        half = own_gradients(adversary, record)
    assert half["loss"].dtype == torch.float32
    torch.testing.assert_close(half["loss"], exact["loss"], rtol=0.05, atol=0.02)
    largest = max(value.norm() for value in exact.values())
    for name, value in exact.items():
        assert half[name].isfinite().all() and (half[name] - value).norm() <= 0.2 * value.norm() + 0.02 * largest, name


@DISCRIMINATORS.law("compile")
def test_compiled_it_judges_as_eager(case: DiscriminatorCase) -> None:
    eager, compiled = case.adversary(), case.adversary()
    expected = own_gradients(eager, make_record(eager.discriminator))
    torch.compiler.reset()
    wrapped = torch.compile(compiled.discriminator, fullgraph=True, backend="aot_eager")
    close(own_gradients(compiled, make_record(compiled.discriminator), wrapped), expected, rtol=1e-3)
    close(dict(compiled.discriminator.named_buffers()), dict(eager.discriminator.named_buffers()))


@DISCRIMINATORS.law("double")
def test_a_penalty_on_its_slope_has_the_gradient_of_finite_differences(case: DiscriminatorCase) -> None:
    discriminator = case.build().double()
    record = make_record(discriminator, dtype=torch.float64)

    def penalty() -> Tensor:
        leaf = record.images.detach().requires_grad_()
        logits = judge(discriminator, record, leaf, frozen=False).logits
        (at_images,) = torch.autograd.grad(sum(scale.sum() for scale in logits), leaf, create_graph=True)
        return at_images.square().sum()

    parameters = [parameter for parameter in discriminator.parameters() if parameter.requires_grad]
    assert all(g is None or g.isfinite().all() for g in gradients.at(penalty(), parameters))
    discriminator.eval()  # spectral norm's vectors follow the weights in train mode, without a gradient
    assert is_slope(penalty, parameters, gradients.at(penalty(), parameters))


@DISCRIMINATORS.law("pure")
def test_the_generators_gradient_leaves_it_as_it_is(case: DiscriminatorCase) -> None:
    discriminator = case.build()
    assert discriminator.training
    before, record = state(discriminator), make_record(discriminator)
    at_output, *_ = torch.autograd.grad(Hinge().generator(record), record.leaves, allow_unused=True)
    assert at_output.abs().sum() > 0
    assert not any(logits.requires_grad for logits in record.real.logits)
    assert unchanged(discriminator, before)
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    other = case.build()
    other.load_state_dict(before)
    fakes = record.reconstructions.detach()
    for seen, fresh in zip(record.fake.logits, other(*other.inputs(record, fakes)).logits, strict=True):
        torch.testing.assert_close(seen, fresh, rtol=1e-5, atol=1e-6)


@DISCRIMINATORS.law("state")
def test_saved_described_and_filled_it_judges_the_same(case: DiscriminatorCase, tmp_path: Path) -> None:
    discriminator = case.build()
    record = make_record(discriminator)
    discriminator(*discriminator.inputs(record, record.images))  # moves what a forward moves
    saved.save(discriminator, tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    config: Any = TypeAdapter(DiscriminatorConfig).validate_python(described["discriminator"])
    assert config == case.config
    again: Discriminator = config.build(described["channels"], tuple(described["image_size"]))
    assert saved.describe(again) == saved.describe(discriminator) == described
    assert saved.fill(again, tmp_path) is None
    seen, fresh = (d.eval()(*d.inputs(record, record.images)) for d in (discriminator, again))
    assert all(map(torch.equal, seen.logits, fresh.logits)) and all(map(torch.equal, seen.features, fresh.features))
    grey = config.build(1, (SIDE, SIDE))
    before = state(grey)
    assert saved.fill(grey, tmp_path) == "channels is 3, here 1"
    assert unchanged(grey, before)


@DISCRIMINATORS.law("refusal")
def test_what_it_cannot_take_is_refused_in_one_line(case: DiscriminatorCase) -> None:
    discriminator = case.build()
    batch = make_record(discriminator).batch
    discriminator.check(batch)
    height, width = case.refused
    with pytest.raises(ValueError, match=f"{height}x{width}") as by_building:
        case.config.build(3, case.refused).check(batch._replace(images=torch.zeros(8, 3, height, width)))
    with pytest.raises(ValueError, match=f"{height}x{width}") as by_checking:
        discriminator.check(batch._replace(images=torch.zeros(8, 3, height, width)))
    with pytest.raises(ValueError, match="built for images of 3 channels, got 4") as by_channels:
        discriminator.check(batch._replace(images=torch.zeros(8, 4, SIDE, SIDE)))
    assert not any("\n" in str(error.value) for error in (by_building, by_checking, by_channels))


@DISCRIMINATORS.law("processes")
def test_discriminators_of_two_processes_equal_one(case: DiscriminatorCase, shared_steps: list[Steps]) -> None:
    two_equal_one(shared_steps, DISCRIMINATORS.noun, case.name)


@REGULARISERS.law("processes")
def test_regularisers_of_two_processes_equal_one(case: RegulariserCase, shared_steps: list[Steps]) -> None:
    two_equal_one(shared_steps, REGULARISERS.noun, case.name)


def value_of(adversary: Adversary, record: Record) -> Tensor:
    """The regulariser's value on fresh judgements."""
    discriminator, (regulariser,) = adversary.discriminator, adversary.regularisers
    sides = [judge(discriminator, record, images, frozen=False) for images in (record.images, record.reconstructions)]
    torch.manual_seed(6)
    return regulariser(record, discriminator, *sides)


def formula_of(case: RegulariserCase, adversary: Adversary) -> tuple[Discriminator, Any]:
    """A float64 copy of the discriminator, and a function that gives the formula's value of it as it is."""
    copy = case.adversary().discriminator
    copy.load_state_dict(adversary.discriminator.state_dict())
    copy, record = copy.double(), make_record(copy, dtype=torch.float64)

    def value() -> Tensor:
        sides = [judge(copy, record, images, frozen=False) for images in (record.images, record.reconstructions)]
        torch.manual_seed(6)  # what it draws is drawn again
        return case.formula(adversary.regularisers[0], record, *sides)

    return copy, value


@REGULARISERS.law("value")
def test_a_regulariser_is_its_formula(case: RegulariserCase) -> None:
    adversary = case.adversary()
    value, (_, formula) = value_of(adversary, make_record(adversary.discriminator)), formula_of(case, adversary)
    assert value.shape == () and value.dtype == torch.float32 and value > 0
    assert value.item() == pytest.approx(formula().item(), rel=1e-4)


@REGULARISERS.law("gradient")
def test_a_regulariser_has_the_gradient_of_finite_differences(case: RegulariserCase) -> None:
    adversary = case.adversary()
    parameters = list(adversary.discriminator.parameters())
    found = gradients.at(value_of(adversary, make_record(adversary.discriminator)), parameters)
    copy, formula = formula_of(case, adversary)
    assert is_slope(formula, list(copy.parameters()), tuple(None if g is None else g.double() for g in found))


@REGULARISERS.law("precision")
def test_regularisers_under_autocast(case: RegulariserCase) -> None:
    adversary = case.adversary()
    record = make_record(adversary.discriminator)
    exact = value_of(adversary, record)
    with torch.autocast("cpu", torch.bfloat16):
        value = value_of(adversary, record)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, exact, rtol=0.1, atol=1e-4)
    if value.requires_grad:
        value.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in adversary.discriminator.parameters())


@REGULARISERS.law("pure")
def test_a_regulariser_leaves_the_discriminator_as_it_is(case: RegulariserCase) -> None:
    adversary = case.adversary()
    record = make_record(adversary.discriminator)
    before = state(adversary.discriminator)
    value = value_of(adversary, record)
    if value.requires_grad:
        value.backward()
    assert unchanged(adversary.discriminator, before)
    assert record.images.grad is None


@REGULARISERS.law("lazy")
def test_the_weight_of_a_regulariser_does_not_depend_on_its_interval(case: RegulariserCase) -> None:
    sums = []
    for every in (1, 3):
        adversary, total = case.adversary(every=every), torch.zeros(())
        for step in range(6):
            record = make_record(adversary.discriminator)
            record.step = step
            loss, figures = adversary.own_loss(adversary.discriminator, record)
            assert (f"adversary/{adversary.regularisers[0].name}" in figures) == (step % every == 0)
            total += loss.detach() - figures["discriminator"]
        sums.append(total)
    assert sums[0] > 0
    torch.testing.assert_close(sums[1], sums[0], rtol=1e-4, atol=1e-6)


@REGULARISERS.law("state")
def test_the_state_of_a_regulariser_round_trips(case: RegulariserCase) -> None:
    adversary, other = case.adversary(), case.adversary()
    for _ in range(2):
        value = value_of(adversary, make_record(adversary.discriminator))
        adversary.after_step()
    other.discriminator.load_state_dict(adversary.discriminator.state_dict())
    other.regularisers[0].load_state_dict(adversary.regularisers[0].state_dict())
    value, again = (value_of(each, make_record(each.discriminator)) for each in (adversary, other))
    assert torch.equal(value, again)
    config: Any = TypeAdapter(RegulariserConfig).validate_python(json.loads(json.dumps(case.config.to_dict())))
    assert config == case.config
