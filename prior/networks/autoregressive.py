"""What networks share that predict each code from those before it: loss, likelihood and one loop of drawing."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Generator
from typing import Annotated, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from prior import sampling
from prior.conditions.base import Context
from prior.networks.base import Exact, Noise
from prior.networks.speculative import report, speculate
from prior.sampling import draw, guidance_at, guide
from tokenizers_vq.config import ConfigError

logger = logging.getLogger(__name__)


class AutoregressiveSampler(sampling.Sampler):
    """How codes are drawn one after the other."""

    graph: bool = False
    """one by one by operators of fixed shapes, on CUDA as one graph a code, which saves the launches; what is drawn
    differs by rounding alone"""
    window: Annotated[int, Field(ge=1)] = 1
    """codes that are looked at in one pass of speculative Jacobi decoding, which draws as likely as one by one does;
    1 = one by one. What a seed draws then depends, by rounding, on how many are drawn together"""

    @model_validator(mode="after")
    def _check_graph(self) -> Self:
        if self.graph and self.window > 1:
            raise ConfigError(
                ("graph",), f"draws one by one, where window={self.window} looks at several: leave one out"
            )
        return self


class State(ABC):
    """A network that has read the first codes of a row, and goes on code by code."""

    logits: Tensor
    """`(B, K)`, of the code that comes next, impossible codes included"""

    @abstractmethod
    def step(self, tokens: Tensor) -> Tensor:
        """Read the code `(B,)` that comes next -> `logits` of the one after it, without gradient."""


class Autoregressive(Exact):
    """Codes in the order of `CodeLayout.flatten`, each given those before it.

    A network writes `forward` (all places at once, for training) and `start` (place by place, for drawing); they agree.
    """

    sees = "codes in order, each given those before it alone"
    Sampler: ClassVar[type[AutoregressiveSampler]] = AutoregressiveSampler

    @abstractmethod
    def start(self, tokens: Tensor, context: Context) -> State:
        """Read the first codes `(B, n)`, 0 <= n < N, in eval mode."""

    def fixed(self, state: State) -> State:
        """The state going on by operators of fixed shapes. Raises `ValueError` for a network that has none such."""
        raise ValueError("graph: this kind of network draws without: a gpt network has it")

    def look(self, state: State, codes: Tensor, context: Context, first: Tensor, count: int) -> Tensor:
        """Logits `(B, count, K)` of places `first, first + 1, ...` of each row of codes `(B, N)`; `first` >= 1.

        Codes before `first` do not change once it was looked at. `state`: of those that were read at the start. Places
        after the last have any logits. Here the whole row is read; a network that keeps keys and values reads
        `count` places alone.
        """
        logits = self(codes, context)
        where = _ahead(first, count, codes.shape[1])
        return logits.gather(1, where[..., None].expand(-1, -1, logits.shape[-1]))

    def generate(self, known: Tensor, context: Context, sampler: sampling.Sampler, noise: Noise) -> Tensor:
        """Code by code, or in windows; a code is drawn given those before it, also where later ones are known."""
        assert isinstance(sampler, AutoregressiveSampler)
        length, copies = known.shape[1], 1
        if guided := sampler.guidance != 1:
            context, copies = context.guided(), 2
        given = known >= 0
        start = int(given.all(dim=0).long().cumprod(0).sum())
        codes = known.clone()
        if start == length:
            return codes
        state = self.start(codes[:, :start].repeat(copies, 1), context)
        if sampler.window > 1:
            return self._speculate(known, context, sampler, noise, state, start)
        if sampler.graph:
            state = self.fixed(state)
        uniforms, partly = noise(0, length), given.any(dim=0).tolist()
        for place in range(start, length):
            if place > start:
                state.step(codes[:, place - 1].repeat(copies))
            logits = self.sequence.mask(state.logits[:, None], place)[:, 0]
            logits = guide(logits, guidance_at(sampler, place / length)) if guided else logits
            drawn = draw(logits, sampler, uniforms[:, place])
            codes[:, place] = torch.where(given[:, place], codes[:, place], drawn) if partly[place] else drawn
        return codes

    def walk(self, context: Context) -> Generator[Tensor, Tensor, None]:
        """Code by code."""
        rows, length = len(context.vectors), self.sequence.length
        state = self.start(torch.empty(rows, 0, dtype=torch.int64, device=context.vectors.device), context)
        for place in range(length):
            codes = yield self.sequence.mask(state.logits[:, None], place)
            if place + 1 < length:
                state.step(codes[:, 0])

    def _speculate(
        self,
        known: Tensor,
        context: Context,
        sampler: AutoregressiveSampler,
        noise: Noise,
        state: State,
        start: int,
    ) -> Tensor:
        length, copies = known.shape[1], context.vectors.shape[0] // known.shape[0]
        factors = torch.tensor([guidance_at(sampler, place / length) for place in range(length)], device=known.device)
        began = False

        def look(codes: Tensor, first: Tensor, count: int) -> Tensor:
            nonlocal began
            codes, where = codes.repeat(copies, 1), _ahead(first, count, length)
            if began:
                logits = self.look(state, codes, context, first.repeat(copies), count)
            else:  # `state` has read as many codes as all rows are given; some may be given more
                until = min(int(first.max()) + count, length) - start
                logits, began = state.logits[:, None], True
                if until > 1:
                    after = torch.full((len(codes),), start + 1, device=known.device)
                    logits = torch.cat((logits, self.look(state, codes, context, after, until - 1)), dim=1)
                wanted = (where - start).repeat(copies, 1)[..., None].expand(-1, -1, logits.shape[-1])
                logits = logits.gather(1, wanted)
            if self.sequence.mixed:
                streams = self.sequence.streams[where].repeat(copies, 1)
                logits = logits.masked_fill(self.sequence.impossible[streams], float("-inf"))
            return guide(logits, factors[where][..., None]) if copies > 1 else logits

        result = speculate(known, look, sampler, min(sampler.window, length), noise, self.sequence.bounds)
        logger.info("%s", report(result))
        return result.codes


def _ahead(first: Tensor, count: int, length: int) -> Tensor:
    """int64 `(B, count)`: places from `first` `(B,)` on, the last again where there are no more."""
    return (first[:, None] + torch.arange(count, device=first.device)).clamp(max=length - 1)
