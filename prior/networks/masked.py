"""What networks share that predict masked codes from the others: loss, a bound of the likelihood, drawing in few steps.

MaskGIT (arXiv 2202.04200): all codes are masked at first; every step draws all of them and keeps some, by confidence,
in Halton's order (arXiv 2503.17076), or at random.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from prior import sampling
from prior.conditions.base import Context
from prior.networks.base import BaseNetworkConfig, Judged, Network, Noise
from prior.sampling import draw, guidance_at, guide
from prior.sequences import Sequence
from tokenizers_vq.codes import CodeLayout

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
ScheduleName = Literal["cosine", "arccos", "linear", "square"]
SCHEDULES: dict[str, Callable[[Tensor], Tensor]] = {
    "cosine": lambda done: torch.cos(math.pi / 2 * done),
    "arccos": lambda done: torch.arccos(done) / (math.pi / 2),
    "linear": lambda done: 1 - done,
    "square": lambda done: 1 - done**2,
}
"""share of codes that is masked when a share of the steps is done (arXiv 2202.04200, section 3.3)"""

BOUND_STEPS = 16
"""steps of the factorisation whose likelihood is the bound"""


class MaskedConfig(BaseNetworkConfig):
    """What the config of any masked network has."""

    schedule: ScheduleName = "cosine"
    """how many codes training masks: this function of a uniform number"""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """share of the target that is spread over all possible codes"""


class MaskedSampler(sampling.Sampler):
    """How masked codes are drawn: temperature, top-k, top-p of each code, and which of them are kept at each step."""

    steps: Annotated[int, Field(ge=1)] = 8
    """passes of the network"""
    schedule: ScheduleName = "cosine"
    """share of codes still masked after a share of the steps"""
    rounding: Literal["down", "up"] = "down"
    """how that number of codes is rounded; Halton-MaskGIT rounds it up"""
    order: Literal["confidence", "halton", "random"] = "confidence"
    """which codes are kept first: the likeliest, those far from each other, or any"""
    halton_start: Literal["first", "random"] = "first"
    """where Halton's order begins: at its first place, or at any place of it, drawn for each sample"""
    confidence: Literal["probability", "logit"] = "probability"
    """what confidence is: the log-probability of the drawn code, or its logit, as TiTok's sampler has it"""
    choice_temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 4.5
    """Gumbel noise on the confidence, falling to 0 at the last step"""
    annealed: bool = False
    """whether `temperature` falls to 0 at the last step too, as the Gumbel noise on TiTok's logits does"""
    logit_temperature: tuple[Positive, Positive] = (1.0, 1.0)
    """divides the logits before all else: from the first number to the second; (1.3, 0.5) in TiTok and MaskBit"""


def tempered(logits: Tensor, step: int, sampler: MaskedSampler) -> tuple[Tensor, MaskedSampler]:
    """Logits as `logit_temperature` leaves them at a step, and the sampler with the temperature of that step."""
    done = (step + 1) / sampler.steps
    if sampler.annealed:
        sampler = sampler.replace(temperature=sampler.temperature * (1 - done))
    first, last = sampler.logit_temperature
    return logits if first == last == 1 else logits / (first + (last - first) * done), sampler


def left_masked(unknown: Tensor, now: Tensor, step: int, sampler: MaskedSampler) -> Tensor:
    """int64 `(B,)`: codes still masked after `step`, of `unknown` in the beginning and `now` before it.

    At least one is left until the last step, and at least one is drawn at each.
    """
    if step + 1 >= sampler.steps:
        return torch.zeros_like(now)
    up = sampler.rounding == "up"
    # Halton-MaskGIT's float32 leaves one code more than float64 where the count is whole, as half-way at 24 x 24.
    done = torch.tensor((step + 1) / sampler.steps, dtype=torch.float32 if up else torch.float64)
    share, total = SCHEDULES[sampler.schedule](done), unknown.cpu()
    left = total - (total * (1 - share)).floor().long() if up else (total * share).floor().long()
    return left.to(now.device, non_blocking=True).clamp(min=1).minimum(now - 1).clamp(min=0)


