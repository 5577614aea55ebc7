"""Texts found by their digests: 16 bytes a text, however long it is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def digests(texts: Sequence[str]) -> np.ndarray:
    """uint64 `(n,)`, of 8 bytes of BLAKE2b each."""
    found = [int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") for text in texts]
    return np.array(found, dtype=np.uint64)


def places(rising: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """int64 `(n,)`: where each text's digest stands among `rising` ones, -1 where it does not."""
    if not len(rising):
        return np.full(len(texts), -1)
    wanted = digests(texts)
    found = np.searchsorted(rising, wanted).clip(max=len(rising) - 1)
    return np.where(rising[found] == wanted, found, -1)


class Index:
    """Numbers of texts, by the texts. Raises `ValueError` where one stands twice."""

    def __init__(self, texts: Sequence[str]) -> None:
        every = digests(texts)
        self.order = every.argsort()
        self.rising = every[self.order]
        twice = np.nonzero(self.rising[1:] == self.rising[:-1])[0]
        if len(twice):
            raise ValueError(f"'{texts[self.order[twice[0]]]}' appears twice: give images keys of their own")

    def find(self, texts: Sequence[str]) -> np.ndarray:
        """int64 `(n,)`: their numbers, -1 for those that are not there."""
        found = places(self.rising, texts)
        return np.where(found >= 0, self.order[found], -1)
