"""What a converter gets and gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from prior.conditions import ConditionConfig
from prior.networks import NetworkConfig
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.quantizers import QuantizerConfig


class Book(NamedTuple):
    """A tokenizer's quantizer, for networks that are fed the vectors of its codes."""

    config: QuantizerConfig
    state: Mapping[str, Tensor]
    """its state dict"""


class Given(NamedTuple):
    """A published prior as a converter gets it."""

    tensors: dict[str, Tensor]
    """by the reference's keys, without what wraps them"""
    config: Mapping[str, Any]
    """the published config, empty where none is given"""
    path: Path
    """the file, for messages"""
    layout: CodeLayout | None = None
    """of the codes of the tokenizer that was named; None where none was"""
    book: Book | None = None
    """the quantizer of that tokenizer"""


class Converted(NamedTuple):
    """What a converter tells: the fields of a `PriorConfig`, and the tensors by the keys of a `Prior`."""

    network: NetworkConfig
    condition: ConditionConfig
    layout: CodeLayout
    tensors: Mapping[str, Tensor]
    """`network. ...` and `condition. ...`: all of them, no others; those of a book are added"""
    book: Book | None = None
    """for a network that is fed vectors"""
    fields: Mapping[str, Any] = {}
    """further fields of the `PriorConfig`"""
