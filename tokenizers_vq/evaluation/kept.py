"""A tokenizer of which only the first codes of each image are kept, for measures of quality over tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tokenizers_vq.codes import CodeLayout, Codes
from tokenizers_vq.encoding import check_keep
from tokenizers_vq.tokenizer import Tokenizer


class Kept:
    """The verbs of a tokenizer, on the first `keep` of its codes as `CodeLayout.prefix` counts them.

    Raises `ValueError` where it does not decode so many by themselves.
    """

    def __init__(self, tokenizer: Tokenizer, keep: int) -> None:
        self.tokenizer, self.keep = tokenizer, check_keep(tokenizer, keep)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def code_layout(self, height: int | None = None, width: int | None = None) -> CodeLayout:
        """Layout of the codes that are kept."""
        return self.tokenizer.code_layout(height, width).prefix(self.keep)

    def encode(self, images: Tensor) -> Codes:
        """`(B, C, H, W)` in [-1, 1] -> the first int64 codes."""
        return self.tokenizer.code_layout(*images.shape[-2:]).cut(self.tokenizer.encode(images), self.keep)

    def decode(self, codes: Codes) -> Tensor:
        """Those codes -> images `(B, C, H, W)` in [-1, 1]."""
        return self.tokenizer.decode(codes)
