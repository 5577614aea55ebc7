"""Gradient reversal (Ganin and Lempitsky, arXiv 1409.7495): features that do not say which label an image has."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tokenizers_vq.batch import Batch, check_labels
from tokenizers_vq.config import Config, Rate, Schedule, schedule_value
from tokenizers_vq.losses.record import Record, levels
from tokenizers_vq.losses.terms import Term
from tokenizers_vq.tokenizer import Tokenizer


class AttributeReversalConfig(Config):
    """Cross-entropy of a classifier of the labels, which learns while the encoder learns to mislead it."""

    kind: Literal["attribute_reversal"] = "attribute_reversal"
    weight: Rate = 1.0
    """weight, or a schedule of it; the classifier's and the encoder's"""
    num_classes: Annotated[int, Field(ge=2)]
    """of the labels, or domains, 0 to num_classes - 1; each image needs one"""
    reversal: Schedule = 1.0
    """factor of the reversed gradient that the encoder is given; the paper raises it from 0 to 1"""
    width: int = Field(default=128, ge=1)
    """of the classifier's hidden layer"""

    def build(self, tokenizer: Tokenizer) -> AttributeReversal:
        return AttributeReversal(tokenizer, **self.arguments())


class AttributeReversal(Term):
    """`mean -ln softmax(classifier(features))[label]`; the gradient at the features is multiplied by `-reversal`.

    The classifier sees each position by itself (of every grid), then the mean over positions.
    """

    name = "attribute_reversal"

    def __init__(self, tokenizer: Tokenizer, **fields: Any) -> None:
        super().__init__()
        config = AttributeReversalConfig(**fields)
        self.weight, self.reversal, self.num_classes = config.weight, config.reversal, config.num_classes
        self.place = f"losses.{self.name}", f"losses.{self.name}.num_classes"
        self.hidden = nn.ModuleList(nn.Linear(each.in_dim, config.width) for each in tokenizer.quantizers)
        self.head = nn.Linear(config.width, config.num_classes)

    def check(self, batch: Batch) -> None:
        """Raises `ValueError` for data without labels, images without one, and labels from `num_classes` on."""
        check_labels(batch.labels, self.num_classes, *self.place)

    def forward(self, record: Record) -> Tensor:
        """Raises `ValueError` as `check` does."""
        labels = check_labels(record.batch.labels, self.num_classes, *self.place)
        factor = schedule_value(self.reversal, record.step)
        seen = []
        for layer, features in zip(self.hidden, levels(record.features), strict=True):
            vectors = reverse(features, factor).flatten(2).transpose(1, 2)  # (B, N, D)
            seen.append(F.silu(layer(vectors)).mean(dim=1))
        logits = self.head(torch.stack(seen).mean(dim=0))
        return F.cross_entropy(logits.float(), labels.to(logits.device))


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.factor * gradient, None


def reverse(value: Tensor, factor: float) -> Tensor:
    """`value` itself; its gradient is `-factor` times what comes from above."""
    return _Reverse.apply(value, factor)
