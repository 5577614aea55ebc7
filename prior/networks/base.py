"""The contract of a prior's network, and what its config says."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from prior import sampling
from prior.conditions.base import Context
from prior.sequences import Sequence
from tokenizers_vq.config import Config
from tokenizers_vq.quantizers import Quantizer

Noise = Callable[[int, int], Tensor]
"""`noise(draw, count)`: float32 `(B, count)` in [0, 1), for draw number `draw`; row i is a function of the seed, of the
number of the sample and of `draw` alone, whatever the batch"""


class BaseNetworkConfig(Config):
    """What the config of any network has. `kind` and the fields of the network stand in each."""

    fed_vectors: ClassVar[bool] = False
    """whether the network is fed the vectors of the tokenizer's codes: `build` gets the quantizer as `book`"""
    dim: int
    """width"""

    @property
    def told_dim(self) -> int:
        """Width of the vectors that the network is told."""
        return self.dim

    @abstractmethod
    def build(self, sequence: Sequence, book: Quantizer | None = None) -> Network:
        """The network for a sequence; `book`: a frozen copy of the tokenizer's quantizer, whose state it keeps.

        Raises `ValueError` for a layout that it cannot take.
        """


class Network(nn.Module):
    """Codes int64 `(B, N)` and a context -> a loss, logits, likelihoods, new codes.

    `loss`, `log_likelihood` and `logits` are functions of their arguments, of the weights and, in train mode or where
    the loss draws, of torch's generator. State that matters stands in buffers.
    """

    exact: ClassVar[bool]
    """whether `log_likelihood` is exact; otherwise it is a lower bound"""
    masked: ClassVar[bool] = False
    """whether `logits` takes -1 for a code that it is not shown"""
    Sampler: ClassVar[type[sampling.Sampler]] = sampling.Sampler
    """its settings of drawing"""
    of_codes: ClassVar[tuple[str, ...]] = ()
    """its parts that know codes by their numbers, which codes of another tokenizer replace; none: it cannot be given
    other codes"""
    of_places: ClassVar[tuple[str, ...]] = ()
    """its tables with a row for each place, which another grid stretches; further rows stand before those"""

    def __init__(self, sequence: Sequence, book: Quantizer | None = None) -> None:
        super().__init__()
        self.sequence, self.book = sequence, book

    @abstractmethod
    def forward(self, tokens: Tensor, context: Context) -> Tensor:
        """As `logits`, before impossible codes are taken out."""

    def logits(self, tokens: Tensor, context: Context) -> Tensor:
        """Codes `(B, N)` -> logits `(B, N, K)` of every place, -inf for codes that its stream lacks.

        Autoregressive: place i from the codes before it. Masked: every place from the codes that are not -1.
        """
        return self.sequence.mask(self(tokens, context))

    @abstractmethod
    def loss(self, tokens: Tensor, context: Context) -> Tensor:
        """The training loss, a scalar: nats a code, where the network is exact."""

    @abstractmethod
    def log_likelihood(self, tokens: Tensor, context: Context) -> Tensor:
        """Nats, float32 `(B,)`: of the codes, or a lower bound of that; the same at every call in eval mode."""

    @abstractmethod
    def generate(self, known: Tensor, context: Context, sampler: sampling.Sampler, noise: Noise) -> Tensor:
        """Draw the codes that are -1 in `known` `(B, N)`, keep the others -> int64 `(B, N)`.

        All randomness is `noise`'s; with guidance other than 1 `context` has a `null`. Called in eval mode, without
        gradient.
        """

    @abstractmethod
    def trunk_blocks(self) -> list[nn.Module]:
        """The repeated blocks, which are compiled one by one."""


class Exact(Network):
    """A network whose `logits` are those of every code given others that are told before it, whatever the order."""

    exact = True

    def loss(self, tokens: Tensor, context: Context) -> Tensor:
        """Mean cross-entropy, nats a code."""
        return F.cross_entropy(self.logits(tokens, context).float().flatten(0, 1), tokens.flatten())

    def log_likelihood(self, tokens: Tensor, context: Context) -> Tensor:
        """The sum over the row of log p(code | those before), `(B,)` nats."""
        logits = self.logits(tokens, context).float()
        return -F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view(tokens.shape).sum(dim=1)
