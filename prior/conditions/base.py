"""The contract of a condition: what a person or a batch gives -> tensors -> vectors that a network is told."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor, nn

from tokenizers_vq.config import nearest
from tokenizers_vq.data.shards import CodeShards
from tokenizers_vq.tokenizer import Tokenizer


class Context(NamedTuple):
    """What a network is told beforehand: P vectors a row, as a prefix, for cross-attention, or to be pooled."""

    vectors: Tensor
    """`(B, P, D)`, D the network's width"""
    mask: Tensor | None = None
    """bool `(B, P)`, False where a vector is padding, which never stands last; None: all count"""
    null: Context | None = None
    """what stands for no condition, of the same shape; None where guidance is not possible"""
    plane: tuple[int, int, int] | None = None
    """of vectors that stand on a grid, in raster order: the number of the first, rows and columns"""

    def guided(self) -> Context:
        """`2B` rows: these, then those of no condition. Raises `ValueError` where there is no null."""
        if self.null is None:
            raise ValueError("guidance needs a condition that was left out now and then in training")
        vectors, masks = torch.cat((self.vectors, self.null.vectors)), (self.mask, self.null.mask)
        if masks == (None, None):
            return Context(vectors, plane=self.plane)
        full = torch.ones(self.vectors.shape[:2], dtype=torch.bool, device=vectors.device)
        return Context(vectors, torch.cat([full if mask is None else mask for mask in masks]), plane=self.plane)


