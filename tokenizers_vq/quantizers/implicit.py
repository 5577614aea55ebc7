"""What quantizers without a stored codebook share: layout, checks, and perplexity without a table of all codes."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenizers_vq import distributed
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.quantizers.base import Quantizer, check_features, split_levels
from tokenizers_vq.quantizers.statistics import code_stats, count, joined_stats, perplexity_of

_DENSE = 1 << 20
_AGED = 1 << 16
"""most codes whose ages are kept"""
_KEPT = 1 << 22
"""most ages of several codes at a position together"""
_INT64 = (1 << 63) - 1


class ImplicitQuantizer(Quantizer):
    """A quantizer whose codes are digits of the features; it has no parameters, and up to 65,536 codes' ages as state.

    `depth` codes of `num_codes` at every position. Stats in training: `perplexity`; where ages are kept, also `usage`,
    `dead` and `oldest` as `code_stats` has them; of several codes `joined_stats`.
    """

    training_state: ClassVar[tuple[str, ...]] = ("age",)
    straight = True
    age: Tensor | None

    def __init__(self, num_codes: int, depth: int = 1) -> None:
        super().__init__()
        if num_codes > _INT64:
            raise ValueError(f"{num_codes} codes do not fit into int64: use fewer levels or bits")
        self.num_codes, self.depth = num_codes, depth
        aged = num_codes <= _AGED and num_codes * depth <= _KEPT
        shape = (num_codes,) if depth == 1 else (depth, num_codes)
        self.register_buffer("age", torch.zeros(shape, dtype=torch.long) if aged else None)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        if self.age is not None:  # what was saved before ages were kept comes without them
            state_dict.setdefault(f"{prefix}age", torch.zeros_like(self.age, device="cpu"))
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def layout(self, grid: tuple[int, ...]) -> CodeLayout:
        """As many codes of K at every position of `grid` as this quantizer has."""
        return CodeLayout((grid,), self.depth, (self.num_codes,) * self.depth)

    def _stats(self, codes: Tensor) -> dict[str, Tensor]:
        """Of one batch in training; one update of the ages."""
        parts = split_levels(codes, self.depth)
        if self.age is None:
            return {"perplexity": torch.stack([perplexity(part, self.num_codes) for part in parts]).mean()}
        ages = self.age[None] if self.depth == 1 else self.age
        return joined_stats(
            [code_stats(count(part, self.num_codes), age) for part, age in zip(parts, ages, strict=True)]
        )

    def _check(self, features: Tensor) -> None:
        check_features(features, in_all_processes=self.training)


@torch.no_grad()
def perplexity(codes: Tensor, num_codes: int) -> Tensor:
    """exp of the entropy of the codes (any shape) of all processes, 1 to K; sparse above 2^20 codes."""
    if num_codes <= _DENSE:
        counts = count(codes, num_codes)
    else:
        counts = _gathered(codes.reshape(-1)).unique(return_counts=True)[1].float()
    return perplexity_of(counts)


def _gathered(codes: Tensor) -> Tensor:
    """The codes `(n,)` of all processes, which may hold different numbers of them."""
    world, rank = distributed.world_size(), distributed.rank()
    if world == 1:
        return codes
    lengths = torch.zeros(world, dtype=torch.long, device=codes.device)
    lengths[rank] = len(codes)
    lengths = distributed.sum(lengths)
    table = torch.zeros(world, int(lengths.max()), dtype=torch.long, device=codes.device)
    table[rank, : len(codes)] = codes
    table = distributed.sum(table)
    return torch.cat([row[: int(length)] for row, length in zip(table, lengths, strict=True)])
