"""The contract of a condition: what a person or a batch gives -> tensors -> vectors that a network is told."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn


class Context(NamedTuple):
    """What a network is told beforehand: P vectors a row, as a prefix, for cross-attention, or to be pooled."""

    vectors: Tensor
    """`(B, P, D)`, D the network's width"""
    mask: Tensor | None = None
    """bool `(B, P)`, False where a vector is padding, which never stands last; None: all count"""
    null: Tensor | None = None
    """`(B, P, D)`, under the same mask: the vectors that stand for no condition; None where guidance cannot be had"""

    def guided(self) -> Context:
        """`2B` rows: these, then those of no condition. Raises `ValueError` where there is no null."""
        if self.null is None:
            raise ValueError("guidance needs a condition that was left out now and then in training")
        mask = None if self.mask is None else self.mask.repeat(2, 1)
        return Context(torch.cat((self.vectors, self.null)), mask)


class Condition(nn.Module):
    """What a prior is told. A condition has a config with `build(dim, label_names)` and `fit(shards)`.

    `fit(shards: Mapping[str, CodeShards])` is the config with what the codes tell filled in (the number of classes);
    it raises `ValueError` where they lack what the condition needs. The first folder is trained on, others measured on.
    """

    noun: ClassVar[str]
    """what is told, for messages: "a class"; "" where nothing is"""
    guidable: bool
    """whether it was left out now and then in training, so that guidance has its other half"""

    @abstractmethod
    def resolve(self, value: Any, n: int) -> tuple[Tensor, ...]:
        """What a person or a batch gives for `n` rows -> tensors of `n` rows each, on the module's device.

        None stands for no condition. Raises `ValueError` of one line for anything that cannot be told.
        """

    @abstractmethod
    def forward(self, *told: Tensor) -> Context:
        """What `resolve` gave -> the context; in train mode rows are replaced by the null at the config's rate."""

    def take(self, batch: Mapping[str, Any]) -> Any:
        """The value for `resolve` of a batch of codes `{tokens, labels, captions}`: nothing, unless overridden.

        `labels`: int64 `(B,)`; `captions`: a list of `B` tuples of strings, None where the codes have none. In train
        mode one of several captions is drawn from torch's generator, which the loop seeds at every micro-batch; else
        the first is taken.
        """
        return None

    def check_guidance(self, guidance: float, value: Any) -> None:
        """Raises `ValueError` where guidance other than 1 is asked for and cannot be had with this `value`."""
        if guidance == 1:
            return
        if not self.noun:
            raise ValueError(f"guidance {guidance:g} needs a condition, and this prior knows none: leave guidance out")
        if not self.guidable:
            raise ValueError(
                f"guidance {guidance:g} compares with what is likely without {self.noun}, which this prior never "
                "learnt (its condition's dropout is 0): leave guidance out"
            )
        if value is None:
            raise ValueError(f"guidance {guidance:g} needs {self.noun}: give one, or leave guidance out")

    def card(self) -> tuple[str, str]:
        """For the model card: a sentence on what is told, and an example of it as Python writes it ("" for none)."""
        return "It knows no classes.", ""


def chosen(captions: list[tuple[str, ...]], training: bool) -> list[str]:
    """One caption a row: drawn from torch's generator in training, else the first; "" where a row has none."""
    if not training:
        return [row[0] if row else "" for row in captions]
    draws = torch.rand(len(captions)).tolist()
    return [row[int(draw * len(row))] if row else "" for row, draw in zip(captions, draws, strict=True)]
