"""The contract of a prior's network, and what its config says."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator
from typing import ClassVar, NamedTuple

import torch
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


class Judged(NamedTuple):
    """Parts of codes that the likelihood tells at once, a part being a whole code unless a masked network splits it."""

    places: Tensor
    """int64 `(n,)`, among the parts of a row"""
    logits: Tensor
    """float32 `(B, n, k)`, -inf for what cannot be"""
    parts: Tensor
    """int64 `(B, n)`, what they are"""


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
    sees: ClassVar[str]
    """in words, what a code is drawn from, where that is not all codes that are known"""
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
    def judged(self, tokens: Tensor, context: Context) -> Iterator[Judged]:
        """The parts of codes `(B, N)` group by group, each part once; in eval mode the same at every call."""

    def log_likelihood(self, tokens: Tensor, context: Context) -> Tensor:
        """Nats, float32 `(B,)`, of the codes, or a lower bound of that: the sum over all that `judged` gives."""
        total = torch.zeros(len(tokens), device=tokens.device)
        for group in self.judged(tokens, context):
            nats = F.cross_entropy(group.logits.flatten(0, 1), group.parts.flatten(), reduction="none")
            total = total - nats.view(group.parts.shape).sum(dim=1)
        return total

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

    def judged(self, tokens: Tensor, context: Context) -> Iterator[Judged]:
        """All codes, each given those before."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        yield Judged(places, self.logits(tokens, context).float(), tokens)

    @abstractmethod
    def walk(self, context: Context) -> Generator[Tensor, Tensor, None]:
        """Go through a row in the order of drawing: give logits `(B, n, K)` of its next codes, be sent these `(B, n)`.

        In eval mode, without gradient. Impossible codes have -inf. The same codes sent give bitwise the same logits, on
        one machine with one number of threads: this is what codes are compressed by.
        """