def halton(count: int, base: int) -> Tensor:
    """float64 `(count,)` in (0, 1): the radical inverse of 1, 2, ... (the Halton sequence of a base)."""
    number, found, scale = torch.arange(1, count + 1), torch.zeros(count, dtype=torch.float64), 1.0
    while bool((number > 0).any()):
        scale /= base
        found += scale * (number % base)
        number = number // base
    return found


def halton_order(layout: CodeLayout) -> Tensor:
    """int64 `(N,)`: all places, each grid after the coarser ones, its positions by Halton's points in bases 2 and 3.

    A point falls on (row, column) = (floor(h x2), floor(w x3)); one that falls on a position again is left out. Rows of
    one dimension go by base 2 alone; the levels of a position follow each other.
    """
    order, first = [], 0
    for grid in layout.grids:
        height, width = grid if len(grid) == 2 else (grid[0], 1)
        seen: dict[int, None] = {}
        count = 2 * height * width
        while len(seen) < height * width:
            count *= 2
            rows, columns = (halton(count, 2) * height).long(), (halton(count, 3) * width).long()
            seen = dict.fromkeys((rows * width + columns).tolist())
        positions = torch.tensor(list(seen))
        order.append(first + (positions[:, None] * layout.levels + torch.arange(layout.levels)).flatten())
        first += height * width * layout.levels
    return torch.cat(order)