class Condition(nn.Module):
    """What a prior is told. A condition has a config with `build(dim)` and `fit(shards)`.

    `fit(shards: Mapping[str, CodeShards])` is the config with what the codes tell filled in (the number of classes);
    it raises `ValueError` where they lack what the condition needs. The first folder is trained on, others measured on.
    """

    noun: str
    """what is told, for messages: "a class"; "" where nothing is"""
    name: str = ""
    """by which it is told beside others, and as an option of the command: "text", "class"; "" where nothing is"""
    tensors: ClassVar[int] = 1
    """how many tensors `resolve` gives; of a mixture, all of its parts'"""
    dropout: float = 0.0
    """probability in training that a row is told nothing"""

    @property
    def guidable(self) -> bool:
        """Whether it was left out now and then in training, so that guidance has its other half."""
        return self.dropout > 0

    @property
    def parts(self) -> dict[str, Condition]:
        """By name, what is told: this alone, or each of several; empty where nothing is."""
        return {self.name: self} if self.name else {}

    @abstractmethod
    def resolve(self, value: Any, n: int) -> tuple[Tensor, ...]:
        """What a person or a batch gives for `n` rows -> tensors of `n` rows each, on the module's device.

        None stands for no condition. Raises `ValueError` of one line for anything that cannot be told.
        """

    @abstractmethod
    def nothing(self, n: int) -> tuple[Tensor, ...]:
        """What `resolve` gives for no condition, for `n` rows, whether or not it may be asked for."""

    @abstractmethod
    def encode(self, *told: Tensor) -> Context:
        """What `resolve` gave for B rows -> vectors `(B, P, D)` and their mask."""

    def drop(self, *told: Tensor) -> tuple[Tensor, ...]:
        """In train mode, rows replaced by those of no condition at the config's rate."""
        if not self.training or self.dropout == 0:
            return told
        gone = torch.rand(told[0].shape[0], device=told[0].device) < self.dropout
        return replaced(told, gone, self.nothing(1))

    def forward(self, *told: Tensor) -> Context:
        """What `resolve` gave -> the context; in train mode rows are replaced by the null at the config's rate."""
        context = self.encode(*self.drop(*told))
        if not self.guidable:
            return context
        empty = self.encode(*self.nothing(1))
        vectors, mask = empty.vectors, empty.mask
        rows = context.vectors.shape[:2]
        null = Context(vectors.expand_as(context.vectors), None if mask is None else mask.expand(rows))
        return context._replace(null=null)

    def take(self, batch: Mapping[str, Any], draw: bool = False) -> Any:
        """The value for `resolve` of a batch of codes, as `prior.data.read_rows` gives it: nothing, unless overridden.

        `draw`: one of several captions by torch's generator, which the loop seeds at every micro-batch; else the first.
        """
        return None

    def prepare(self, shards: Mapping[str, CodeShards]) -> None:
        """Before training or measuring on folders of codes, by name: compute what is computed once."""

    def adopt(self, tokenizer: Tokenizer) -> None:
        """A tokenizer that is at hand, for what is told by codes of the same one."""

    def received(self, value: Any, picture: Callable[[str], Image]) -> Any:
        """What a stranger sends as plain data -> a value for `resolve`, in which no text is taken for a file.

        `picture` makes one of the text that stands for it. As it is, unless overridden: who reads files must.
        """
        return value

    def read(self, text: str) -> list[Any]:
        """What an option of the command says -> values that are told in turn. Raises `ValueError`."""
        return [text]

    def every(self) -> list[Any]:
        """Values that are shown in turn where nothing is asked for: no condition, unless overridden."""
        return [None]

    def shown(self, value: Any) -> dict[str, Any]:
        """One row's value as `samples.json` keeps it."""
        return {} if value is None else {self.name: value}

    def own(self, value: Any) -> Any:
        """A value that may be given by name, as `{"text": "a cat"}` -> the value of `resolve`.

        Raises `ValueError` for names of what this prior is not told.
        """
        if not isinstance(value, Mapping):
            return value
        self.check_names(value)
        return value.get(self.name)

    def check_names(self, names: Sequence[str] | Mapping[str, Any]) -> None:
        """Raises `ValueError` for a name of what this prior is not told."""
        for name in names:
            if name not in self.parts:
                raise ValueError(f"this prior is told no {name}{self.told_words(str(name))}")

    def told_words(self, name: str = "") -> str:
        """What is told, as the end of a message about `name`, which is not."""
        parts = self.parts
        hint = nearest(name, parts)
        if "did you mean" in hint:
            return hint
        return f"; it is told {' and '.join(parts)}" if parts else "; it is told nothing"

    def check_guidance(self, guidance: float, value: Any) -> None:
        """Raises `ValueError` where guidance other than 1 is asked for but not possible with this `value`."""
        if guidance == 1:
            return
        if not self.noun:
            raise ValueError(f"guidance {guidance:g} needs a condition, and this prior knows none: leave guidance out")
        if not self.guidable:
            raise ValueError(
                f"guidance {guidance:g} compares with what is likely without {self.noun}, which this prior never "
                "learnt (its condition's dropout is 0): leave guidance out"
            )
        if self.absent(value):
            raise ValueError(f"guidance {guidance:g} needs {self.noun}: give one, or leave guidance out")

    def absent(self, value: Any) -> bool:
        """Whether a value that a person gives stands for no condition in all rows."""
        return value is None

    def remark(self, value: Any) -> None:
        """The log says what is not read of a `value` that a person asks samples of: nothing, unless overridden."""

    def check_null(self) -> None:
        """Raises `ValueError` where the prior never learnt what no condition is."""
        if not self.guidable:
            raise ValueError(
                f"this prior never learnt to do without {self.noun} (its condition's dropout is 0): give one"
            )

    def card(self) -> tuple[str, str]:
        """For the model card: a sentence on what is told, and an example of it as Python writes it ("" for none)."""
        return "It knows no classes.", ""


def replaced(told: Sequence[Tensor], gone: Tensor, nothing: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The tensors of `told` with rows where `gone`, bool `(B,)`, is True as in `nothing`, of one row each."""
    return tuple(
        torch.where(gone.view(-1, *[1] * (one.ndim - 1)), empty, one) for one, empty in zip(told, nothing, strict=True)
    )
