"""What a backbone says of images: features and logits, once for all measures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import tokenizers_vq._torchvision  # noqa: F401  (before anything that imports torchvision)
from tokenizers_vq.evaluation.metrics import BackboneFeatures, FeatureStatistics, frechet_distance
from tokenizers_vq.networks.backbones import Backbone


class Seen(NamedTuple):
    """What the judge says of n images."""

    features: Tensor
    """float32 `(n, D)`"""
    logits: Tensor
    """float32 `(n, K)`"""

    def distance(self, other: Seen) -> float:
        """Frechet distance of the features; compare it between equal numbers of images alone."""
        moments = []
        for part in (self, other):
            statistics = FeatureStatistics(part.features.shape[1])
            statistics.update(part.features)
            moments.append(statistics.compute()[:2])
        return frechet_distance(*moments[0], *moments[1])

    def part(self, index: Any) -> Seen:
        """Of some of the images."""
        return Seen(self.features[index], self.logits[index])


class Judge(nn.Module):
    """A backbone of timm with ImageNet weights, by its name; features are those of `layer`, averaged over positions.

    Images are resized to `size` x `size`. Raises `ValueError` for an unknown name or layer,
    `FileNotFoundError` where its weights are out of reach.
    """

    def __init__(self, name: str = "tf_efficientnet_lite0", layer: str = "head", size: int = 224) -> None:
        super().__init__()
        self.name, self.layer = name, layer
        self.backbone = Backbone(name)
        self.features = BackboneFeatures(_Both(self.backbone), layer, size)
        self.classes = int(self.backbone.model.num_classes)

    @property
    def score_name(self) -> str:
        """`inception_score` of Inception's logits, else `class_score`."""
        return "inception_score" if self.name.startswith("inception_v3") else "class_score"

    @torch.inference_mode()
    def see(self, batches: Iterable[Tensor]) -> Seen:
        """Images `(B, 1 or 3, H, W)` in [-1, 1], in batches. Raises `ValueError` for other channels, or none at all."""
        features, logits = [], []
        for images in batches:
            features.append(self.features(images.float().clamp(-1, 1)).cpu().clone())
            logits.append(self.features.network.logits.float().cpu().clone())
        if not features:
            raise ValueError("no images to judge")
        return Seen(torch.cat(features), torch.cat(logits))


class _Both(nn.Module):
    """Keeps the logits of the pass that makes the features."""

    logits: Tensor

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def layers(self, images: Tensor, names: list[str]) -> dict[str, Tensor]:
        """As `Backbone.layers`."""
        found = self.backbone.layers(images, sorted({*names, "head"}))
        self.logits = self.backbone.model.get_classifier()(found["head"])
        return found
