"""The step: gradients at the leaves are those of one graph; terms on features train, resume and agree."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

import tokenizers_vq as tvq
from tests.processes import in_processes
from tests.training.conftest import SMALL
from tests.training.test_runs import assert_bitwise, everything
from tokenizers_vq.batch import Batch
from tokenizers_vq.config import Config, Schedule, apply_overrides, read_yaml
from tokenizers_vq.losses.record import Record
from tokenizers_vq.losses.terms import L1Config, L2Config, Term
from tokenizers_vq.training import gradients
from tokenizers_vq.training.loop import make_accelerator
from tokenizers_vq.training.recipe import RECIPES, Recipe
from tokenizers_vq.training.runs import train
from tokenizers_vq.training.step import TokenizerTask
from tokenizers_vq.training.tracking import read_log


class ColoursConfig(Config):
    """Mean colours of the image, predicted from the features by a trained linear map."""

    kind: Literal["colours"] = "colours"
    weight: Schedule = 1.0
    labelled: bool = False

    def build(self, tokenizer: tvq.Tokenizer | None = None) -> Colours:
        assert tokenizer is not None
        return Colours(tokenizer.quantizers[0].in_dim, **self.arguments())


class Colours(Term):
    name = "colours"

    def __init__(self, width: int, **fields: Any) -> None:
        super().__init__()
        self.config = ColoursConfig(**fields)
        self.weight = self.config.weight
        self.map = nn.Conv2d(width, 3, 1)

    def check(self, batch: Batch) -> None:
        if self.config.labelled and (batch.labels is None or (batch.labels < 0).any()):
            raise ValueError("losses.colours: needs labels, which the data do not have: give data.label_column")

    def forward(self, record: Record) -> Tensor:
        means = F.adaptive_avg_pool2d(record.images, record.features.shape[-2:])
        return (self.map(record.features).float() - means).square().mean()


class WithColours(Recipe):
    losses: tuple[Annotated[L1Config | L2Config | ColoursConfig, Field(discriminator="kind")], ...]


def recipe(pictures: Path, *overrides: str) -> WithColours:
    data = {**read_yaml(RECIPES / "vqgan-tiny-64.yaml"), "data": {"path": str(pictures)}}
    data["model"] = tvq.create("vqgan-tiny-64").config.to_dict()
    losses = "losses=[{kind: l1}, {kind: colours, weight: 0.5}]"
    return WithColours(**apply_overrides(data, [*SMALL, losses, "adversary=null", *overrides]))


def one_step(task: TokenizerTask, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Gradients of the tokenizer, and of the terms, as the optimizer meets them in step 0; figures beside."""
    found: dict[str, Tensor] = {}
    update = TokenizerTask._update

    def noted(self: TokenizerTask, name: str, *rest: Any) -> dict[str, Tensor]:
        if name == "tokenizer":
            found.update({k: p.grad.clone() for k, p in self.tokenizer.named_parameters() if p.grad is not None})
            found.update({f"term {i}": p.grad.clone() for i, p in enumerate(self.term_parameters)})  # type: ignore[union-attr]
        return update(self, name, *rest)

    monkeypatch.setattr(TokenizerTask, "_update", noted)
    task.step(data, 0, make_accelerator(task.recipe, Path(), "cpu"))
    return found


PLAIN = "{kind: patchgan, width: 4, layers: 1, norm: none}"
ADVERSARY = f"adversary={{discriminator: {PLAIN}, adaptive: false, weight: 0.3, start: 0}}"


