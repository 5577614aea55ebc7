"""The reversed classifier: an encoder forgets a label that a classifier reads; labels that it cannot take."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

import tokenizers_vq as tvq
from tokenizers_vq.batch import Batch
from tokenizers_vq.config import ScheduleCurve
from tokenizers_vq.losses.attribute_reversal import AttributeReversal, AttributeReversalConfig, reverse
from tokenizers_vq.losses.record import Record
from tokenizers_vq.training.gradients import at
from tokenizers_vq.training.recipe import load_recipe
from tokenizers_vq.training.step import TokenizerTask


def make(classes: int = 2, **fields: object) -> AttributeReversal:
    torch.manual_seed(0)
    return AttributeReversalConfig(num_classes=classes, **fields).build(
        tvq.create("vqvae-tiny-64", ["quantizer.dim=8"])
    )


def record_of(features: Tensor, labels: Tensor | None, step: int = 0) -> Record:
    images = torch.zeros(len(features), 3, 8, 8)
    return Record(Batch(images, labels=labels), images, features=features, step=step)


def test_the_gradient_is_reversed_by_a_factor() -> None:
    value = torch.randn(3, requires_grad=True)
    (gradient,) = torch.autograd.grad((reverse(value, 0.5) ** 2).sum(), value)
    assert torch.equal(reverse(value, 0.5), value) and torch.allclose(gradient, -value)


def test_the_factor_may_be_scheduled() -> None:
    term = make(reversal=ScheduleCurve(begin=0, end=1, over=(0, 10)))
    features, labels = torch.randn(4, 8, 2, 2), torch.arange(4) % 2
    records = [record_of(features, labels, step) for step in (0, 5, 10)]
    slopes = [at(term(record), record.leaves)[1] for record in records]
    assert slopes[0].eq(0).all()
    assert torch.allclose(2 * slopes[1], slopes[2])


def test_an_encoder_forgets_what_the_classifier_reads() -> None:
    """One channel tells the label. A linear encoder that need not keep it drops it; without reversal it stays."""

    def share_of_the_label(reversal: float) -> float:
        term = make(width=16, reversal=reversal)
        encoder = nn.Conv2d(8, 8, 1)
        parts = torch.optim.Adam([*term.parameters(), *encoder.parameters()], lr=1e-2)
        for _ in range(150):
            labels = torch.randint(2, (32,))
            images = torch.randn(32, 8, 2, 2)
            images[:, 0] += 3 * (2 * labels - 1)[:, None, None]
            features = encoder(images)
            record = record_of(features, labels)
            gradients = at(term(record), (record.leaves[1], *term.parameters()))
            parts.zero_grad()
            torch.autograd.backward([features, *term.parameters()], list(gradients))
            parts.step()
        return (encoder.weight[:, 0].norm() / encoder.weight.norm()).item()

    assert share_of_the_label(1.0) < 0.5 * share_of_the_label(0.0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "attribute_reversal needs a label for each image, and the data have none: give data with labels"),
        (torch.tensor([0, -1]), r"1 of 2 images have none \(-1\)"),
        (
            torch.tensor([0, 4]),
            "num_classes: label 4 is out of range, 2 classes have labels 0 to 1: set num_classes to 5",
        ),
    ],
)
def test_labels_that_it_cannot_take(labels: Tensor | None, message: str) -> None:
    record = record_of(torch.randn(2, 8, 2, 2), labels)
    for ask in (lambda: make().check(record.batch), lambda: make()(record)):
        with pytest.raises(ValueError, match=message):
            ask()


def test_its_field_is_named_as_a_recipe_sets_it() -> None:
    """Before step 0 and in a later batch."""
    given = ["losses=[{kind: l2}, {kind: attribute_reversal, num_classes: 2}]", "model.image_size=16"]
    task = TokenizerTask(recipe := load_recipe("vqvae-tiny-64", given), recipe.model.build())
    batch = {"images": torch.full((2, 3, 16, 16), -0.5), "keys": ["a", "b"], "labels": torch.tensor([0, 1])}
    for labels in ([0, 4], [1, 4]):
        with pytest.raises(ValueError, match=r"^losses\.1\.num_classes: label 4 .* set num_classes to 5"):
            task.step({**batch, "labels": torch.tensor(labels)}, 0, Accelerator(cpu=True))
        task._checked = True
    load_recipe("vqvae-tiny-64", [*given, "losses.1.num_classes=5"])
