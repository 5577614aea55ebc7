"""Keys and values of the tokens seen so far, in place."""

from __future__ import annotations

import torch
from torch import Tensor


class Cache:
    """Keys and values of `length` places for every layer, allocated once, in the dtype of the network.

    `layers[i]` is `(2, B, heads, length, head_dim)`: keys, then values; `used` places of it are filled.
    """

    def __init__(
        self, layers: int, batch: int, heads: int, length: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (2, batch, heads, length, head_dim)
        self.layers = [torch.empty(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.length = length
        self.used = 0

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put `(B, heads, n, head_dim)` after the used places; gives all keys and values so far.

        `used` moves by `advance`, once all layers wrote. Raises `ValueError` where the cache is full.
        """
        first, last = self.used, self.used + keys.shape[2]
        if last > self.length:
            raise ValueError(f"the cache holds {self.length} places, {last} are needed; allocate a longer one")
        store = self.layers[layer]
        store[0, :, :, first:last] = keys
        store[1, :, :, first:last] = values
        return store[0, :, :, :last], store[1, :, :, :last]

    def advance(self, count: int) -> None:
        """Count the `count` places written last as used."""
        self.used += count
