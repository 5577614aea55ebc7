"""A text as numbers of some other tokenizer of texts: how published text-to-picture priors are told one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from prior.conditions.base import Condition, Context
from tokenizers_vq import checks
from tokenizers_vq.config import Config
from tokenizers_vq.data.shards import CodeShards


class TokensConfig(Config):
    """A row of numbers, each with its place; a converted prior's, which never did without."""

    kind: Literal["tokens"] = "tokens"
    vocabulary: Annotated[int, Field(ge=1)]
    """how many numbers there are"""
    length: Annotated[int, Field(ge=1)]
    """how many stand in a row"""

    def build(self, dim: int) -> TokensCondition:
        """The module, for a network of width `dim`."""
        return TokensCondition(dim, self.vocabulary, self.length)

    def fit(self, shards: Mapping[str, CodeShards]) -> TokensConfig:
        """Raises `ValueError`: codes hold captions, not their numbers."""
        raise ValueError(
            "model.condition=tokens: codes hold no numbers of texts, so this prior cannot be trained on them; use text"
        )


class TokensCondition(Condition):
    """One vector a number, plus one a place. `dim`: width of the network."""

    noun = "the numbers of a text"
    name = "tokens"

    def __init__(self, dim: int, vocabulary: int, length: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, dim)
        self.positions = nn.Parameter(torch.empty(length, dim).normal_(std=0.02))
        nn.init.normal_(self.tokens.weight, std=0.02)

    def resolve(self, value: Any, n: int) -> tuple[Tensor, ...]:
        """Numbers of a text `(length,)`, or `(n, length)` of one a row -> int64 `(n, length)`.

        Raises `ValueError` for other shapes or numbers, and for none.
        """
        length, vocabulary = len(self.positions), self.tokens.num_embeddings
        wanted = f"this prior is told a text as {length} numbers of its own tokenizer, 0 to {vocabulary - 1}"
        if value is None:
            self.check_null()
        try:
            found = torch.as_tensor(value, device=self.positions.device)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{wanted}, got {type(value).__name__}") from None
        if found.is_floating_point() or found.dtype == torch.bool or tuple(found.shape) not in ((length,), (n, length)):
            raise ValueError(f"{wanted}, got {str(found.dtype).removeprefix('torch.')} {tuple(found.shape)}")
        found = found.long().expand(n, length)
        within = found.clamp(0, vocabulary - 1)

        def refuse() -> None:
            raise ValueError(f"{wanted}, got numbers from {int(found.min())} to {int(found.max())}")

        checks.check((found == within).all(), refuse)
        return (within,)

    def nothing(self, n: int) -> tuple[Tensor, ...]:
        """Zeros, which mean nothing: it never did without."""
        return (torch.zeros(n, len(self.positions), dtype=torch.int64, device=self.positions.device),)

    def encode(self, *told: Tensor) -> Context:
        """Numbers `(B, length)` -> one vector each."""
        (rows,) = told
        return Context(self.tokens(rows) + self.positions)

    def read(self, text: str) -> list[Any]:
        """The numbers of one text, from `3,17,...`."""
        try:
            return [[int(part) for part in text.split(",")]]
        except ValueError:
            raise ValueError(f"numbers of a text are written as 3,17,0: got '{text}'") from None

    def card(self) -> tuple[str, str]:
        """What a row of numbers is."""
        example = f"torch.zeros({len(self.positions)}, dtype=torch.int64)"
        return f"It is told a text as {len(self.positions)} numbers of its own tokenizer of texts.", example
