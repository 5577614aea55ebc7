"""A text, read by a frozen encoder of transformers: T5 or CLIP."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from prior.conditions import captions
from prior.conditions.base import Condition, Context
from prior.encoders import Features, Kept, TextEncoder, keep, open_encoder
from tokenizers_vq.config import ConfigError
from tokenizers_vq.data.shards import CodeShards

logger = logging.getLogger(__name__)


class TextEncoderConfig(captions.CaptionFields):
    """A text, by the features of a frozen T5 or CLIP and two layers that are trained (LlamaGen, arXiv 2406.06525)."""

    kind: Literal["text_encoder"] = "text_encoder"
    encoder: str
    """the encoder: a folder as transformers saves it, or owner/name of the Hub"""
    revision: str | None = None
    """commit, branch or tag of the Hub's repository"""
    length: Annotated[int, Field(ge=2)] = 77
    """tokens that are read, the end among them; longer texts are cut"""
    dropout: Annotated[float, Field(ge=0, le=1)] = 0.1
    """probability in training that a text is replaced by none, which guidance needs"""
    null_padding: bool = False
    """whether what stands for no text is masked where the text has padding, as LlamaGen trains and draws"""
    width: Annotated[int, Field(ge=1)] | None = None
    """width of the features; filled in from the encoder"""
    fingerprint: str | None = None
    """of the encoder; filled in"""

    def build(self, dim: int) -> TextEncoderCondition:
        """The module, for a network of width `dim`."""
        if self.width is None:
            raise ConfigError(("condition", "width"), "required, but not given")
        return TextEncoderCondition(dim, self)

    def open(self) -> TextEncoder:
        """The encoder. Raises `ValueError` for another one than the features are of, and as `open_encoder`."""
        encoder = open_encoder(self.encoder, self.revision)
        if self.fingerprint not in (None, encoder.fingerprint):
            raise ValueError(
                f"{self.encoder} is another text encoder ({encoder.fingerprint[:8]}) than this prior was trained with "
                f"({str(self.fingerprint)[:8]}): give its own"
            )
        if encoder.longest is not None and self.length > encoder.longest:
            raise ConfigError(("condition", "length"), f"{self.encoder} reads at most {encoder.longest} tokens")
        return encoder

    def fit(self, shards: Mapping[str, CodeShards]) -> TextEncoderConfig:
        """With what the encoder says; the log says how many captions are cut or missing. Raises as `open` does, and
        `ValueError` for codes without captions.
        """
        encoder = self.open()
        captions.count(shards, self.template, "text_encoder", self.cut, f"{self.length} tokens")
        return self.replace(width=encoder.width, fingerprint=encoder.fingerprint)

    def cut(self, texts: Sequence[str]) -> int:
        """How many texts have more tokens than are read."""
        return sum(length > self.length for length in self.open().lengths(texts)) if texts else 0


class _Reader:
    """The encoder and the kept features of a condition, no part of its state: copies of a prior share them."""

    def __init__(self, config: TextEncoderConfig) -> None:
        self.config, self.kept = config, list[Kept]()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Reader:
        return self

    def __call__(self, texts: list[str], device: torch.device) -> Features:
        for kept in self.kept:
            places = kept.find(texts)
            if bool((places >= 0).all()):
                found = kept.read(places, self.config.length)
                return Features(found.vectors.to(device), found.mask.to(device))
        return self.config.open()(texts, self.config.length, device)


