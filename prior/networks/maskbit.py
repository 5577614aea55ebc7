"""MaskBit: codes that are bits, read as bits and predicted a group of bits at a time (arXiv 2409.16211, section 4)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from prior.conditions.base import Context
from prior.networks.maskgit import Trunk, TrunkConfig
from prior.sequences import Sequence
from tokenizers_vq.devices import constant
from tokenizers_vq.quantizers import Quantizer
from tokenizers_vq.quantizers.bits import unpack


class MaskBitConfig(TrunkConfig):
    """Bidirectional transformer over groups of bits, of which some are masked; for the codes of lfq and bsq."""

    fed_vectors: ClassVar[bool] = True

    kind: Literal["maskbit"] = "maskbit"
    groups: Annotated[int, Field(ge=1)] = 2
    """groups of a code's bits, each masked and predicted by itself; they divide the bits"""

    def build(self, sequence: Sequence, book: Quantizer | None = None) -> MaskBit:
        """The network for a sequence. Raises `ValueError` for a quantizer whose codes are no bits."""
        return MaskBit(sequence, book, **self.arguments())


class MaskBit(Trunk):
    """Bits of each code as -1 and 1, of masked groups 0, through one linear layer; a head a group.

    There is no table of codes, for there may be too many. The first group holds the lowest bits. Groups of one code are
    independent where both are masked; drawn in several steps they are not.
    """

    config: MaskBitConfig
    of_codes = ("bits", "head")

    def __init__(self, sequence: Sequence, book: Quantizer | None, **fields: Any) -> None:
        config = MaskBitConfig(**fields)
        bits = None if book is None else book.sign_bits
        if bits is None or set(sequence.layout.sizes) != {2**bits}:
            raise ValueError(
                "a maskbit network reads the bits of codes, but this tokenizer's codes do not consist of bits: take "
                "a tokenizer with an lfq or bsq quantizer, or a maskgit network"
            )
        if bits % config.groups:
            raise ValueError(f"model.network.groups: {config.groups} groups do not divide the {bits} bits of a code")
        super().__init__(sequence, config)
        self.book, self.parts, self.width = book, config.groups, bits // config.groups
        dim = config.dim
        self.bits = nn.Linear(bits, dim)
        self.head = nn.Sequential(
            nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim, config.eps), nn.Linear(dim, self.parts * 2**self.width)
        )
        self.initialise()

    def split(self, tokens: Tensor) -> Tensor:
        """Codes `(B, N)` -> groups of bits as numbers `(B, N x groups)`, the lowest first, all -1 where masked."""
        size = 2**self.width
        parts = torch.stack([(tokens // size**group) % size for group in range(self.parts)], dim=2)
        return parts.masked_fill(tokens[..., None] < 0, -1).flatten(1)

    def join(self, parts: Tensor) -> Tensor:
        """The inverse of `split`."""
        powers = constant([2 ** (self.width * group) for group in range(self.parts)], parts.device)
        return (parts.unflatten(1, (-1, self.parts)) * powers).sum(dim=2)

    def part_logits(self, parts: Tensor, context: Context) -> Tensor:
        """Groups of bits `(B, N x groups)`, -1 where masked -> logits `(B, N x groups, 2^bits of a group)`."""
        signs = unpack(parts.clamp(min=0), self.width).movedim(1, -1).masked_fill(parts[..., None] < 0, 0)
        told = signs.to(self.positions.dtype).unflatten(1, (-1, self.parts)).flatten(2)
        found = self.head(self.read(self.bits(told), context))
        return found.unflatten(2, (self.parts, -1)).flatten(1, 2)

    def forward(self, tokens: Tensor, context: Context) -> Tensor:
        """Codes `(B, N)`, -1 where masked -> log-probabilities `(B, N, K)` of every code: the sum over its groups."""
        logp = self.part_logits(self.split(tokens), context).float().log_softmax(dim=-1)
        found, *others = logp.unflatten(1, (-1, self.parts)).unbind(2)
        for group in others:  # higher bits
            found = (group[..., None] + found[..., None, :]).flatten(-2)
        return found
