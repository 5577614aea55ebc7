"""Adaptive kernel selection (GigaGAN, Kang et al., arXiv 2303.05511, section 3.1): a convolution per image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_vq.networks.blocks import Conditioned


class AdaptiveConv2d(Conditioned):
    """3x3 convolution `(B, C, H, W)` -> `(B, C', H, W)` whose kernel each image's code `(B, D, h, w)` makes.

    With z the code's mean over positions, a kernel is `sum_i K_i softmax(W z + b)_i` of the bank, its input channels
    are scaled by `W' z + b'` (which begins at 1), and each output channel is brought back to norm 1 (equation 3, with
    StyleGAN2's demodulation, arXiv 1912.04958).
    """

    def __init__(self, dim: int, kernels: int, width_in: int, width_out: int, side: int = 3) -> None:
        super().__init__()
        bank = (nn.Conv2d(width_in, width_out, side).weight.detach() for _ in range(kernels))
        self.weight = nn.Parameter(torch.stack(list(bank)))
        self.bias = nn.Parameter(torch.zeros(width_out))
        self.select = nn.Linear(dim, kernels)
        self.scale = nn.Linear(dim, width_in)
        nn.init.ones_(self.scale.bias)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            wide = torch.promote_types(code.dtype, torch.float32)
            pooled = code.to(wide).mean(dim=(2, 3))
            choice = torch.softmax(_affine(self.select, pooled), dim=-1)
            scale = _affine(self.scale, pooled)
            kernels = torch.einsum("bn,noikl->boikl", choice, self.weight.to(wide)) * scale[:, None, :, None, None]
            norm = (kernels.square().sum(dim=(2, 3, 4)) + 1e-8).rsqrt()
        if _exporting():
            return self._by_bank(x, choice, scale, norm)
        kernels = (kernels * norm[..., None, None, None]).to(x.dtype)
        batch, _, height, width = x.shape
        grouped = F.conv2d(
            x.reshape(1, -1, height, width), kernels.flatten(0, 1), padding=self.weight.shape[-1] // 2, groups=batch
        )
        return grouped.view(batch, -1, height, width) + self.bias.to(grouped.dtype)[:, None, None]

    def _by_bank(self, x: Tensor, choice: Tensor, scale: Tensor, norm: Tensor) -> Tensor:
        """The same by one convolution of all kernels: a graph for any batch has no group for each image."""
        scales = (choice[:, :, None] * scale[:, None]).flatten(1).to(x.dtype)
        inputs = x.repeat(1, choice.shape[1], 1, 1) * scales[..., None, None]
        out = F.conv2d(inputs, self.weight.transpose(0, 1).flatten(1, 2), padding=self.weight.shape[-1] // 2)
        return out * norm.to(out.dtype)[..., None, None] + self.bias.to(out.dtype)[:, None, None]


def _affine(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


def _exporting() -> bool:
    exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # torch 2.6 has no is_exporting
    return bool(exporting())
