"""Law 13 on every discriminator, objective and regulariser; a case says which laws do not apply and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.laws.adversaries import (
    DISCRIMINATORS,
    OBJECTIVES,
    REGULARISERS,
    ROLES,
    SIDE,
    DiscriminatorCase,
    ObjectiveCase,
    RegulariserCase,
    by_name,
    make_record,
    tokenizer,
)
from tests.laws.law import Role
from tests.processes import in_processes
from tokenizers_vq.discriminators import DiscriminatorConfig, saved
from tokenizers_vq.discriminators.base import Discriminator, Judgement, judge
from tokenizers_vq.losses import ObjectiveConfig, RegulariserConfig
from tokenizers_vq.losses.objectives import Hinge
from tokenizers_vq.losses.record import Record
from tokenizers_vq.training import gradients
from tokenizers_vq.training.adversary import Adversary
from tokenizers_vq.training.loop import LoopConfig, make_accelerator


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def unchanged(module: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


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
        scale = max(value.abs().max().item(), 1e-3)
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


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.noun)
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
    for name, value in exact.items():
        error = torch.linalg.vector_norm(half[name] - value)
        assert half[name].isfinite().all() and error <= 0.2 * torch.linalg.vector_norm(value) + 0.02, name


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

    assert all(g is None or g.isfinite().all() for g in gradients.at(penalty(), list(discriminator.parameters())))
    discriminator.eval()  # spectral norm's vectors follow the weights in train mode, without a gradient
    parameters = [parameter for parameter in discriminator.parameters() if parameter.requires_grad]
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


def _shared(rank: int, world: int, role: Role, name: str) -> dict[str, Tensor]:
    """Gradients and buffers after one step on every `world`-th image: which keeps StyleGAN2's groups the same."""
    adversary: Adversary = by_name(role, name).adversary()
    record = make_record(adversary.discriminator, slice(rank, None, world))
    at_output, *_ = torch.autograd.grad(Hinge().generator(record), record.leaves, allow_unused=True)
    wrapped = DistributedDataParallel(adversary.discriminator) if world > 1 else adversary.discriminator
    found = own_gradients(adversary, record, wrapped)
    adversary.after_step()
    found = {name: value for name, value in found.items() if not name.startswith(("loss", "figure"))}
    for module in (adversary.discriminator, *adversary.regularisers):
        found |= {f"buffer {name}": buffer for name, buffer in module.named_buffers()}
    return {"output": at_output / world, **found}


def _objective_halves(rank: int, world: int, name: str) -> dict[str, Tensor]:
    real, fake = logits(rows=slice(rank, None, world))
    return {key: value / world for key, value in at_logits(by_name(OBJECTIVES, name), real, fake).items()}


def _all(rank: int, world: int) -> dict[tuple[str, str], dict[str, Tensor]]:
    adversaries = {
        (role.noun, case.name): _shared(rank, world, role, case.name)
        for role in (DISCRIMINATORS, REGULARISERS)
        for case in role.cases
        if "processes" not in case.exempt
    }
    objectives = [case.name for case in OBJECTIVES.cases if "processes" not in case.exempt]
    return {**adversaries, **{(OBJECTIVES.noun, name): _objective_halves(rank, world, name) for name in objectives}}


@pytest.fixture(scope="module")
def shared_steps() -> list[dict[tuple[str, str], dict[str, Tensor]]]:
    """Of one process, then of each of two, started once for all cases."""
    return [_all(0, 1), *in_processes(2, _all)]


def dealt(parts: Sequence[Tensor]) -> Tensor:
    """The rows of two processes in their order."""
    return torch.stack(list(parts), dim=1).flatten(0, 1)


def two_equal_one(runs: list[dict[tuple[str, str], dict[str, Tensor]]], key: tuple[str, str]) -> None:
    alone, *pair = (run[key] for run in runs)
    for part in pair:
        rest = {name: value for name, value in part.items() if name != "output"}
        close(rest, {name: value for name, value in alone.items() if name != "output"})
    torch.testing.assert_close(dealt([part["output"] for part in pair]), alone["output"], rtol=1e-4, atol=1e-6)


@DISCRIMINATORS.law("processes")
def test_discriminators_of_two_processes_equal_one(case: DiscriminatorCase, shared_steps: list) -> None:
    two_equal_one(shared_steps, (DISCRIMINATORS.noun, case.name))


@REGULARISERS.law("processes")
def test_regularisers_of_two_processes_equal_one(case: RegulariserCase, shared_steps: list) -> None:
    two_equal_one(shared_steps, (REGULARISERS.noun, case.name))


