"""Codes of other grids of the same image: of VQ-VAE-2's bottom grid given the top one (arXiv 1906.00446)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from prior.conditions.base import Condition, Context
from prior.convolutions import GatedBlock, centred
from prior.sequences import LayoutConfig, Sequence
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.config import Config, ConfigError
from tokenizers_vq.data.shards import CodeShards

GIVEN = "given"
"""the name by which codes of other grids are told"""


class GridsConfig(Config):
    """Codes of other grids of the image, as a plane of vectors that convolutions make of them."""

    kind: Literal["grids"] = "grids"
    grids: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    """numbers of the told grids among those of the tokenizer, coarse first"""
    blocks: Annotated[int, Field(ge=0)] = 0
    """gated residual branches of convolutions behind the first one"""
    hidden: Annotated[int, Field(ge=1)] | None = None
    """width inside them; null: that of the vectors"""
    kernel: Annotated[int, Field(ge=1)] = 3
    """side of the convolutions' windows, odd"""
    places: bool = True
    """whether each place has a learned vector too, which networks that know no planes need"""
    inner_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """inside the residual branches"""
    dropout: Annotated[float, Field(ge=0, le=1)] = 0.0
    """probability in training that no codes are told"""
    layout: LayoutConfig | None = None
    """of all codes of the tokenizer; filled in"""

    def build(self, dim: int) -> GridsCondition:
        """The module, for vectors of width `dim`."""
        if self.layout is None:
            raise ConfigError(("condition", "layout"), "required, but not given")
        return GridsCondition(dim, self, self.told(self.layout.build()))

    def told(self, whole: CodeLayout) -> CodeLayout:
        """The layout of the told codes. Raises `ValueError` for grids that are not there or are no planes."""
        found = whole.part(self.grids)
        if found.levels > 1 or any(len(grid) != 2 for grid in found.grids):
            raise ConfigError(("condition", "grids"), "codes are told of grids of rows and columns, one at a place")
        if self.kernel % 2 == 0:
            raise ConfigError(("condition", "kernel"), f"a window has a middle, so its side is odd; got {self.kernel}")
        return found

    def fit(self, shards: Mapping[str, CodeShards]) -> GridsConfig:
        """With the layout of all codes. Raises `ValueError` where the prior models all grids itself."""
        first = next(iter(shards.values()))
        if first.whole is None:
            raise ValueError(
                f"model.given={list(self.grids)}: say which other grids are modelled, such as model.grids=[1]"
            )
        self.told(first.whole.layout)
        return self.replace(layout=LayoutConfig.of(first.whole.layout))


class GridsCondition(Condition):
    """Codes of other grids -> a vector at each place of the finest of them. `dim`: width of the vectors."""

    noun, name = "codes of other grids", GIVEN

    def __init__(self, dim: int, config: GridsConfig, told: CodeLayout) -> None:
        super().__init__()
        assert config.layout is not None
        self.config, self.dropout = config, config.dropout
        self.sequence = Sequence(told)
        self.columns = config.layout.build().places_of(config.grids)
        make = centred(config.kernel)
        self.enter = make(sum(told.sizes), dim)
        self.blocks = nn.ModuleList(
            GatedBlock(dim, config.hidden or dim, make, dropout=config.inner_dropout) for _ in range(config.blocks)
        )
        height, width = told.grids[-1]
        self.places = nn.Parameter(torch.empty(height * width, dim).normal_(std=0.02)) if config.places else None

    def resolve(self, value: Any, n: int) -> tuple[Tensor, ...]:
        """Codes `(M,)`, `(1, M)` or `(n, M)`, or grids of them, or one a row -> int64 `(n, M)`; -1 for none.

        Raises `ValueError` for anything else, and for none where the prior never learnt to do without.
        """
        if value is None:
            if not self.guidable:
                raise ValueError(
                    f"this prior never learnt to do without the codes of grids {list(self.config.grids)}: draw them "
                    "with the prior that models them, as a chain (prior.Chain, `tvq-prior sample TOP BOTTOM`)"
                )
            return self.nothing(n)
        codes = self._codes(value)
        if codes.shape[0] not in (1, n):
            raise ValueError(
                f"codes of {codes.shape[0]} images are given for {n} rows: give one for all, or one for each"
            )
        self.sequence.check(codes, unknown=self.guidable)
        return (codes.expand(n, -1),)

    def _codes(self, value: Any) -> Tensor:
        layout, device = self.sequence.layout, self.enter.weight.device
        try:
            if isinstance(value, (list, tuple)):
                rows = [torch.as_tensor(one) for one in value]
                flat = all(row.ndim == 1 for row in rows)
                value = torch.stack(rows) if flat else layout.flatten(tuple(rows) if len(rows) > 1 else rows[0])
            codes = torch.as_tensor(value if not isinstance(value, np.ndarray) else value.astype(np.int64)).to(device)
            codes = layout.flatten(codes) if codes.ndim > 2 else codes
        except (TypeError, RuntimeError):
            raise ValueError(f"given codes are int64 (n, {layout.length}), got {type(value).__name__}") from None
        return codes[None] if codes.ndim == 1 else codes

    def nothing(self, n: int) -> tuple[Tensor, ...]:
        """Codes -1."""
        return (torch.full((n, self.sequence.length), -1, device=self.enter.weight.device),)

    def encode(self, *told: Tensor) -> Context:
        """Codes `(B, M)`, -1 for none -> a plane of vectors, `(B, h w, D)`."""
        (codes,) = told
        layout = self.sequence.layout
        height, width = layout.grids[-1]
        planes = []
        counts = [grid[0] * grid[1] for grid in layout.grids]
        for part, grid, size in zip(codes.split(counts, dim=1), layout.grids, layout.sizes, strict=True):
            channels = F.one_hot(part.clamp(min=0), size) * (part >= 0)[..., None]
            plane = channels.to(self.enter.weight.dtype).transpose(1, 2).unflatten(2, (grid[0], grid[1]))
            planes.append(F.interpolate(plane, (height, width), mode="nearest"))
        x = self.enter(torch.cat(planes, dim=1))
        for block in self.blocks:
            x = block(x)
        x = x.flatten(2).transpose(1, 2)
        return Context(x if self.places is None else x + self.places, plane=(0, height, width))

    def take(self, batch: Mapping[str, Any], draw: bool = False) -> Any:
        """The codes of the told grids, of all codes of the batch's images."""
        return batch["whole"][:, self.columns]

    def read(self, text: str) -> list[Any]:
        """Raises `ValueError`: codes cannot be written on a command line."""
        raise ValueError("codes of other grids are drawn by the prior that models them: `tvq-prior sample TOP BOTTOM`")

    def shown(self, value: Any) -> dict[str, Any]:
        """Nothing: the codes stand beside those that are drawn."""
        return {}

    def card(self) -> tuple[str, str]:
        """Which grids it is told."""
        return f"It is told the codes of grids {list(self.config.grids)} of the tokenizer's.", ""
