"""What quantizers without a stored codebook share: layout, checks, and perplexity without a table of all codes."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenizers_vq import distributed
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.quantizers.base import Quantizer, check_features
from tokenizers_vq.quantizers.statistics import code_stats, count, perplexity_of

_DENSE = 1 << 20
_AGED = 1 << 16
"""most codes whose ages are kept"""
_INT64 = (1 << 63) - 1


class ImplicitQuantizer(Quantizer):
    """A quantizer whose codes are digits of the features; it has no parameters, and up to 65,536 codes' ages as state.

    Stats in training: `perplexity`; where ages are kept, also `usage`, `dead` and `oldest` as `code_stats` has them.
    """

    training_state: ClassVar[tuple[str, ...]] = ("age",)
    straight = True
    age: Tensor | None

    def __init__(self, num_codes: int) -> None:
        super().__init__()
        if num_codes > _INT64:
            raise ValueError(f"{num_codes} codes do not fit into int64: use fewer levels or bits")
        self.num_codes = num_codes
        self.register_buffer("age", torch.zeros(num_codes, dtype=torch.long) if num_codes <= _AGED else None)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        if self.age is not None:  # what was saved before ages were kept comes without them
            state_dict.setdefault(f"{prefix}age", torch.zeros(self.num_codes, dtype=torch.long))
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def layout(self, grid: tuple[int, ...]) -> CodeLayout:
        """One code of K at every position of `grid`."""
        return CodeLayout((grid,), 1, (self.num_codes,))

    def _stats(self, codes: Tensor) -> dict[str, Tensor]:
        """Of one batch in training; one update of the ages."""
        if self.age is None:
            return {"perplexity": perplexity(codes, self.num_codes)}
        return code_stats(count(codes, self.num_codes), self.age)

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
