"""The pre-norm block of vision transformers (arXiv 2010.11929), its parts named as timm names them.

timm has the same, but importing it takes longer than loading a small model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SCORES = 1 << 20  # scores at once: more would leave the cache, and cost fresh memory every time


class Attention(nn.Module):
    """Multi-head self-attention over all positions, `(B, N, D)` -> the same.

    On a CPU in bfloat16 torch's fused kernel takes up to twice as long as its two products; elsewhere it is faster.
    """

    def __init__(self, width: int, heads: int, head_width: int | None = None, qkv_bias: bool = True) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width or width // heads
        inner = self.heads * self.head_width
        self.scale = self.head_width**-0.5
        self.may_fuse = True
        self.qkv = nn.Linear(width, 3 * inner, bias=qkv_bias)
        self.proj: nn.Module = nn.Linear(inner, width)

    @property
    def fused(self) -> bool:
        """Whether the next forward calls torch's fused kernel."""
        weight = self.qkv.weight
        half = weight.dtype == torch.bfloat16 or torch.is_autocast_enabled(weight.device.type)
        return self.may_fuse and not (half and weight.device.type == "cpu")

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, self.head_width).permute(2, 0, 3, 1, 4)
        if self.fused:
            attended = F.scaled_dot_product_attention(q, k, v)
        elif torch.is_grad_enabled() or torch.compiler.is_compiling():
            attended = ((self.scale * q) @ k.mT).softmax(dim=-1) @ v
        else:
            attended = self._in_steps(q, k, v)
        out: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return out

    def _in_steps(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Few heads at once, so that their scores stay in the cache."""
        batch, tokens = q.shape[0], q.shape[2]
        q, k, v = (part.flatten(0, 1) for part in (self.scale * q, k, v))
        attended = torch.empty_like(q)
        step = max(1, _SCORES // tokens**2)
        for start in range(0, len(q), step):
            part = slice(start, start + step)
            scores = q[part] @ k[part].mT
            attended[part] = torch.softmax(scores, dim=-1, out=scores) @ v[part]
        return attended.unflatten(0, (batch, self.heads))


class Mlp(nn.Module):
    """Two linear layers around an activation, `(..., D)` -> the same."""

    def __init__(self, width: int, inner: int, activation: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, inner), activation(), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Block(nn.Module):
    """Attention and feed-forward, each behind a LayerNorm and on a residual branch. `(B, N, D)` -> the same."""

    def __init__(self, attention: Attention, width: int, inner: int, activation: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), attention
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width, inner, activation)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out
