"""Use of the codes, counted over a whole split: share, perplexity, entropy, dead codes, bits per pixel."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenizers_vq import distributed
from tokenizers_vq.codes import CodeLayout, Codes
from tokenizers_vq.evaluation.metrics import joined

DENSE_LIMIT = 2**20
"""most bins that a histogram counts in a plain array"""
_PENDING = 2**22


class Histogram:
    """int64 counts of values in [0, bins), exact: an array up to `DENSE_LIMIT` bins, pairs of (value, count) above."""

    def __init__(self, bins: int, dense_limit: int = DENSE_LIMIT) -> None:
        self.bins = bins
        self.dense = torch.zeros(bins, dtype=torch.int64) if bins <= dense_limit else None
        self._pairs = (torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._waiting = 0

    def update(self, values: Tensor) -> None:
        """Adds int64 values of any shape. Raises `ValueError` for values outside [0, bins)."""
        values = values.detach().reshape(-1).cpu()
        if not values.numel():
            return
        if values.min() < 0 or values.max() >= self.bins:
            raise ValueError(f"codes must lie in [0, {self.bins}), got {int(values.min())} to {int(values.max())}")
        if self.dense is not None:
            self.dense += torch.bincount(values, minlength=self.bins)
            return
        self._add(*torch.unique(values, return_counts=True))

    def _add(self, values: Tensor, counts: Tensor) -> None:
        self._pending.append((values, counts))
        self._waiting += values.numel()
        if self._waiting > _PENDING:
            self._merge()

    def _merge(self) -> None:
        parts = [self._pairs, *self._pending]
        values, index = torch.unique(torch.cat([value for value, _ in parts]), return_inverse=True)
        counts = torch.zeros_like(values).index_add_(0, index, torch.cat([count for _, count in parts]))
        self._pairs, self._pending, self._waiting = (values, counts), [], 0

    def pairs(self) -> tuple[Tensor, Tensor]:
        """The values that occurred, ascending, and their counts; int64, equal lengths."""
        if self.dense is not None:
            values = self.dense.nonzero().squeeze(1)
            return values, self.dense[values]
        if self._pending:
            self._merge()
        return self._pairs

    def join(self) -> Histogram:
        """The histogram of all processes together."""
        if distributed.world_size() == 1:
            return self
        result = Histogram(self.bins, dense_limit=0 if self.dense is None else self.bins)
        if self.dense is not None:
            result.dense = joined(self.dense)
        else:
            values, counts = self.pairs()
            result._add(_gathered(values), _gathered(counts))
        return result


def _gathered(rows: Tensor) -> Tensor:
    """1-D tensors of all processes, one after the other, by a sum: each fills its own stretch of zeros."""
    lengths = torch.zeros(distributed.world_size(), dtype=torch.int64)
    lengths[distributed.rank()] = rows.numel()
    lengths = joined(lengths)
    start = int(lengths[: distributed.rank()].sum())
    everyone = torch.zeros(int(lengths.sum()), dtype=rows.dtype)
    everyone[start : start + rows.numel()] = rows
    return joined(everyone)


class StreamUsage(NamedTuple):
    """Use of the codes of one stream (grid x level)."""

    size: int
    """number of codes K"""
    tokens: int
    """codes counted"""
    used: int
    """codes seen at least once"""
    dead: int
    """codes never seen"""
    usage: float
    """used / K"""
    entropy: float
    """of the code histogram, in bits"""
    perplexity: float
    """exp of that entropy (in nats): 1 for one code, K for uniform use"""
    codes: Tensor
    """int64 (used,), the codes seen, ascending"""
    counts: Tensor
    """int64 (used,), how often each"""
    position_entropy: Tensor | None
    """float64 `grid`, entropy in bits of the codes seen at each position; at most log2(images)"""

    def rank_frequency(self) -> Tensor:
        """float64 (used,): share of each code, most frequent first."""
        return self.counts.double().sort(descending=True).values / max(self.tokens, 1)

    def to_dict(self) -> dict[str, Any]:
        """The numbers, JSON-able, without the arrays."""
        names = ("size", "tokens", "used", "dead", "usage", "entropy", "perplexity")
        numbers = {name: getattr(self, name) for name in names}
        return {**numbers, "entropy_unit": "bits", "perplexity_definition": "exp of the entropy of the code histogram"}


def stream_name(layout: CodeLayout, stream: int) -> str:
    """`grid 16x16, level 3`: what tells a stream from the others; `codes` where there is one."""
    grid, level = divmod(stream, layout.levels)
    parts = ["grid " + "x".join(map(str, layout.grids[grid]))] if len(layout.grids) > 1 else []
    parts += [f"level {level + 1}"] if layout.levels > 1 else []
    return ", ".join(parts) or "codes"


class Usage(NamedTuple):
    """Use of all codes of a split."""

    layout: CodeLayout
    images: int
    streams: tuple[StreamUsage, ...]
    pixels: int
    """H x W of one image"""

    def name(self, stream: int) -> str:
        """As `stream_name`."""
        return stream_name(self.layout, stream)

    @property
    def described(self) -> str:
        """How many codes an image has, and of how many they are, in words."""
        layout = self.layout
        grids = " + ".join("x".join(map(str, grid)) for grid in layout.grids)
        levels = f" x {layout.levels} levels" if layout.levels > 1 else ""
        sizes = " / ".join(f"{size:,}" for size in dict.fromkeys(layout.sizes))
        return f"{layout.length:,} codes an image ({grids}{levels}), of {sizes} each"

    @property
    def tokens(self) -> int:
        return sum(stream.tokens for stream in self.streams)

    @property
    def usage(self) -> float:
        """Share of all codes of all streams that were seen."""
        return sum(stream.used for stream in self.streams) / sum(stream.size for stream in self.streams)

    @property
    def dead(self) -> int:
        return sum(stream.dead for stream in self.streams)

    @property
    def bits_per_pixel(self) -> float:
        """At log2(K) bits a code."""
        return self.layout.bits / self.pixels

    @property
    def entropy_bits_per_pixel(self) -> float:
        """At the unigram entropy of each stream: what an ideal order-0 entropy coder would need."""
        if not self.images:
            return math.nan
        return sum(stream.entropy * stream.tokens for stream in self.streams) / (self.images * self.pixels)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able numbers of the split and of each stream."""
        return {
            "sample": {"images": self.images, "tokens": self.tokens},
            "usage": self.usage,
            "dead": self.dead,
            "bits_per_pixel": self.bits_per_pixel,
            "bits_per_pixel_unigram_entropy": self.entropy_bits_per_pixel,
            "layout": self.layout.to_dict(),
            "streams": [stream.to_dict() for stream in self.streams],
        }


