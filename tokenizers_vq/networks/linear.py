"""A linear layer that takes the faster of two float32 products on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Linear(nn.Linear):
    """`nn.Linear`, `(..., D)` -> `(..., D')`; without autograd in float32 on a CPU by oneDNN instead of torch's BLAS.

    MKL, torch's usual BLAS, keeps processors that are not Intel's from AVX-512: there oneDNN takes half its time.
    Values differ by rounding alone.
    """

    def forward(self, input: Tensor) -> Tensor:
        return _onednn(input, self.weight, self.bias) if self._eager_inference(input) else super().forward(input)

    def _eager_inference(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and self.weight.is_contiguous()
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()  # nor exporting
            and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # not every build has it
            and torch.backends.cpu.get_cpu_capability() == "AVX512"
        )


def use_onednn(network: nn.Module) -> None:
    """Makes each plain `nn.Linear` inside a `Linear`; weights and random state stay."""
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # Strided inputs would fall to a reference kernel, a thousand times slower.
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")
    return out
