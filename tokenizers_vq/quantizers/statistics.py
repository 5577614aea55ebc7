"""How evenly a batch uses the codes, and how long each code has gone unused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tokenizers_vq import distributed

WINDOW = 256
"""updates without use after which the log counts a code as dead"""


@torch.no_grad()
def count(codes: Tensor, num_codes: int) -> Tensor:
    """float32 `(K,)`: how often each code occurs in `codes` (any shape) of all processes."""
    # Unlike bincount, which asks an accelerator for the largest code.
    flat = codes.reshape(-1)
    ones = torch.ones_like(flat, dtype=torch.float32)
    return distributed.sum(torch.zeros(num_codes, device=codes.device).index_add_(0, flat, ones))


def perplexity_of(counts: Tensor) -> Tensor:
    """exp of the entropy of counts `(K,)`."""
    share = counts / counts.sum()
    return torch.exp(-torch.special.xlogy(share, share).sum())


@torch.no_grad()
def code_stats(counts: Tensor, age: Tensor) -> dict[str, Tensor]:
    """Ages the codes by one update, in place: `(K,)`, `(K,)` int64 -> scalars for the log.

    `perplexity` = exp of the entropy of `counts`, 1 to K; `dead` = number of codes that no batch used in the last 256
    updates (0 in the first 256); `usage` = share of all others, 1 - dead / K; `oldest` = updates since the longest
    unused code was used (if it never was: since training began).
    """
    age.copy_(torch.where(counts > 0, 0, age + 1))
    dead = (age >= WINDOW).sum().float()
    return {
        "perplexity": perplexity_of(counts),
        "usage": 1 - dead / len(counts),
        "dead": dead,
        "oldest": age.max().float(),
    }


def joined_stats(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One set of the figures that several codebooks all have: means, but the sum of the dead, the oldest's age."""
    shared = [name for name in parts[0] if all(name in part for part in parts)]
    stacked = {name: torch.stack([part[name] for part in parts]) for name in shared}
    joined = {name: values.mean() for name, values in stacked.items()}
    joined |= {"dead": stacked["dead"].sum(), "oldest": stacked["oldest"].max()} if "dead" in stacked else {}
    return joined
