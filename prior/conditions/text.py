"""A text: a caption in training, a prompt in drawing."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from prior.conditions.base import Condition, Context, chosen
from tokenizers_vq.config import Config, ConfigError
from tokenizers_vq.data.shards import CodeShards

logger = logging.getLogger(__name__)

END, BYTES = 256, 257
_BLOCK = 65536


class TextConfig(Config):
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
        for folder, codes in shards.items():
            counts = np.zeros(3, dtype=np.int64)
            for first in range(0, len(codes), _BLOCK):
                rows = codes.captions_of(np.arange(first, min(first + _BLOCK, len(codes))))
                if rows is None:
                    raise ValueError(
                        f"model.condition=text: {folder} holds no captions: encode data that have some "
                        "(data.caption_column), or use class or none"
                    )
                texts = [text.encode() for row in rows for text in row]
                counts += len(texts), sum(len(text) >= self.length for text in texts), sum(not any(row) for row in rows)
            captions, cut, bare = counts.tolist()
            if cut:
                logger.warning("%s: %d of %d captions are cut to %d bytes", folder, cut, captions, self.length - 1)
            if bare:
                logger.warning(
                    "%s: %d of %d images have no caption, which counts as no condition", folder, bare, len(codes)
                )
        return self


class TextCondition(Condition):
    """Bytes of a text and an end, through a transformer encoder -> one vector each. `dim`: width of the network.

    Texts stand at the right of their row, so that the last place is always the end; the empty text is no condition.
    """

    noun, name = "a prompt", "text"

    def __init__(self, dim: int, **fields: Any) -> None:
        super().__init__()
        config = TextConfig(**fields)
        self.length, self.dropout = config.length, config.dropout
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
        texts = [value] * n if value is None or isinstance(value, str) else value
        if not isinstance(texts, Sequence) or not all(one is None or isinstance(one, str) for one in texts):
            raise ValueError(f"this prior is told a text, got {type(value).__name__}: give a prompt, or a list of them")
        if any(one is None for one in texts):
            self.check_null()
        if len(texts) != n:
            raise ValueError(f"{len(texts)} prompts are given for {n} rows: give one for all, or one for each")
        rows = [(one or "").encode() for one in texts]
        cut = sum(len(row) >= self.length for row in rows)
        if cut and not self.training:  # captions to train on were counted by `fit`
            logger.warning("%d of %d texts are cut to %d bytes", cut, n, self.length - 1)
        found = torch.full((n, self.length), -1)
        for row, text in zip(found, rows, strict=True):
            kept = [*text[: self.length - 1], END]
            row[self.length - len(kept) :] = torch.tensor(kept)
        return (found.to(self.positions.device),)

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
        if batch["captions"] is None:
            raise ValueError("this prior is told a text, but these codes have no captions: encode data that have some")
        return chosen(batch["captions"], draw)

    def card(self) -> tuple[str, str]:
        """That it reads a text."""
        return f"It is told a text of at most {self.length - 1} bytes.", '"a prompt"'
