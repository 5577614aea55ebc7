"""Several conditions at once, each told by its name: a text and a style."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from PIL.Image import Image
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from prior.conditions.base import Condition, Context, replaced
from prior.conditions.classes import ClassConfig
from prior.conditions.grids import GIVEN, GridsConfig
from prior.conditions.image import ImageConfig
from prior.conditions.nothing import NoneConfig
from prior.conditions.text import TextConfig
from prior.conditions.text_encoder import TextEncoderConfig
from prior.conditions.tokens import TokensConfig
from tokenizers_vq.config import Config, ConfigError
from tokenizers_vq.data.shards import CodeShards
from tokenizers_vq.tokenizer import Tokenizer

OneConfig = Annotated[
    ClassConfig | TextConfig | TextEncoderConfig | ImageConfig | GridsConfig, Field(discriminator="kind")
]
"""a condition that can be told beside others"""


class SeveralConfig(Config):
    """Conditions side by side, each left out at its own rate, and all together (arXiv 2211.09800, section 3.2)."""

    kind: Literal["several"] = "several"
    conditions: Annotated[tuple[OneConfig, ...], Field(min_length=2)]
    """the conditions, in the order of their vectors; classes of several columns by their names"""
    dropout: Annotated[float, Field(ge=0, le=1)] = 0.1
    """probability in training that all are left out together, which guidance needs"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [_name(part) for part in self.conditions]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ConfigError(("conditions",), f"two of them are called {twice}; give each a `name`")
        return self

    def build(self, dim: int) -> SeveralCondition:
        """The module, for a network of width `dim`."""
        return SeveralCondition([part.build(dim) for part in self.conditions], self.dropout)

    def fit(self, shards: Mapping[str, CodeShards]) -> SeveralConfig:
        """With each condition fitted. Raises `ValueError` as they do."""
        return self.replace(conditions=tuple(part.fit(shards) for part in self.conditions))


def beside(
    told: OneConfig | NoneConfig | SeveralConfig | TokensConfig, given: GridsConfig
) -> GridsConfig | SeveralConfig:
    """A condition and codes of other grids, which are there when the condition is left out.

    Raises `ValueError` for a condition that is told alone.
    """
    if isinstance(told, TokensConfig):
        raise ValueError("tokens are told alone, without codes of other grids: leave `given` or the tokens out")
    if isinstance(told, NoneConfig):
        return given
    parts = told.conditions if isinstance(told, SeveralConfig) else (told,)
    return SeveralConfig(conditions=(*parts, given), dropout=told.dropout if isinstance(told, SeveralConfig) else 0.0)


def _name(part: ClassConfig | TextConfig | TextEncoderConfig | ImageConfig | GridsConfig) -> str:
    if isinstance(part, ClassConfig):
        return part.name or "class"
    if isinstance(part, GridsConfig):
        return GIVEN
    return "image" if isinstance(part, ImageConfig) else "text"