def test_gradients_by_leaves_are_those_of_one_graph(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = recipe(pictures, ADVERSARY, "accumulate=1", "optimizer.clip=null", "model.quantizer.revive_after=null")
    torch.manual_seed(3)
    task = TokenizerTask(given, tvq.Tokenizer(given.model))
    images = torch.rand(8, 3, 16, 16) * 2 - 1
    assert task.adversary is not None
    out = task.tokenizer(images)
    record = Record(images, out.images)
    record.features = out.features  # on the tokenizer's own graph, not a leaf
    l1, colours = task.terms
    total = (out.images - images).abs().mean() + 0.5 * colours(record) + sum(out.quantized.losses.values())
    total = total - 0.3 * task.adversary.discriminator(out.images).logits[0].mean()
    parameters = {**dict(task.tokenizer.named_parameters())}
    parameters |= {f"term {i}": p for i, p in enumerate(task.term_parameters)}
    expected = dict(zip(parameters, torch.autograd.grad(total, list(parameters.values())), strict=True))
    found = one_step(task, {"images": images, "labels": torch.full((8,), -1)}, monkeypatch)
    assert found.keys() == expected.keys() and len(task.term_parameters) == 2
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert expected["encoder.conv_in.weight"].abs().sum() > 0
    assert isinstance(l1, nn.Module)


def test_mixing_is_the_formula_in_its_docstring() -> None:
    rec, adv, weight = torch.randn(2, 3), torch.randn(2, 3), torch.tensor(0.7)
    assert torch.equal(gradients.mixed((rec, None), (adv, None), weight)[0], rec + weight * adv)  # type: ignore[arg-type]
    at_output, at_features = gradients.mixed((rec, None), (None, adv), weight)
    assert at_output is rec and torch.equal(at_features, weight * adv)  # type: ignore[arg-type]
    assert gradients.mixed((None,), (None,), weight) == (None,)
    values = (torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True))
    back = torch.autograd.grad(gradients.carried(values, (rec, adv)), values)
    assert torch.equal(back[0], rec) and torch.equal(back[1], adv)


