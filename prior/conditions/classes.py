"""A class, by its number or its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from prior.conditions.base import Condition, Context
from tokenizers_vq import checks
from tokenizers_vq.config import Config, ConfigError, nearest
from tokenizers_vq.data.shards import CodeShards

_LISTED = 100
"""more classes than these are not all listed in a model card"""


class ClassConfig(Config):
    """A class label, dropped now and then so that classifier-free guidance has its other half (arXiv 2207.12598)."""

    kind: Literal["class"] = "class"
    name: Annotated[str, Field(min_length=1)] | None = None
    """column of the classes, where the codes have several (`label_column`), by which it is told; null: the first"""
    num_classes: Annotated[int, Field(ge=1)] | None = None
    """number of classes; null in a recipe: as many as the codes have"""
    dropout: Annotated[float, Field(ge=0, le=1)] = 0.1
    """probability in training that a label is replaced by the null class"""
    label_names: tuple[str, ...] | None = None
    """names of the classes; filled in from the codes"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.label_names is not None and self.num_classes not in (None, len(self.label_names)):
            raise ConfigError(("label_names",), f"{len(self.label_names)} names for {self.num_classes} classes")
        return self

    def build(self, dim: int) -> ClassCondition:
        """The module, for a network of width `dim`."""
        if self.num_classes is None:
            raise ConfigError(("condition", "num_classes"), "required, but not given")
        return ClassCondition(dim, self.num_classes, self.dropout, self.label_names, self.name)

    def fit(self, shards: Mapping[str, CodeShards]) -> ClassConfig:
        """With the number of classes of the first folder. Raises `ValueError` where images have none, or one beyond."""
        labels = {folder: codes.labels_info(self.name) for folder, codes in shards.items()}
        for folder, known in labels.items():
            if known.bare:
                name = self.name or "class"
                raise ValueError(f"model.condition={name}: {known.bare} images of {folder} have no {name}; use none")
        own, first = next(iter(shards.items()))
        names = first.class_names(self.name)
        found = max(labels[own].highest + 1, len(names or ()))
        classes = self.num_classes or found
        for folder, known in labels.items():
            if (beyond := known.highest) >= classes:
                whose = f"{own} has" if self.num_classes is None else "model.condition.num_classes says"
                raise ValueError(f"{folder} has class {beyond}, {whose} 0 to {classes - 1}")
        return self.replace(num_classes=classes, label_names=names if len(names or ()) == classes else None)


class ClassCondition(Condition):
    """One vector a class; the last one is the null class. `dim`: width of the network."""

    def __init__(
        self,
        dim: int,
        num_classes: int,
        dropout: float = 0.1,
        label_names: tuple[str, ...] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.dropout, self.label_names = num_classes, dropout, label_names or ()
        self.column, self.name, self.noun = name, name or "class", f"a {name or 'class'}"
        self.classes = nn.Embedding(num_classes + 1, dim)
        nn.init.normal_(self.classes.weight, std=0.02)

    def find(self, name: str) -> int:
        """The number of the class called `name`, in any letter case where that is unique, or written as a number.

        Raises `ValueError` for a number out of range or an unknown name, with the nearest.
        """
        names = self.label_names
        alike = [index for index, known in enumerate(names) if known.casefold() == name.casefold()]
        if name in names or len(alike) == 1:
            return names.index(name) if name in names else alike[0]
        if name.lstrip("-").isdigit():
            if name.isdecimal() and int(name) < self.num_classes:
                return int(name)
            raise ValueError(f"no {self.name} {name}; they are 0 to {self.num_classes - 1}")
        if not names:
            raise ValueError(f"no {self.name} called '{name}'; this prior knows numbers alone")
        hint = nearest(name, names)
        if "did you mean" not in hint and len(names) > 20:
            hint = f"; there are {len(names)}, the first is '{names[0]}'"
        raise ValueError(f"no {self.name} called '{name}'{hint}")

    def resolve(self, value: Any, n: int) -> tuple[Tensor, ...]:
        """A class or one a row, each a number, a name or None (the null class) -> labels int64 `(n,)`.

        Raises `ValueError` for an unknown class or another number of them.
        """
        if value is None:
            self.check_null()
            return self.nothing(n)
        missing = []
        if isinstance(value, str):
            value = self.find(value)
        elif isinstance(value, (list, tuple, np.ndarray)):
            several = value.tolist() if isinstance(value, np.ndarray) else list(value)
            missing = [one is None for one in several] if isinstance(several, list) else []
            if any(isinstance(one, str) or one is None for one in several if missing):
                value = [0 if one is None else self.find(one) if isinstance(one, str) else one for one in several]
        labels = self._labels(value, n)
        if any(missing):
            self.check_null()
            labels = labels.masked_fill(torch.tensor(missing, device=labels.device), self.num_classes)
        return (labels,)

    def _labels(self, value: Any, n: int) -> Tensor:
        try:
            labels = torch.as_tensor(value, device=self.classes.weight.device)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"a class is a number, a name, or a list of them; got {type(value).__name__}") from None
        if labels.is_floating_point() or labels.dtype == torch.bool or labels.ndim > 1:
            dtype = str(labels.dtype).removeprefix("torch.")
            raise ValueError(f"labels must be int64 ({n},), got {dtype} {tuple(labels.shape)}")
        if labels.ndim == 1 and labels.shape != (n,):
            raise ValueError(f"{labels.numel()} classes are given for {n} rows: give one for all, or one for each")
        labels = labels.long().expand(n)
        if torch.compiler.is_compiling():
            return labels
        within = labels.clamp(0, self.num_classes - 1)

        def refuse() -> None:
            first = int(labels[labels != within][0])
            what = "-1 says no class, which this prior needs" if first == -1 else f"class {first} is out of range"
            raise ValueError(f"{what}: the classes are 0 to {self.num_classes - 1}")

        checks.check((labels == within).all(), refuse)
        return within

    def nothing(self, n: int) -> tuple[Tensor, ...]:
        """The null class."""
        return (torch.full((n,), self.num_classes, device=self.classes.weight.device),)

    def encode(self, *told: Tensor) -> Context:
        """Labels int64 `(B,)`, `num_classes` for the null class -> one vector each, `(B, 1, D)`."""
        (labels,) = told
        return Context(self.classes(labels)[:, None])

    def read(self, text: str) -> list[Any]:
        """Class numbers from `0,3,cat`: numbers, or names that are known."""
        return [self.find(part) for part in ([text] if text in self.label_names else map(str.strip, text.split(",")))]

    def every(self) -> list[Any]:
        """All classes."""
        return list(range(self.num_classes))

    def shown(self, value: Any) -> dict[str, Any]:
        """The number, and the name where there is one."""
        if value is None:
            return {}
        name = "name" if self.column is None else f"{self.column} name"
        return {self.name: value, **({name: self.label_names[value]} if self.label_names else {})}

    def card(self) -> tuple[str, str]:
        """The classes and the first of them."""
        names = self.label_names
        numbered = [f"{number} {name}" for number, name in enumerate(names)]
        if len(names) > _LISTED:
            listed = f": {', '.join(numbered[:10])}, and so on to {numbered[-1]}; `config.json` has all."
        else:
            listed = f": {', '.join(numbered)}." if names else "."
        return f"It is told the {self.name}, one of {self.num_classes}{listed}", f'"{names[0]}"' if names else "0"

    def take(self, batch: Mapping[str, Any], draw: bool = False) -> Any:
        """The labels."""
        return batch["labels"] if self.column is None else batch["classes"][self.column]
