"""StyleGAN2's discriminator and R1 on it against recorded tensors of two references."""

from __future__ import annotations

import re

import pytest
import torch

from tests.golden.test_parts_losses import Case
from tokenizers_vq.discriminators import stylegan2
from tokenizers_vq.discriminators.stylegan2 import StyleGAN2, minibatch_deviation
from tokenizers_vq.losses.record import Record
from tokenizers_vq.losses.regularisers import R1

CASES = ["px32-batch4", "px32-batch6-enhancing", "px64-batch8"]


def our_key(key: str) -> str | None:
    """The reference's `convs.0` (or `blocks.0`) is our stem; its layers are lists of blur, convolution, activation."""
    layer, _, name = key.rpartition(".")
    if name == "kernel":
        return None
    last = {"final_conv": "mix.0", "final_linear.0": "head.1", "final_linear.1": "head.3"}
    for theirs, ours in last.items():
        if layer.startswith(theirs):
            return f"{ours}.{name}"
    match = re.match(r"\w+\.(\d+)\.(\w+)", layer)
    assert match, key
    return f"stem.0.{name}" if match[1] == "0" else f"blocks.{int(match[1]) - 1}.{match[2]}.{name}"


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(f"stylegan2-discriminator/{request.param}")


@pytest.fixture
def discriminator(case: Case, monkeypatch: pytest.MonkeyPatch) -> StyleGAN2:
    arguments = case.meta["arguments"]
    # The references were narrowed in the same way: by another table of widths.
    monkeypatch.setattr(stylegan2, "layer_width", lambda side, *_: arguments["widths"][str(side)])
    model = StyleGAN2(3, (arguments["size"], arguments["size"]))
    weights = {our_key(key): value for key, value in case.weights.items()}
    model.load_state_dict({key: value for key, value in weights.items() if key}, strict=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == case.meta["n_parameters"]
    return model


def test_judgement(case: Case, discriminator: StyleGAN2) -> None:
    images = case.io["input"].requires_grad_()
    judgement = discriminator(images)
    case.equal("features_before_stddev", judgement.features[-1])
    case.equal("stddev_map", minibatch_deviation(judgement.features[-1], discriminator.stddev_group))
    case.equal("logits_batch", judgement.logits[0])
    assert judgement.logits[0].shape == (len(images), 1)
    (gradient,) = torch.autograd.grad((judgement.logits[0] * case.io["upstream"]).sum(), images)
    case.equal("input_grad", gradient)
    case.equal("logits_one_by_one", torch.cat([discriminator(image[None]).logits[0] for image in images]))


def test_r1(case: Case, discriminator: StyleGAN2) -> None:
    images = case.io["input"]
    record = Record(images, torch.zeros_like(images), discriminator=discriminator)
    penalty = 2 * R1()(record, discriminator, record.real, record.real)  # recorded without the 1/2 of gamma / 2
    penalty.backward()
    case.equal("r1", penalty)
    recorded = [name for name in case.io if name.startswith("r1_grad")]
    assert len(recorded) == 3
    for name in recorded:
        kind, _, theirs = name.partition(".")
        ours = our_key(theirs)
        assert ours
        gradient = discriminator.get_parameter(ours).grad
        assert gradient is not None
        case.equal(name, gradient if kind == "r1_grad" else torch.linalg.vector_norm(gradient))
