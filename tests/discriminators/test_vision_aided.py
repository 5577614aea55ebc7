"""Frozen backbones as discriminators: what is saved, what trains, what is refused."""

from __future__ import annotations

import inspect

import pytest
import torch

from tokenizers_vq.discriminators import PairConfig, VisionAidedConfig
from tokenizers_vq.discriminators.vision_aided import JUDGE
from tokenizers_vq.evaluation.evaluate import evaluate


def test_the_backbone_is_frozen_and_not_saved() -> None:
    discriminator = VisionAidedConfig(width=4).build(3, (64, 64)).train()
    assert all(name.startswith("heads.") for name in discriminator.state_dict())
    trained = {name for name, p in discriminator.named_parameters() if p.requires_grad}
    assert trained == set(discriminator.state_dict()) and not discriminator.backbone.training
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    judgement = discriminator(images)
    assert [tuple(logits.shape) for logits in judgement.logits] == [(2, 1, 16, 16), (2, 1, 8, 8), (2, 1, 4, 4)]
    assert judgement.features[-1].shape[1] == discriminator.feature_width
    sum(logits.sum() for logits in judgement.logits).backward()  # type: ignore[union-attr]
    assert images.grad is not None and images.grad.abs().sum() > 0


def test_grey_images_are_shown_as_photographs() -> None:
    grey, rgb = (VisionAidedConfig(width=4).build(channels, (32, 32)) for channels in (1, 3))
    grey.load_state_dict(rgb.state_dict())
    images = torch.rand(2, 1, 32, 32)
    assert torch.equal(grey(images).logits[0], rgb(images.expand(-1, 3, -1, -1)).logits[0])
    with pytest.raises(ValueError, match="takes 1 or 3 channels, and gets 4: take another"):
        VisionAidedConfig().build(4, (32, 32))
    with pytest.raises(ValueError, match=r"and gets 6: .*inside pair and joint"):
        PairConfig(discriminator=VisionAidedConfig()).build(3, (32, 32))


def test_the_judge_of_the_evaluation_is_refused() -> None:
    assert inspect.signature(evaluate).parameters["backbone"].default == JUDGE
    for name in (JUDGE, f"{JUDGE}.in1k"):
        with pytest.raises(ValueError, match=r"backbone: \S+ is also the judge .*: take another, such as"):
            VisionAidedConfig(backbone=name).build(3, (64, 64))


@pytest.mark.parametrize("stages", [(2, 1), (1, 1), (3, 5)])
def test_stages_that_are_not_there_are_refused(stages: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"stages: backbone 'tf_efficientnet_lite1' has stages 0 to 4, .* got \["):
        VisionAidedConfig(stages=stages).build(3, (64, 64))
