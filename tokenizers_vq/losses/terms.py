"""Terms: losses of one micro-batch, weighted by a schedule; L1, L2 and Huber here."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tokenizers_vq.batch import Batch
from tokenizers_vq.config import Config, Rate
from tokenizers_vq.losses.record import Record
from tokenizers_vq.tokenizer import Tokenizer


class Term(nn.Module):
    """One loss of the image, of the features, or of both; its config builds it for a tokenizer.

    It is differentiated at the record's leaves. Its own parameters, where it has some that take a gradient, join the
    tokenizer's optimizer and the checkpoint, and their gradients are averaged over processes. A term whose weight is 0
    at a step is not computed there.
    """

    name: str
    """as the log and the message about a non-finite step call it"""
    weight: Rate
    adaptive: bool = False
    """whether its gradients are multiplied by how much longer the others' are at the encoder's last layer"""

    def check(self, batch: Batch) -> None:
        """Raises `ValueError`, one line, for labels or captions that it cannot take. Asked before step 0."""

    @abstractmethod
    def forward(self, record: Record) -> Tensor:
        """float32 scalar, unweighted."""


@contextmanager
def placed(number: int, kind: str) -> Iterator[None]:
    """What a term names as `losses.KIND.FIELD` a person sets as `losses.<number>.FIELD`: messages say so."""
    root = f"losses.{kind}."
    try:
        yield
    except ValueError as error:
        if not str(error).startswith(root):
            raise
        raise ValueError(f"losses.{number}.{str(error).removeprefix(root)}") from None


class L1Config(Config):
    """Mean absolute difference of the images in [-1, 1]."""

    kind: Literal["l1"] = "l1"
    weight: Rate = 1.0
    """weight, or a schedule of it"""

    def build(self, tokenizer: Tokenizer | None = None) -> L1:
        return L1(**self.arguments())


class L1(Term):
    """`mean |x - y|`."""

    name = "l1"

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.weight = L1Config(**fields).weight

    def forward(self, record: Record) -> Tensor:
        return (record.images.float() - record.reconstructions.float()).abs().mean()


class L2Config(Config):
    """Mean squared difference of the images in [-1, 1]."""

    kind: Literal["l2"] = "l2"
    weight: Rate = 1.0
    """weight, or a schedule of it"""

    def build(self, tokenizer: Tokenizer | None = None) -> L2:
        return L2(**self.arguments())


class L2(Term):
    """`mean (x - y)^2`."""

    name = "l2"

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.weight = L2Config(**fields).weight

    def forward(self, record: Record) -> Tensor:
        return (record.images.float() - record.reconstructions.float()).square().mean()


class HuberConfig(Config):
    """Squared where image and reconstruction are near, absolute where they are far apart (Huber 1964)."""

    kind: Literal["huber"] = "huber"
    weight: Rate = 1.0
    """weight, or a schedule of it"""
    delta: float = Field(default=0.1, gt=0)
    """difference, of images in [-1, 1], at which the squared part ends"""

    def build(self, tokenizer: Tokenizer | None = None) -> Huber:
        return Huber(**self.arguments())


class Huber(Term):
    """`mean h(x - y)`, with `h(d) = d^2 / 2` up to `|d| = delta`, and `delta (|d| - delta / 2)` beyond."""

    name = "huber"

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        config = HuberConfig(**fields)
        self.weight, self.delta = config.weight, config.delta

    def forward(self, record: Record) -> Tensor:
        return F.huber_loss(record.reconstructions.float(), record.images.float(), delta=self.delta)
