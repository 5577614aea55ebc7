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
    null: Context | None = None
    """what stands for no condition, of the same shape; None where guidance cannot be had"""

    def guided(self) -> Context:
        """`2B` rows: these, then those of no condition. Raises `ValueError` where there is no null."""
        if self.null is None:
            raise ValueError("guidance needs a condition that was left out now and then in training")
        vectors, masks = torch.cat((self.vectors, self.null.vectors)), (self.mask, self.null.mask)
        if masks == (None, None):
            return Context(vectors)
        full = torch.ones(self.vectors.shape[:2], dtype=torch.bool, device=vectors.device)
        return Context(vectors, torch.cat([full if mask is None else mask for mask in masks]))


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

    def take(self, batch: Mapping[str, Any], draw: bool = False) -> Any:
        """The value for `resolve` of a batch of codes `{tokens, labels, captions}`: nothing, unless overridden.

        `labels`: int64 `(B,)`; `captions`: a list of `B` tuples of strings, None where the codes have none. `draw`: one
        of several captions by torch's generator, which the loop seeds at every micro-batch; else the first.
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

    def check_null(self) -> None:
        """Raises `ValueError` where the prior never learnt what no condition is."""
        if not self.guidable:
            raise ValueError(
                f"this prior never learnt to do without {self.noun} (its condition's dropout is 0): give one"
            )

    def card(self) -> tuple[str, str]:
        """For the model card: a sentence on what is told, and an example of it as Python writes it ("" for none)."""
        return "It knows no classes.", ""


def chosen(captions: list[tuple[str, ...]], draw: bool) -> list[str]:
    """One caption a row: drawn by torch's generator, or the first; "" where a row has none."""
    if not draw:
        return [row[0] if row else "" for row in captions]
    draws = torch.rand(len(captions), device="cpu").tolist()
    return [row[int(share * len(row))] if row else "" for row, share in zip(captions, draws, strict=True)]
