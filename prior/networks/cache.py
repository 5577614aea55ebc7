"""Keys and values of the tokens seen so far."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 32


class Cache:
    """Keys and values of up to `length` places for every layer, in the dtype of the network, written in place.

    `layers[i]` is `(2, B, heads, capacity, head_dim)`: keys, then values; `used` places of it are filled, the others 0.
    Capacity grows by `CHUNK` places: bfloat16 products copy what is not contiguous, so they take all of it, masked.
    """

    def __init__(
        self, layers: int, batch: int, heads: int, length: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.layers = [torch.zeros(2, batch, heads, 0, head_dim, dtype=dtype, device=device) for _ in range(layers)]
        self.length = length
        self.used = 0

    @property
    def capacity(self) -> int:
        """Places allocated."""
        return self.layers[0].shape[3]

    def reserve(self, count: int) -> bool:
        """Make room for `count` places more; whether anything moved. Raises `ValueError` beyond `length`."""
        needed = self.used + count
        if needed > self.length:
            raise ValueError(f"the cache holds {self.length} places, {needed} are needed; allocate a longer one")
        if needed <= self.capacity:
            return False
        capacity = min(-(-needed // CHUNK) * CHUNK, self.length)
        for index, old in enumerate(self.layers):
            new = old.new_zeros(*old.shape[:3], capacity, old.shape[4])
            new[:, :, :, : self.used] = old[:, :, :, : self.used]
            self.layers[index] = new
        return True

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put `(B, heads, n, head_dim)` after the used places, `n` reserved before, and give them back.

        `used` moves by `advance`, once all layers wrote.
        """
        last = self.used + keys.shape[2]
        store = self.layers[layer]
        store[0, :, :, self.used : last] = keys
        store[1, :, :, self.used : last] = values
        return keys, values

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """As `write`, and give keys and values of all places up to these."""
        self.write(layer, keys, values)
        kept = self.layers[layer][:, :, :, : self.used + keys.shape[2]]
        return kept[0], kept[1]

    def overwrite(self, layer: int, places: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put `(B, heads, n, head_dim)` at places `(B, n)` of each row, allocated before, and give all of the layer."""
        store = self.layers[layer]
        where = places[:, None, :, None].expand(-1, *store.shape[2:3], -1, store.shape[4])
        store[0].scatter_(2, where, keys.to(store.dtype))
        store[1].scatter_(2, where, values.to(store.dtype))
        return store[0], store[1]

    def advance(self, count: int) -> None:
        """Count the `count` places written last as used."""
        self.used += count
