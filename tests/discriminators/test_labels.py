"""Discriminators that know classes: what they add, and labels that they refuse."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.laws.adversaries import INNER, PLAIN, make_adversary, make_record
from tokenizers_vq.batch import Batch
from tokenizers_vq.discriminators import (
    ClassHeadConfig,
    PairConfig,
    ProjectionConfig,
    SeveralConfig,
    StyleGAN2Config,
    UNetConfig,
)

IMAGES = torch.zeros(3, 3, 32, 32)


@pytest.mark.parametrize("config", [ProjectionConfig, ClassHeadConfig])
@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (None, "needs a label for each image, and the data have none: give data with labels"),
        ([-1, -1, -1], "needs a label for each image, and the data have none: give data with labels"),
        ([0, -1, 3], r"1 of 3 images have none \(-1\): give each one"),
        (
            [0, 4, 3],
            r"num_classes: label 4 is out of range, 4 classes have labels 0 to 3: set num_classes to 5 or more",
        ),
    ],
)
def test_labels_that_are_missing_or_out_of_range_are_refused(
    config: type, labels: list[int] | None, problem: str
) -> None:
    discriminator = config(discriminator=PLAIN, num_classes=4).build(3, (32, 32))
    discriminator.check(Batch(IMAGES, labels=torch.tensor([0, 3, 3])))
    with pytest.raises(ValueError, match=rf"^adversary\.discriminator.*{problem}") as error:
        discriminator.check(Batch(IMAGES, labels=None if labels is None else torch.tensor(labels)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("config", [ProjectionConfig, ClassHeadConfig])
def test_a_later_batch_without_labels_is_refused_too(config: type) -> None:
    discriminator = config(discriminator=PLAIN, num_classes=4).build(3, (32, 32))
    record = make_record(discriminator)
    record.batch = record.batch._replace(labels=torch.tensor([0, 1, 2, 3, -1, -1, 0, 0]))
    with pytest.raises(ValueError, match=r"2 of 8 images have none"):
        _ = record.fake


@pytest.mark.parametrize("config", [ProjectionConfig, ClassHeadConfig])
def test_a_later_batch_names_the_place_inside_wrappers_and_ensembles(config: type) -> None:
    told = config(discriminator=PLAIN, num_classes=4)
    discriminator = SeveralConfig(discriminators=[PLAIN, PairConfig(discriminator=told)]).build(3, (32, 32))
    path = r"^adversary\.discriminator\.discriminators\.1\.discriminator"
    for labels, problem in (
        ([0, 1, 2, 3, -1, -1, 0, 0], ": .*2 of 8 images"),
        ([0, 1, 2, 9, 0, 0, 0, 0], r"\.num_classes: "),
    ):
        record = make_record(discriminator)
        record.batch = record.batch._replace(labels=torch.tensor(labels))
        with pytest.raises(ValueError, match=path + problem):
            _ = record.fake


def test_projection_by_hand_on_logits_of_any_shape() -> None:
    discriminator = ProjectionConfig(discriminator=UNetConfig(width=4), num_classes=4).build(3, (32, 32)).eval()
    images, labels = torch.rand(3, 3, 32, 32), torch.tensor([1, 3, 1])
    with torch.no_grad():
        plain, told = discriminator.inner(images), discriminator(images, labels)
        product = torch.einsum("bc,bchw->b", discriminator.classes.weight[labels], plain.features[-1]) / 16
    for before, after in zip(plain.logits, told.logits, strict=True):
        torch.testing.assert_close(after - before, product.view(3, *[1] * (before.ndim - 1)).expand_as(before))


def test_class_head_adds_a_cross_entropy_to_the_discriminators_loss_alone() -> None:
    adversary = make_adversary(discriminator=ClassHeadConfig(discriminator=INNER, num_classes=4, weight=0.5))
    record = make_record(adversary.discriminator)
    loss, figures = adversary.own_loss(adversary.discriminator, record)
    parts = [figures[f"adversary/class_{side}"] for side in ("real", "fake")]
    torch.testing.assert_close(loss.detach(), figures["discriminator"] + sum(parts))
    judged = adversary.discriminator.inner(record.images)
    classes = adversary.discriminator.head(judged.features[-1].mean((2, 3)))
    torch.testing.assert_close(parts[0], 0.5 * F.cross_entropy(classes, record.batch.labels).detach())
    assert torch.equal(judged.logits[0], record.real.logits[0])


def test_both_stand_on_every_wrapper() -> None:
    config = ProjectionConfig(
        num_classes=4,
        discriminator=ClassHeadConfig(
            num_classes=4, discriminator=PairConfig(discriminator=StyleGAN2Config(width=1 / 64))
        ),
    )
    discriminator = config.build(3, (32, 32))
    record = make_record(discriminator)
    assert (
        discriminator.feature_width == discriminator(*discriminator.inputs(record, record.images)).features[-1].shape[1]
    )
