"""What networks share that predict each code from those before it: loss, likelihood and one loop of drawing."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from prior.conditions.base import Context
from prior.networks.base import Network, Noise
from prior.sampling import Sampler, draw, guidance_at, guide


class State(ABC):
    """A network that has read the first codes of a row, and goes on code by code."""

    logits: Tensor
    """`(B, K)`, of the code that comes next, impossible codes included"""

    @abstractmethod
    def step(self, tokens: Tensor) -> Tensor:
        """Read the code `(B,)` that comes next -> `logits` of the one after it, without gradient."""


class Autoregressive(Network):
    """Codes in the order of `CodeLayout.flatten`, each given those before it.

    A network writes `forward` (all places at once, for training) and `start` (place by place, for drawing); they agree.
    """

    exact = True

    @abstractmethod
    def start(self, tokens: Tensor, context: Context) -> State:
        """Read the first codes `(B, n)`, 0 <= n < N, in eval mode."""

    def loss(self, tokens: Tensor, context: Context) -> Tensor:
        """Mean cross-entropy, nats a code."""
        return F.cross_entropy(self.logits(tokens, context).float().flatten(0, 1), tokens.flatten())

    def log_likelihood(self, tokens: Tensor, context: Context) -> Tensor:
        """The sum over the row of log p(code | those before), `(B,)` nats."""
        logits = self.logits(tokens, context).float()
        return -F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view(tokens.shape).sum(dim=1)

    def generate(self, known: Tensor, context: Context, sampler: Sampler, noise: Noise) -> Tensor:
        """Code by code; a code is drawn given those before it, also where later ones are known."""
        length, copies = known.shape[1], 1
        if guided := sampler.guidance != 1:
            context, copies = context.guided(), 2
        given = known >= 0
        start = int(given.all(dim=0).long().cumprod(0).sum())
        codes = known.clone()
        if start == length:
            return codes
        state = self.start(codes[:, :start].repeat(copies, 1), context)
        uniforms, partly = noise(0, length), given.any(dim=0).tolist()
        for place in range(start, length):
            if place > start:
                state.step(codes[:, place - 1].repeat(copies))
            logits = self.sequence.mask(state.logits[:, None], place)[:, 0]
            logits = guide(logits, guidance_at(sampler, place / length)) if guided else logits
            drawn = draw(logits, sampler, uniforms[:, place])
            codes[:, place] = torch.where(given[:, place], codes[:, place], drawn) if partly[place] else drawn
        return codes
