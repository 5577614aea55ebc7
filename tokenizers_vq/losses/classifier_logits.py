"""Distance of a classifier's logits, the perceptual loss of MaskBit (arXiv 2409.16211) and TiTok's second stage."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from tokenizers_vq.losses.record import Record
from tokenizers_vq.losses.stages import BackboneConfig, prepared
from tokenizers_vq.losses.terms import Term
from tokenizers_vq.networks.backbones import Backbone
from tokenizers_vq.tokenizer import Tokenizer


class ClassifierLogitsConfig(BackboneConfig):
    """Squared difference of the logits that a timm backbone's own classifier gives image and reconstruction."""

    kind: Literal["classifier_logits"] = "classifier_logits"

    def build(self, tokenizer: Tokenizer | None = None) -> ClassifierLogits:
        return ClassifierLogits(**self.arguments())


class ClassifierLogits(Term):
    """`mean over images and classes of (c(x) - c(y))^2`. Raises `ValueError` for a backbone without a classifier."""

    name = "classifier_logits"

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        config = ClassifierLogitsConfig(**fields)
        self.weight, self.bands, self.resize = config.weight, config.bands, config.resize
        self.network = Backbone(config.backbone)
        if not self.network.model.num_classes:
            raise ValueError(
                f"losses.classifier_logits.backbone: {config.backbone} has no classifier: name one with ImageNet's "
                "classes, or use kind `perceptual`"
            )

    def forward(self, record: Record) -> Tensor:
        key = ("logits", self.network.name, self.resize, self.bands)
        real = record.once(key, lambda: self._real(record.images))
        return (self._logits(record.reconstructions) - real).square().mean()

    def _logits(self, images: Tensor) -> Tensor:
        return self.network.logits(prepared(images, self.bands, self.resize, self.name)).float()

    @torch.no_grad()
    def _real(self, images: Tensor) -> Tensor:
        return self._logits(images)
