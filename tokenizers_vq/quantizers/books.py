"""Fields of quantizers that hold several codebooks, each a `VectorQuantizer`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from tokenizers_vq.config import Config, ConfigError

Size = Annotated[int, Field(ge=1)]


class BooksConfig(Config):
    """What all the codebooks are."""

    num_codes: Size | tuple[Size, ...] = 1024
    """codes in each codebook, or one number for each"""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """cosine: each codebook's search and lookup on L2-normalised vectors"""
    codebook: Literal["gradient", "ema"] = "gradient"
    """how the codebooks learn: by their loss term, or as moving averages of what they quantize (no gradient)"""
    beta: float = 0.25
    """weight of the commitment term"""
    decay: float = Field(default=0.99, ge=0, lt=1)
    """decay of the moving averages (ema)"""
    epsilon: float = 1e-5
    """Laplace smoothing of the moving counts (ema)"""
    revive_after: int | None = Field(default=None, ge=1)
    """a code unused for so many updates is moved to a random vector of those it quantizes; null = never"""
    kmeans_batches: int = Field(default=0, ge=0)
    """first updates that fit the codebooks to what they quantize by k-means; 0 = none"""

    def book(self) -> dict[str, Any]:
        """The fields that each `VectorQuantizer` has, all but its number of codes."""
        return {name: getattr(self, name) for name in BooksConfig.model_fields if name != "num_codes"}

    def sizes_of(self, count: int, what: str) -> tuple[int, ...]:
        """Codes of each of `count` books. Raises `ConfigError` where `num_codes` lists another number of `what`."""
        if not isinstance(self.num_codes, tuple):
            return (self.num_codes,) * count
        if len(self.num_codes) != count:
            raise ConfigError(("num_codes",), f"{len(self.num_codes)} numbers for {count} {what}")
        return self.num_codes
