"""No condition: one learned vector to begin with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prior.conditions.base import Condition, Context
from tokenizers_vq.config import Config
from tokenizers_vq.data.shards import CodeShards


class NoneConfig(Config):
    """No condition: one learned begin vector."""

    kind: Literal["none"] = "none"

    def build(self, dim: int) -> NoCondition:
        """The module, for a network of width `dim`."""
        return NoCondition(dim)

    def fit(self, shards: Mapping[str, CodeShards]) -> NoneConfig:
        """Itself: any codes will do."""
        return self


class NoCondition(Condition):
    """The begin vector. `dim`: width of the network."""

    noun = ""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.begin = nn.Parameter(torch.empty(dim).normal_(std=0.02))

    def resolve(self, value: Any, n: int) -> tuple[Tensor, ...]:
        """None -> `n` rows of nothing. Raises `ValueError` where anything is given."""
        if value is not None:
            what = f"'{value}'" if isinstance(value, str) else "a condition"
            raise ValueError(f"{what} is given: this prior was trained without a class or text; leave it out")
        return self.nothing(n)

    def nothing(self, n: int) -> tuple[Tensor, ...]:
        """`n` rows of nothing."""
        return (self.begin.new_empty(n, 0),)

    def encode(self, *told: Tensor) -> Context:
        """Rows of nothing -> the begin vector, `(B, 1, D)`."""
        (rows,) = told
        return Context(self.begin.expand(rows.shape[0], 1, -1))
