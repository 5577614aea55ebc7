"""The quantizers that every law is tried on: a new one gets them all by one line here."""

from __future__ import annotations

from typing import NamedTuple

from tokenizers_vq.quantizers import Quantizer, VectorQuantizer


class Case(NamedTuple):
    """A quantizer's settings, and why a law does not apply to it."""

    name: str
    fields: dict
    exempt: dict[str, str] = {}  # noqa: RUF012 (a NamedTuple's default is shared and never written)

    def build(self) -> Quantizer:
        return VectorQuantizer(**self.fields)


CASES = [
    Case("euclidean", {"num_codes": 48, "dim": 6}),
    Case("euclidean-legacy-beta", {"num_codes": 48, "dim": 6, "legacy_beta": True}),
    Case("cosine", {"num_codes": 48, "dim": 6, "distance": "cosine"}),
    Case("cosine-identity", {"num_codes": 48, "dim": 6, "distance": "cosine", "gradient_through_norm": False}),
    Case("factorised", {"num_codes": 37, "dim": 2, "distance": "cosine", "revive_after": 3}),
    Case("ema", {"num_codes": 48, "dim": 6, "codebook": "ema", "revive_after": 2}),
    Case("ema-cosine", {"num_codes": 48, "dim": 6, "codebook": "ema", "distance": "cosine"}),
    Case("kmeans", {"num_codes": 48, "dim": 6, "kmeans_batches": 3, "revive_after": 2}),
    # More codes than the batch of the laws has features (140).
    Case("kmeans-ema", {"num_codes": 200, "dim": 6, "codebook": "ema", "distance": "cosine", "kmeans_batches": 2}),
    Case("entropy", {"num_codes": 48, "dim": 6, "entropy_weight": 0.1, "entropy_temperature": 1.0}),
    Case("entropy-cosine", {"num_codes": 48, "dim": 6, "distance": "cosine", "entropy_weight": 0.1}),
]
