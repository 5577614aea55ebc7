"""timm's attention, fused where that is faster. A module of its own, since importing timm takes its time."""

from __future__ import annotations

import torch
from timm.layers import Attention as TimmAttention


class Attention(TimmAttention):
    """timm's multi-head self-attention, `(B, N, D)` -> the same.

    On a CPU in bfloat16 torch's fused kernel takes up to twice as long as its two products; elsewhere it is faster.
    """

    _may_fuse = True

    @property  # type: ignore[misc]  # timm marks it final for TorchScript alone
    def fused_attn(self) -> bool:
        """Whether the next forward calls torch's fused kernel."""
        weight = self.qkv.weight
        half = weight.dtype == torch.bfloat16 or torch.is_autocast_enabled(weight.device.type)
        return self._may_fuse and not (half and weight.device.type == "cpu")

    @fused_attn.setter
    def fused_attn(self, allowed: bool) -> None:
        self._may_fuse = allowed
