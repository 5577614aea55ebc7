"""What a prior is told beforehand, as a prefix of vectors: a class, or nothing."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tokenizers_vq.config import Config


class NoneConfig(Config):
    """No condition: one learned begin vector."""

    kind: Literal["none"] = "none"

    def build(self, dim: int) -> NoCondition:
        """The module, for a network of width `dim`."""
        return NoCondition(dim)


class NoCondition(nn.Module):
    """The begin vector. `dim`: width of the network."""

    guidable = False
    length = 1

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.begin = nn.Parameter(torch.empty(dim).normal_(std=0.02))

    def forward(self, condition: None, batch: int) -> Tensor:
        """Prefix `(batch, 1, D)`. Raises `ValueError` where a condition is given."""
        if condition is not None:
            raise ValueError("this prior is unconditional, but a condition was given; pass condition=None")
        return self.begin.expand(batch, 1, -1)

    def null(self, batch: int) -> Tensor:
        """The prefix that stands for no condition: `(batch, 1, D)`."""
        return self(None, batch)


class ClassConfig(Config):
    """A class label, dropped now and then so that classifier-free guidance has its other half (arXiv 2207.12598)."""

    kind: Literal["class"] = "class"
    num_classes: Annotated[int, Field(ge=1)]
    """number of classes"""
    dropout: Annotated[float, Field(ge=0, le=1)] = 0.1
    """probability in training that a label is replaced by the null class"""

    def build(self, dim: int) -> ClassCondition:
        """The module, for a network of width `dim`."""
        return ClassCondition(dim, **self.arguments())


class ClassCondition(nn.Module):
    """One vector a class; the last one is the null class. `dim`: width of the network."""

    guidable = True
    length = 1

    def __init__(self, dim: int, **fields: Any) -> None:
        super().__init__()
        config = ClassConfig(**fields)
        self.num_classes, self.dropout = config.num_classes, config.dropout
        self.classes = nn.Embedding(config.num_classes + 1, dim)
        nn.init.normal_(self.classes.weight, std=0.02)

    def forward(self, condition: Tensor | int | None, batch: int) -> Tensor:
        """Labels int64 `(batch,)`, one label for all, or None (the null class) -> prefix `(batch, 1, D)`.

        Raises `ValueError` for a label outside [0, num_classes) or another number of labels.
        """
        if condition is None:
            return self.null(batch)
        labels = torch.as_tensor(condition, device=self.classes.weight.device)
        if labels.ndim == 0:
            labels = labels.expand(batch)
        if labels.shape != (batch,) or labels.dtype.is_floating_point:
            raise ValueError(f"labels must be int64 ({batch},), got {labels.dtype} {tuple(labels.shape)}")
        if not torch.compiler.is_compiling() and ((labels < 0) | (labels >= self.num_classes)).any():
            wrong = labels[(labels < 0) | (labels >= self.num_classes)][0]
            raise ValueError(f"class {int(wrong)} is out of range: the classes are 0 to {self.num_classes - 1}")
        labels = labels.long()
        if self.training and self.dropout > 0:
            dropped = torch.rand(batch, device=labels.device) < self.dropout
            labels = labels.masked_fill(dropped, self.num_classes)
        return self.classes(labels)[:, None]

    def null(self, batch: int) -> Tensor:
        """The prefix that stands for no condition: `(batch, 1, D)`."""
        return self.classes.weight[self.num_classes].expand(batch, 1, -1)


ConditionConfig = Annotated[NoneConfig | ClassConfig, Field(discriminator="kind")]