class Masked(Network):
    """Codes given any others. A network writes `forward`, which takes -1 for a masked code, and `trunk_blocks`.

    What is masked and drawn is a part of a code: all of it, unless a network overrides `split`, `join`, `part_logits`.
    """

    parts = 1
    """of a code"""
    exact = False
    masked = True
    Sampler: ClassVar[type[MaskedSampler]] = MaskedSampler

    def __init__(self, sequence: Sequence, schedule: str, label_smoothing: float) -> None:
        super().__init__(sequence)
        self.schedule, self.label_smoothing = schedule, label_smoothing

    def split(self, tokens: Tensor) -> Tensor:
        """Codes `(B, N)`, -1 where masked -> their parts, `(B, N x parts)`, those of a code one after another."""
        return tokens

    def join(self, parts: Tensor) -> Tensor:
        """The inverse of `split`, of parts that are all known."""
        return parts

    def part_logits(self, parts: Tensor, context: Context) -> Tensor:
        """Parts `(B, P)`, -1 where masked -> logits `(B, P, k)` of each from those that are not."""
        return self.logits(parts, context)

    def loss(self, tokens: Tensor, context: Context) -> Tensor:
        """Mean cross-entropy of the masked parts, nats; how many and which are masked is drawn for each row."""
        tokens = self.split(tokens)
        shares = SCHEDULES[self.schedule](torch.rand(tokens.shape[0], 1, device=tokens.device))
        count = (shares * tokens.shape[1]).ceil().clamp(min=1)
        hidden = torch.rand(tokens.shape, device=tokens.device).argsort(dim=1).argsort(dim=1) < count
        # The others are left out by their targets: to choose rows, an accelerator would be asked how many there are.
        logits = self.part_logits(tokens.masked_fill(hidden, -1), context).flatten(0, 1).float()
        told = F.cross_entropy(logits, tokens.masked_fill(~hidden, -100).flatten())
        if not self.label_smoothing:
            return told
        # Spread over possible codes alone: the others' logits are -inf.
        logp = logits.log_softmax(dim=-1)
        spread = -(logp.masked_fill(logits.isinf(), 0).sum(dim=-1) / logits.isfinite().sum(dim=-1))
        return torch.lerp(told, (spread * hidden.flatten()).sum() / hidden.sum(), self.label_smoothing)

    def judged(self, tokens: Tensor, context: Context) -> Iterator[Judged]:
        """Parts in `BOUND_STEPS` groups of a fixed random order, those of a group independent of each other.

        The likelihood is that of one way to draw; the best way's is no smaller.
        """
        tokens = self.split(tokens)
        codes = torch.full_like(tokens, -1)
        ends = (1 - SCHEDULES["cosine"](torch.linspace(0, 1, BOUND_STEPS + 1, dtype=torch.float64))) * tokens.shape[1]
        ends = ends.round().long().unique()
        order = torch.randperm(tokens.shape[1], generator=torch.Generator().manual_seed(0)).to(tokens.device)
        for first, last in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
            places = order[first:last]
            yield Judged(places, self.part_logits(codes, context)[:, places].float(), tokens[:, places])
            codes = codes.index_copy(1, places, tokens[:, places])

    def generate(self, known: Tensor, context: Context, sampler: sampling.Sampler, noise: Noise) -> Tensor:
        """In `steps` passes: draw all masked parts, keep the first of them by `order`."""
        assert isinstance(sampler, MaskedSampler)
        known = self.split(known)
        (rows, length), copies = known.shape, 1
        if guided := sampler.guidance != 1:
            context, copies = context.guided(), 2
        codes, unknown = known, (known < 0).sum(dim=1).cpu()
        fixed = self._fixed_order(sampler, noise, known)
        for step in range(sampler.steps):
            hidden = codes < 0
            now = hidden.sum(dim=1)
            logits = self.part_logits(codes.repeat(copies, 1), context).float()
            logits = guide(logits, guidance_at(sampler, step / sampler.steps)) if guided else logits
            logits, here = tempered(logits, step, sampler)
            drawn = draw(logits.flatten(0, 1), here, noise(2 * step, length).flatten()).view(rows, length)
            first = fixed if fixed is not None else _confidence(logits, drawn, sampler, step, noise)
            rank = first.masked_fill(~hidden, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            keep = rank < (now - left_masked(unknown, now, step, sampler))[:, None]
            codes = torch.where(hidden & keep, drawn, codes)
        return self.join(codes)

    def _fixed_order(self, sampler: MaskedSampler, noise: Noise, known: Tensor) -> Tensor | None:
        """float32 `(B, P)`: parts with the largest are kept first; None where what is drawn decides."""
        if sampler.order == "halton":
            ranks = halton_order(self.sequence.layout).argsort().to(known.device).expand(len(known), -1)
            if sampler.halton_start == "random":
                ranks = self._turned(ranks, noise(1, 1))
            parts = torch.arange(self.parts, device=known.device)
            return -(ranks[..., None] * self.parts + parts).flatten(1).float()
        return noise(1, known.shape[1]) if sampler.order == "random" else None

    def _turned(self, ranks: Tensor, share: Tensor) -> Tensor:
        """Ranks `(B, N)` of an order that begins at this share `(B, 1)` of each grid, and comes back to its first."""
        levels = self.sequence.layout.levels
        grids = self.sequence.positions[:, 0]
        counts = grids.bincount()
        first, count = (counts.cumsum(0) - counts)[grids], counts[grids]
        shift = (share * (count // levels)).long() * levels
        return first + (ranks - first - shift) % count


def _confidence(logits: Tensor, drawn: Tensor, sampler: MaskedSampler, step: int, noise: Noise) -> Tensor:
    """float32 `(B, N)`, finite: log-probabilities or logits of the drawn codes, with noise that falls to 0."""
    scores = logits if sampler.confidence == "logit" else logits.log_softmax(dim=-1)
    confidence = scores.gather(-1, drawn[..., None])[..., 0]
    gumbel = -noise(2 * step + 1, drawn.shape[1]).clamp(min=2**-24).log().neg().log()
    return confidence + sampler.choice_temperature * (1 - (step + 1) / sampler.steps) * gumbel
