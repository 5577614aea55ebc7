"""A text: a caption in training, a prompt in drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from prior.conditions import captions
from prior.conditions.base import Condition, Context
from tokenizers_vq.config import ConfigError
from tokenizers_vq.data.shards import CodeShards

END, BYTES = 256, 257


class TextConfig(captions.CaptionFields):
    """A text, read byte by byte (ByT5, arXiv 2105.13626) by a small encoder that is trained with the prior."""

    kind: Literal["text"] = "text"
    length: Annotated[int, Field(ge=2)] = 64
    """bytes of UTF-8 that are read, the end among them; longer texts are cut"""
    layers: Annotated[int, Field(ge=1)] = 2
    """blocks of the encoder"""
    heads: Annotated[int, Field(ge=1)] = 4
    """its attention heads, which divide the prior's width"""
    dropout: Annotated[float, Field(ge=0, le=1)] = 0.1
    """probability in training that a text is replaced by the empty one, which guidance needs"""

    def build(self, dim: int) -> TextCondition:
        """The module, for a network of width `dim`."""
        if dim % self.heads:
            raise ConfigError(("condition", "heads"), f"{self.heads} heads do not divide the width {dim}")
        return TextCondition(dim, **self.arguments())

    def fit(self, shards: Mapping[str, CodeShards]) -> TextConfig:
        """Itself; the log says how many captions are cut or missing. Raises `ValueError` for codes without captions."""

        captions.count(shards, self.template, "text", partial(_cut, self.length), f"{self.length - 1} bytes")
        return self


def _cut(length: int, texts: Sequence[str]) -> int:
    """How many texts are too long, with their end, for `length` bytes."""
    return sum(len(text.encode()) >= length for text in texts)


class TextCondition(Condition):
    """Bytes of a text and an end, through a transformer encoder -> one vector each. `dim`: width of the network.

    Texts stand at the right of their row, so that the last place is always the end; the empty text is no condition.
    """

    noun, name = "a prompt", "text"

    def __init__(self, dim: int, **fields: Any) -> None:
        super().__init__()
        config = TextConfig(**fields)
        self.length, self.dropout, self.template = config.length, config.dropout, config.template
        self.bytes = nn.Embedding(BYTES, dim)
        self.positions = nn.Parameter(torch.empty(config.length, dim).normal_(std=0.02))
        nn.init.normal_(self.bytes.weight, std=0.02)
        block = nn.TransformerEncoderLayer(
            dim, config.heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(block, config.layers, nn.LayerNorm(dim), enable_nested_tensor=False)

    def resolve(self, value: Any, n: int) -> tuple[Tensor, ...]:
        """A prompt or one a row, None or "" for no condition -> bytes int64 `(n, length)`, -1 before a text begins.

        Raises `ValueError` for anything but texts, or another number of them.
        """
        texts = captions.check_texts(value, n)
        if value is None or (not isinstance(value, str) and any(one is None for one in value)):
            self.check_null()
        rows = [text.encode() for text in texts]
        found = torch.full((n, self.length), -1)
        for row, text in zip(found, rows, strict=True):
            kept = [*text[: self.length - 1], END]
            row[self.length - len(kept) :] = torch.tensor(kept)
        return (found.to(self.positions.device),)

    def absent(self, value: Any) -> bool:
        """Whether no prompt says anything."""
        return captions.absent(value)

    def remark(self, value: Any) -> None:
        """How many prompts are cut, and how many are empty."""
        captions.remark(value, partial(_cut, self.length), f"{self.length - 1} bytes")

    def nothing(self, n: int) -> tuple[Tensor, ...]:
        """The empty text: an end alone."""
        empty = torch.full((n, self.length), -1, device=self.positions.device)
        empty[:, -1] = END
        return (empty,)

    def encode(self, *told: Tensor) -> Context:
        """Bytes `(B, length)` -> one vector each, padding masked."""
        (rows,) = told
        x = self.bytes(rows.clamp(min=0)) + self.positions
        return Context(self.encoder(x, src_key_padding_mask=rows < 0), rows >= 0)

    def take(self, batch: Mapping[str, Any], draw: bool = False) -> Any:
        """One caption of each image."""
        return captions.take(batch, self.template, draw)

    def card(self) -> tuple[str, str]:
        """That it reads a text."""
        return f"It is told a text of at most {self.length - 1} bytes.", '"a prompt"'
