"""What quantizers of sign bits share: codes are the signs of the features, vectors those signs times a scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from tokenizers_vq.codes import Quantized
from tokenizers_vq.config import ConfigError
from tokenizers_vq.quantizers.base import (
    QuantizerFields,
    Remedy,
    as_given,
    check_codes,
    join_levels,
    split_levels,
    straight_through,
)
from tokenizers_vq.quantizers.bits import MOST_BITS, bit_entropies, pack, unpack
from tokenizers_vq.quantizers.implicit import ImplicitQuantizer


class BitsConfig(QuantizerFields):
    """Fields of quantizers of sign bits."""

    bits: int = Field(default=18, ge=1, le=4096)
    """bits at one position, and channels of the features; there are 2^bits vectors"""
    code_bits: int | None = Field(default=None, ge=1, le=MOST_BITS)
    """bits of one code; fewer than `bits`: several codes at a position, of successive channels; null: most that fit"""
    first_channel: Literal["least", "most"] = "least"
    """significance of the first channel in a code: least (MAGVIT-v2, WeTok), or most (BSQ-ViT, Infinity)"""
    entropy_weight: float = Field(default=0.1, ge=0)
    """weight of the entropy term; 0 = none"""
    sample_entropy: float = Field(default=1.0, ge=0)
    """inside the entropy term: weight of each vector's entropy, which is made low"""
    batch_entropy: float = Field(default=1.0, ge=0)
    """inside the entropy term: weight of the whole batch's entropy, which is made high"""
    entropy_group: int = Field(default=9, ge=1, le=18)
    """bits whose joint distribution counts in the batch's entropy; `bits` or more = exact, 1 = each bit by itself"""
    entropy_mixed: bool = False
    """groups of bits share one distribution in the batch's entropy, and terms are means over them (WeTok, BitDance)"""

    @model_validator(mode="after")
    def _check_bits(self) -> Self:
        if self.code_bits is not None and self.bits % self.code_bits:
            raise ConfigError(("code_bits",), f"codes of {self.code_bits} bits do not divide {self.bits} bits")
        if self.entropy_mixed and self.entropy_weight and self.bits % min(self.entropy_group, self.bits):
            raise ConfigError(
                ("entropy_group",),
                f"groups of {self.entropy_group} do not divide {self.bits} bits, as mixing them needs",
            )
        return self

    @property
    def codes(self) -> int:
        """Codes at one position."""
        if self.code_bits is not None:
            return self.bits // self.code_bits
        return next(n for n in range(-(-self.bits // MOST_BITS), self.bits + 1) if self.bits % n == 0)

    def remedies(self) -> list[Remedy]:
        """The entropy term, fewer bits."""
        entropy = [] if self.entropy_weight else [Remedy(("entropy_weight=0.1",), "rewards even use")]
        fewer = [Remedy((f"bits={self.bits - 3}",), "fewer codes")] if self.bits > 8 and self.codes == 1 else []
        return entropy + fewer


class SignQuantizer(ImplicitQuantizer):
    """Features `(B, bits, *grid)` to their signs (0 gives -1) times `scale`: codes `(B, *grid)`, or `(B, *grid, L)`.

    Bit i of a code is its channel i's, or those in reverse (`first_channel`); of L codes at a position, each takes the
    next bits / L channels. `config`: `BitsConfig` with `beta` and `entropy_temperature`. As a book of several levels,
    each is half the one before, as bits of a binary number are (ResidualLFQ of vector-quantize-pytorch).
    """

    finer = 0.5

    def __init__(self, config: Any, scale: float) -> None:
        super().__init__(2 ** (config.bits // config.codes), config.codes)
        self.config, self.scale = config, scale
        self.in_dim = self.dim = config.bits
        self._reversed = config.first_channel == "most"

    @property
    def sign_bits(self) -> int:
        """Of one code."""
        return self.config.bits // self.depth

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """Of the commitment."""
        return {"commitment": self.config.beta}

    def commitment(self, source: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The loss beta |source - target|^2, mean over elements."""
        return {"commitment": self.config.beta * F.mse_loss(source, target)}

    def encode(self, features: Tensor) -> Tensor:
        """`(B, bits, *grid)` -> int64 codes. Raises `ValueError` for non-finite features."""
        self._check(features)
        return self.encode_confined(features)

    def lookup(self, codes: Tensor) -> Tensor:
        """int64 codes -> float32 `(B, bits, *grid)`. Raises `ValueError` for codes out of range, or of another L."""
        parts = split_levels(codes, self.depth)
        check_codes(codes, self.num_codes)
        return self._vectors(parts)

    def partial(self, codes: Tensor, upto: int) -> Tensor:
        """`(B, bits, *grid)`, zero in the channels behind the first `upto` codes; see `Quantizer.partial`."""
        self._check_upto(upto)
        if self.depth == 1:
            return self.lookup(codes)
        if not upto <= codes.shape[-1] <= self.depth:
            raise ValueError(f"codes must be the first {upto} to {self.depth} last, got {tuple(codes.shape)}")
        check_codes(codes, self.num_codes)
        known = self._vectors(codes.unbind(-1)[:upto])
        rest = known.new_zeros(known.shape[0], self.dim - known.shape[1], *known.shape[2:])
        return torch.cat([known, rest], dim=1)

    def addend(self, codes: Tensor, level: int) -> Tensor:
        """`(B, bits, *grid)` of codes `(B, *grid)` number `level` of a position, zero in the channels of others."""
        check_codes(codes, self.num_codes)
        known = self._vectors([codes])
        before, after = (n * self.sign_bits for n in (level, self.depth - 1 - level))
        zeros = [known.new_zeros(known.shape[0], width, *known.shape[2:]) for width in (before, after)]
        return torch.cat([zeros[0], known, zeros[1]], dim=1)

    def _vectors(self, parts: Any) -> Tensor:
        signs = [unpack(part, self.sign_bits) for part in parts]
        return torch.cat([part.flip(1) for part in signs] if self._reversed else signs, dim=1) * self.scale

    def forward(self, features: Tensor) -> Quantized:
        """`(B, bits, *grid)` -> `Quantized`. Raises `ValueError` for non-finite features, in training everywhere."""
        codes = self.encode(features)
        with torch.autocast(features.device.type, enabled=False):
            found = self._forward(self.confine(features.float()), codes)
        return found._replace(features=as_given(found.features, features))

    def encode_confined(self, vectors: Tensor) -> Tensor:
        """The signs."""
        parts = (vectors.detach() > 0).split(self.sign_bits, dim=1)
        return join_levels([pack(part.flip(1) if self._reversed else part) for part in parts])

    def forward_confined(self, vectors: Tensor) -> Quantized:
        """Straight through the signs."""
        return self._forward(vectors, self.encode_confined(vectors))

    def _forward(self, source: Tensor, codes: Tensor) -> Quantized:
        target = self._vectors(split_levels(codes, self.depth))
        # -|x - c|^2 / t differs by 4 x s / t between c = s and c = -s.
        entropy, stats = entropy_term(self.config, source * (4 * self.scale / self.config.entropy_temperature))
        losses = self.commitment(source, target) | entropy
        stats = stats | self._stats(codes) if self.training else {}
        return Quantized(straight_through(target, source), codes, losses, stats)


def entropy_term(config: BitsConfig, logits: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and stats of bits `(B, bits, *grid)` with these logits; empty where the term has no weight."""
    if not config.entropy_weight:
        return {}, {}
    width = min(config.entropy_group, config.bits) if config.entropy_mixed else config.bits
    # Groups that share one distribution are as vectors at more positions.
    sample, batch = bit_entropies(logits.movedim(1, -1).reshape(-1, width), config.entropy_group)
    loss = config.entropy_weight * (config.sample_entropy * sample - config.batch_entropy * batch)
    return {"entropy": loss}, {"sample_entropy": sample.detach(), "batch_entropy": batch.detach()}