def entropy_bits(counts: Tensor) -> float:
    """Entropy in bits of a histogram's counts `(n,)`; 0 for none."""
    shares = counts[counts > 0].double()
    shares = shares / shares.sum()
    return max(-(shares * shares.log2()).sum().item(), 0.0) if shares.numel() else 0.0


class CodeUsage:
    """Counts codes batch by batch, per stream and per position; `positions=False` leaves the entropy map out."""

    def __init__(self, layout: CodeLayout, pixels: int, positions: bool = True) -> None:
        self.layout, self.pixels = layout, pixels
        self.images = torch.zeros((), dtype=torch.int64)
        self.counts = [Histogram(size) for size in layout.sizes]
        self._lengths = torch.bincount(layout.streams(), minlength=len(layout.sizes)).tolist()
        # One bin is a pair (position, code); a product beyond int64 has no bin number.
        bins = [length * size for length, size in zip(self._lengths, layout.sizes, strict=True)]
        self.joint = [Histogram(n) if positions and n < 2**63 else None for n in bins]

    def update(self, codes: Codes) -> None:
        """Adds the codes of a batch. Raises `ValueError` where they do not fit the layout."""
        parts = self.layout.split(codes)
        self.images += parts[0].shape[0]
        for part, size, counts, joint in zip(parts, self.layout.sizes, self.counts, self.joint, strict=True):
            part = part.detach().cpu().long()
            counts.update(part)
            if joint is not None:
                joint.update(part + torch.arange(part.shape[1]) * size)

    def compute(self) -> Usage:
        """The use of all codes by all processes."""
        streams = []
        for index, size in enumerate(self.layout.sizes):
            codes, counts = self.counts[index].join().pairs()
            entropy, tokens, joint = entropy_bits(counts), int(counts.sum()), self.joint[index]
            grid = self.layout.grids[index // self.layout.levels]
            streams.append(
                StreamUsage(
                    size=size,
                    tokens=tokens,
                    used=codes.numel(),
                    dead=size - codes.numel(),
                    usage=codes.numel() / size,
                    entropy=entropy,
                    perplexity=2.0**entropy,
                    codes=codes,
                    counts=counts,
                    position_entropy=None
                    if joint is None
                    else _position_entropy(joint.join(), size, self._lengths[index]).reshape(grid),
                )
            )
        return Usage(self.layout, int(joined(self.images)), tuple(streams), self.pixels)


def _position_entropy(joint: Histogram, size: int, positions: int) -> Tensor:
    """Entropy in bits at each position `(positions,)`, from counts of position * size + code."""
    values, counts = joint.pairs()
    position, n = values // size, counts.double()
    total = torch.zeros(positions, dtype=torch.float64).index_add_(0, position, n)
    weighted = torch.zeros(positions, dtype=torch.float64).index_add_(0, position, n * n.log2())
    return torch.where(total > 0, total.clamp_min(1).log2() - weighted / total.clamp_min(1), 0.0).clamp_min(0)