class TextEncoderCondition(Condition):
    """Features of a text's tokens, padding first -> one vector each. `dim`: width of the network.

    Told nothing, every place has a learnt vector in the place of features.
    """

    noun, name = "a prompt", "text"
    tensors: ClassVar[int] = 2

    def __init__(self, dim: int, config: TextEncoderConfig) -> None:
        super().__init__()
        assert config.width is not None
        self.length, self.width, self.dropout, self.template = (
            config.length,
            config.width,
            config.dropout,
            config.template,
        )
        self.encoder_name, self.null_padding = config.encoder, config.null_padding
        self.reader = _Reader(config)
        self.null = nn.Parameter(torch.randn(config.length, config.width) / config.width**0.5)
        self.project = nn.Sequential(
            nn.Linear(config.width, dim, bias=False), nn.GELU(approximate="tanh"), nn.Linear(dim, dim, bias=False)
        )
        for layer in self.project:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)

    def prepare(self, shards: Mapping[str, CodeShards]) -> None:
        """Keep the features of all captions beside the codes, made once for an encoder."""
        config = self.reader.config
        for folder, codes in shards.items():
            rows = chain.from_iterable(block or [] for block in captions.blocks(codes, self.template))
            texts = {text for row in rows for text in row if text}
            self.reader.kept.append(keep(config.open(), texts, self.length, Path(folder), self.null.device))

    def resolve(self, value: Any, n: int) -> tuple[Tensor, ...]:
        """A prompt or one a row, None or "" for no condition; or features `(n, length, width)`, all of which count.

        -> features float32 `(n, length, width)` and which of them count, bool `(n, length)`. Raises `ValueError` for
        anything else, another number of texts, or features that are not of this shape.
        """
        if isinstance(value, Tensor):
            if value.shape != (n, self.length, self.width) or not value.is_floating_point():
                raise ValueError(
                    f"text features of {self.encoder_name} are ({n}, {self.length}, {self.width}), got "
                    f"{tuple(value.shape)}: they are of another encoder"
                )
            given = value.to(self.null.device, torch.float32)
            return given, torch.ones(given.shape[:2], dtype=torch.bool, device=given.device)
        texts = captions.check_texts(value, n)
        if value is None or (not isinstance(value, str) and any(one is None for one in value)):
            self.check_null()
        vectors, mask = (one.clone() for one in self.nothing(n))
        told = [row for row, text in enumerate(texts) if text]
        if told:
            distinct = sorted({texts[row] for row in told})
            found = self.reader(distinct, self.null.device)
            if found.vectors.shape[-1] != self.width:
                raise ValueError(f"text features of {self.encoder_name} are {self.width} wide: these are of another")
            places = torch.tensor([distinct.index(texts[row]) for row in told], device=vectors.device)
            rows = torch.tensor(told, device=vectors.device)
            vectors = vectors.index_copy(0, rows, found.vectors[places])
            mask = mask.index_copy(0, rows, found.mask[places])
        return vectors, mask

    def nothing(self, n: int) -> tuple[Tensor, ...]:
        """The learnt vectors, all of which count."""
        return self.null.expand(n, -1, -1), self.null.new_ones(n, self.length, dtype=torch.bool)

    def drop(self, *told: Tensor) -> tuple[Tensor, ...]:
        """As of any condition; where none is masked as the text, the mask stays."""
        vectors, mask = super().drop(*told)
        return vectors, told[1] if self.null_padding else mask

    def forward(self, *told: Tensor) -> Context:
        """As of any condition; what stands for no text may be masked as the text."""
        context = super().forward(*told)
        if not self.null_padding or context.null is None:
            return context
        return context._replace(null=context.null._replace(mask=context.mask))

    def encode(self, *told: Tensor) -> Context:
        """Features `(B, length, width)` and their mask -> one vector each, padding masked."""
        vectors, mask = told
        return Context(self.project(vectors.to(self.null.dtype)), mask)

    def absent(self, value: Any) -> bool:
        """Whether no prompt says anything."""
        return captions.absent(value)

    def remark(self, value: Any) -> None:
        """How many prompts are cut, and how many are empty."""
        config = self.reader.config
        captions.remark(value, config.cut, f"{self.length} tokens")

    def take(self, batch: Mapping[str, Any], draw: bool = False) -> Any:
        """One caption of each image."""
        return captions.take(batch, self.template, draw)

    def card(self) -> tuple[str, str]:
        """That it reads a text, and by which encoder."""
        words = f"It is told a text of at most {self.length} tokens, read by `{Path(self.encoder_name).name}`"
        return f"{words}, fingerprint `{self.reader.config.fingerprint}`.", '"a prompt"'