class SeveralCondition(Condition):
    """Conditions of one width, their vectors one after the other. The null is that of all together."""

    def __init__(self, conditions: Sequence[Condition], dropout: float = 0.1) -> None:
        super().__init__()
        self.conditions = nn.ModuleList(conditions)
        self.dropout = dropout
        self.noun = " and ".join(part.noun for part in conditions)
        self.name = " and ".join(part.name for part in conditions)

    @property
    def each(self) -> list[Condition]:
        """The conditions, typed."""
        return list(self.conditions)  # type: ignore[arg-type]

    @property
    def parts(self) -> dict[str, Condition]:
        """The conditions by name."""
        return {part.name: part for part in self.each}

    @property
    def guidable(self) -> bool:
        """Whether all were left out together now and then, on purpose or by chance."""
        return self.dropout > 0 or all(part.guidable for part in self.each)

    def own(self, value: Any) -> Any:
        """`{"text": "a cat", "style": 3}`, or a list of these, a row each -> values of all conditions by name.

        None where all are left out. Raises `ValueError` for anything else, and for names of what is not told.
        """
        if value is None:
            return None
        rows = value if isinstance(value, (list, tuple)) else [value]
        if not rows or not all(isinstance(row, Mapping) for row in rows):
            given = ", ".join(f'"{name}": ...' for name in self.parts)
            raise ValueError(f"this prior is told {self.name}, got {type(value).__name__}: give {{{given}}}")
        for row in rows:
            self.check_names(row)
        found = {name: [row.get(name) for row in rows] for name in self.parts}
        if isinstance(value, Mapping):
            found = {name: values[0] for name, values in found.items()}
        empty = all(one is None for row in rows for one in row.values())
        return None if empty else found

    def resolve(self, value: Any, n: int) -> tuple[Tensor, ...]:
        """What `own` gave -> the tensors of all conditions in turn.

        A condition that is left out, and not all of them, must have a rate of its own at which it was in training.
        """
        if value is None:
            self.check_null()
            return self.nothing(n)
        told: list[Tensor] = []
        for name, part in self.parts.items():
            told += part.resolve(value.get(name), n)
        return tuple(told)

    def nothing(self, n: int) -> tuple[Tensor, ...]:
        """Those of all conditions."""
        return tuple(one for part in self.each for one in part.nothing(n))

    def _split(self, told: Sequence[Tensor]) -> list[tuple[Condition, Sequence[Tensor]]]:
        found, first = [], 0
        for part in self.each:
            found.append((part, told[first : first + part.tensors]))
            first += part.tensors
        return found

    def drop(self, *told: Tensor) -> tuple[Tensor, ...]:
        """Each by its own rate, then all at the common one."""
        if not self.training:
            return told
        kept = tuple(one for part, its in self._split(told) for one in part.drop(*its))
        if self.dropout == 0:
            return kept
        gone = torch.rand(kept[0].shape[0], device=kept[0].device) < self.dropout
        return replaced(kept, gone, self.nothing(1))

    def encode(self, *told: Tensor) -> Context:
        """The vectors of all conditions, `(B, P1 + P2 + ..., D)`."""
        contexts = [part.encode(*its) for part, its in self._split(told)]
        vectors = torch.cat([context.vectors for context in contexts], dim=1)
        plane, first = None, 0
        for context in contexts:
            if plane is None and context.plane is not None:
                plane = (first + context.plane[0], *context.plane[1:])
            first += context.vectors.shape[1]
        if all(context.mask is None for context in contexts):
            return Context(vectors, plane=plane)
        masks = [
            torch.ones(one.vectors.shape[:2], dtype=torch.bool, device=vectors.device) if one.mask is None else one.mask
            for one in contexts
        ]
        return Context(vectors, torch.cat(masks, dim=1), plane=plane)

    def prepare(self, shards: Mapping[str, CodeShards]) -> None:
        """Each."""
        for part in self.each:
            part.prepare(shards)

    def adopt(self, tokenizer: Tokenizer) -> None:
        """Each."""
        for part in self.each:
            part.adopt(tokenizer)

    def absent(self, value: Any) -> bool:
        """Whether every condition is left out."""
        return value is None or all(part.absent(value[name]) for name, part in self.parts.items())

    def remark(self, value: Any) -> None:
        """Each."""
        for name, part in self.parts.items():
            part.remark(None if value is None else value[name])

    def received(self, value: Any, picture: Callable[[str], Image]) -> Any:
        """Each value by its name; names of what is not told stay, for `own` to refuse."""
        if isinstance(value, (list, tuple)):
            return [self.received(one, picture) if isinstance(one, Mapping) else one for one in value]
        if not isinstance(value, Mapping):
            return value
        parts = self.parts
        return {name: parts[name].received(one, picture) if name in parts else one for name, one in value.items()}

    def take(self, batch: Mapping[str, Any], draw: bool = False) -> Any:
        """The value of each."""
        return {name: part.take(batch, draw) for name, part in self.parts.items()}

    def shown(self, value: Any) -> dict[str, Any]:
        """All of them."""
        return {key: found for name, part in self.parts.items() for key, found in part.shown(value[name]).items()}

    def card(self) -> tuple[str, str]:
        """What each is told."""
        cards = {name: part.card() for name, part in self.parts.items()}
        example = ", ".join(f'"{name}": {example}' for name, (_, example) in cards.items())
        return " ".join(words for words, _ in cards.values()), f"{{{example}}}"
