"""timm's attention, fused where that is faster. A module of its own, since importing timm takes its time."""

from __future__ import annotations

import torch
from timm.layers import Attention as TimmAttention
from torch import Tensor

_SCORES = 1 << 20  # scores at once: more would leave the cache, and cost fresh memory every time


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

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Self-attention over all positions; the mask is timm's."""
        masked = attn_mask is not None or is_causal
        if masked or self.fused_attn or torch.is_grad_enabled() or torch.compiler.is_compiling():
            plain: Tensor = super().forward(x, attn_mask, is_causal)
            return plain
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).flatten(1, 2)
        q = q * self.scale
        attended = torch.empty_like(q)
        step = max(1, _SCORES // tokens**2)
        for start in range(0, len(q), step):
            part = slice(start, start + step)
            scores = q[part] @ k[part].mT
            attended[part] = torch.softmax(scores, dim=-1, out=scores) @ v[part]
        joined = attended.view(batch, self.num_heads, tokens, self.head_dim).transpose(1, 2).flatten(2)
        out: Tensor = self.proj(joined)
        return out