@OBJECTIVES.law("processes")
def test_objectives_of_two_processes_equal_one(case: ObjectiveCase, shared_steps: list) -> None:
    alone, *pair = (run[OBJECTIVES.noun, case.name] for run in shared_steps)
    for name, value in alone.items():
        torch.testing.assert_close(dealt([part[name] for part in pair]), value, rtol=1e-5, atol=1e-8)


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


@OBJECTIVES.law("formula")
def test_losses_are_those_of_their_formulas(case: ObjectiveCase) -> None:
    real, fake = logits(scale=3.0)
    record = judged(real, fake)
    for loss, formula in (
        (case.config.generator(record), case.generator),
        (case.config.discriminator(record.real, record.fake), case.discriminator),
    ):
        scales = [formula(r.double(), f.double()) for r, f in zip(real, fake, strict=True)]
        assert loss.shape == () and loss.dtype == torch.float32
        assert loss.item() == pytest.approx(float(sum(scales)) / len(scales), rel=1e-5)


@OBJECTIVES.law("chance")
def test_chance_is_the_least_loss_of_one_answer_to_all(case: ObjectiveCase) -> None:
    same = [Judgement([torch.full((4, 1), value)], [], {}) for value in torch.linspace(-4, 4, 801).tolist()]
    losses = [case.config.discriminator(judgement, judgement).item() for judgement in same]
    assert min(losses) == pytest.approx(case.config.chance, abs=1e-5)


@OBJECTIVES.law("descent")
def test_generator_and_discriminator_pull_the_logits_apart_and_together(case: ObjectiveCase) -> None:
    for name, gradient in at_logits(case, *logits()).items():
        assert gradient.sum() > 0 if name.startswith("fake") else gradient.sum() < 0, name


@OBJECTIVES.law("finite")
def test_losses_and_gradients_are_finite_far_out(case: ObjectiveCase) -> None:
    far = [torch.tensor([[1e4], [-1e4]])]
    for sign in (1, -1):
        sides = far, [sign * part for part in far]
        record = judged(*sides)
        losses = case.config.generator(record), case.config.discriminator(record.real, record.fake)
        assert all(loss.isfinite() for loss in losses)
        assert all(gradient.isfinite().all() for gradient in at_logits(case, *sides).values())


@OBJECTIVES.law("precision")
def test_objectives_are_float32_under_autocast(case: ObjectiveCase) -> None:
    real, fake = ([part.bfloat16() for part in side] for side in logits())
    exact = judged([part.float() for part in real], [part.float() for part in fake])
    with torch.autocast("cpu", torch.bfloat16):
        record = judged(real, fake)
        losses = case.config.generator(record), case.config.discriminator(record.real, record.fake)
    expected = case.config.generator(exact), case.config.discriminator(exact.real, exact.fake)
    assert all(loss.dtype == torch.float32 for loss in losses)
    torch.testing.assert_close(losses, expected)


@OBJECTIVES.law("described")
def test_an_objective_is_of_the_union(case: ObjectiveCase) -> None:
    read: Any = TypeAdapter(ObjectiveConfig).validate_python(json.loads(json.dumps(case.config.to_dict())))
    assert read == case.config and read.chance == case.config.chance


def value_of(adversary: Adversary, record: Record) -> Tensor:
    """The regulariser's value on fresh judgements."""
    discriminator, (regulariser,) = adversary.discriminator, adversary.regularisers
    sides = [judge(discriminator, record, images, frozen=False) for images in (record.images, record.reconstructions)]
    return regulariser(record, discriminator, *sides)


def formula_of(case: RegulariserCase, adversary: Adversary) -> tuple[Discriminator, Any]:
    """A float64 copy of the discriminator, and a function that gives the formula's value of it as it is."""
    copy = case.adversary().discriminator
    copy.load_state_dict(adversary.discriminator.state_dict())
    copy, record = copy.double(), make_record(copy, dtype=torch.float64)

    def value() -> Tensor:
        sides = [judge(copy, record, images, frozen=False) for images in (record.images, record.reconstructions)]
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
    value.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in adversary.discriminator.parameters())


@REGULARISERS.law("pure")
def test_a_regulariser_leaves_the_discriminator_as_it_is(case: RegulariserCase) -> None:
    adversary = case.adversary()
    record = make_record(adversary.discriminator)
    before = state(adversary.discriminator)
    value_of(adversary, record).backward()
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