def test_an_adaptive_term_is_as_long_as_the_others_at_the_encoders_last_layer(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = recipe(pictures, ADVERSARY, "accumulate=1", "optimizer.clip=null", "model.quantizer.revive_after=null")
    images = torch.rand(8, 3, 16, 16) * 2 - 1
    found: dict[bool, dict[str, Tensor]] = {}
    for adaptive in (False, True):
        torch.manual_seed(3)
        task = TokenizerTask(given, tvq.Tokenizer(given.model))
        task.terms[1].adaptive = adaptive
        named = {parameter: name for name, parameter in task.tokenizer.named_parameters()}
        last = named[weight := task.tokenizer.encoder.last]
        out = task.tokenizer(images)
        record = Record(images, out.images)
        record.features = out.features
        (rec,) = torch.autograd.grad((out.images - images).abs().mean(), weight, retain_graph=True)
        (colours,) = torch.autograd.grad(0.5 * task.terms[1](record), weight)
        with monkeypatch.context() as patched:
            found[adaptive] = one_step(task, {"images": images}, patched)
    factor = (rec.norm() / (colours.norm() + 1e-4)).detach()
    assert not 0.9 < factor < 1.1
    more = found[True][last] - found[False][last]
    torch.testing.assert_close(more, (factor - 1) * colours, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found[True]["term 0"], factor * found[False]["term 0"], rtol=1e-4, atol=1e-7)
    head = "decoder.head.weight"
    torch.testing.assert_close(found[True][head], found[False][head])


def run(out: Path, given: Recipe) -> dict[str, Tensor]:
    train(given, out, device="cpu")
    return everything(out)


def parameters_of_terms(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in found.items() if name.endswith(("map.weight", "map.bias"))}


def test_parameters_of_terms_train_and_a_resumed_run_is_bitwise_the_same(pictures: Path, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", recipe(pictures, "steps=4"))
    first = run(tmp_path / "parts", recipe(pictures, "steps=2"))
    assert_bitwise(whole, run(tmp_path / "parts", recipe(pictures, "steps=4")))
    trained = parameters_of_terms(whole)
    assert len(trained) == 2
    assert all((trained[name] - value).abs().sum() > 0 for name, value in parameters_of_terms(first).items())


SGD = [
    "optimizer={kind: sgd, lr: 0.05, clip: 1.0}",
    "model.quantizer.revive_after=null",
    "steps=3",
    "checkpoint_every=3",
    "log_every=1",
    ADVERSARY,
    f"adversary.discriminator={{kind: bottleneck, rate: 0.1, discriminator: {PLAIN}}}",
]


def together(rank: int, world: int, pictures: Path, out: Path) -> int:
    """Train in each of the processes; returns how many of them accelerate joined."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    given = recipe(pictures, *SGD, "accumulate=1")
    joined = make_accelerator(given, out, "cpu").num_processes
    train(given, out, device="cpu")
    return joined


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert parameters_of_terms(found)
    for name, tensor in found.items():
        if not name.endswith("quantizer.age"):  # counts updates
            torch.testing.assert_close(
                tensor.double(), expected[name].double(), rtol=1e-4, atol=2e-5, msg=name, equal_nan=True
            )


def test_two_processes_and_micro_batches_give_terms_the_gradients_of_one(pictures: Path, tmp_path: Path) -> None:
    alone = run(tmp_path / "alone", recipe(pictures, *SGD, "accumulate=1"))
    assert_near(run(tmp_path / "parts", recipe(pictures, *SGD, "accumulate=4")), alone)
    assert in_processes(2, together, pictures, tmp_path / "both") == [2, 2]
    assert_near(everything(tmp_path / "both"), alone)
    lines = [read_log(tmp_path / name / "log.jsonl") for name in ("alone", "both")]
    for one, two in zip(*lines, strict=True):
        names = [name for name in one if name.startswith(("share/", "adversary/"))]
        assert {"share/l1", "share/generator", "adversary/kl", "adversary/accuracy_real"} <= set(names)
        assert two == pytest.approx({**two, **{name: one[name] for name in names}}, rel=1e-3, abs=1e-4)


def test_what_a_part_cannot_take_is_said_before_step_0(pictures: Path, tmp_path: Path) -> None:
    given = recipe(pictures, "losses=[{kind: l1}, {kind: colours, labelled: true}]")
    with pytest.raises(ValueError, match=r"^losses\.colours: needs labels"):
        train(given, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("wrapper", "problem"),
    [
        ("kind: projection, num_classes: 2", "num_classes: label 2 is out of range, 2 classes have labels 0 to 1"),
        ("kind: class_head, num_classes: 1001", None),
        ("kind: text", "text needs a caption for each image; 1 of 19 images have none"),
    ],
)
def test_one_image_that_a_part_cannot_take_is_found_before_step_0(
    wrapper: str, problem: str | None, pictures: Path, tmp_path: Path
) -> None:
    """Also where the first batches do not hold it."""
    lines = ["file_name,caption"]
    for i, picture in enumerate(sorted(pictures.iterdir())):
        name = f"{'c' if i == 18 else 'ab'[i % 2]}/{picture.name}"
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, tmp_path / "data" / name)
        lines.append(f"{name},{'' if i == 18 else 'a picture'}")
    (tmp_path / "data" / "metadata.csv").write_text("\n".join(lines))
    asked = f"adversary={{discriminator: {{{wrapper}, discriminator: {PLAIN}}}, start: 0}}"
    given = recipe(tmp_path / "data", asked, "batch_size=2", "accumulate=1", "steps=1")
    if problem is None:
        train(given, tmp_path / "run", device="cpu")
        return
    with pytest.raises(ValueError, match=rf"^adversary\.discriminator.*{problem}"):
        train(given, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_loss_that_trains_nothing_is_an_error(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Colours, "forward", lambda self, record: record.quantized.features.square().mean())
    given = recipe(pictures)
    task = TokenizerTask(given, tvq.Tokenizer(given.model))
    with pytest.raises(ValueError, match="the colours loss has no gradient at output or features: take it out"):
        task.step({"images": torch.rand(2, 3, 16, 16) * 2 - 1}, 0, make_accelerator(given, Path(), "cpu"))


def test_losses_at_the_features_alone_leave_the_decoder_untrained(pictures: Path, tmp_path: Path) -> None:
    alone = recipe(pictures, "losses=[{kind: colours}]")
    with pytest.raises(ValueError, match="step 0: no loss looks at the reconstruction, so the decoder cannot learn"):
        train(alone, tmp_path / "alone", device="cpu")
    judged = recipe(pictures, "losses=[{kind: colours}]", "adversary={discriminator: {kind: patchgan, layers: 2}}")
    train(judged, tmp_path / "judged", device="cpu")  # here the discriminator looks
