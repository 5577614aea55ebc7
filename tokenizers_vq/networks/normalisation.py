"""Group normalisation (Wu and He, arXiv 1803.08494) that trains fast on a CPU, and batch norm over all processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tokenizers_vq import distributed


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` of `(B, C, H, W)`, with a backward of its own where torch's is slow.

    That is on a CPU in channels_last, the layout of the fast convolutions: up to 25 times slower in bfloat16. There
    torch takes the variance as the mean square less the squared mean, too, which costs float32 its digits where a group
    is far from zero: without autograd such groups are moved near it first, which changes no norm.

    On an accelerator torch's has no channels_last either, and under autocast it takes float32: most of the bytes that
    an encoder moves there in bfloat16 are copies for its norms. Without autograd half precision is normed as it lies.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`(B, C, H, W)` -> the same shape and dtype."""
        if torch.compiler.is_compiling() or not input.is_contiguous(memory_format=torch.channels_last):
            return super().forward(input)
        if input.device.type != "cpu":
            if input.dtype in (torch.bfloat16, torch.float16) and not torch.is_grad_enabled():
                with torch.autocast(input.device.type, enabled=False):
                    return self._half(input)
        elif input.requires_grad:
            return _ChannelsLast.apply(input, self.weight, self.bias, self.num_groups, self.eps)
        elif input.dtype == torch.float32:
            offset = self._offset(input)
            input = input if offset is None else input - offset
        return super().forward(input)

    def _half(self, x: Tensor) -> Tensor:
        """The norm of half-precision `(B, C, H, W)` in any layout, which it keeps: float32 inside, half outside.

        As good as its input where groups lie within about 100 standard deviations of zero; beyond, the mean of squares
        less the squared mean costs digits.
        """
        batch, channels, height, width = x.shape
        groups = (batch, self.num_groups, channels // self.num_groups)
        count = height * width * groups[2]
        sums = x.sum((2, 3), dtype=torch.float32).view(groups)
        squares = torch.linalg.vector_norm(x, dim=(2, 3), dtype=torch.float32).square().view(groups)
        mean = sums.sum(2, keepdim=True) / count
        variance = (squares.sum(2, keepdim=True) / count - mean.square()).clamp(min=0)
        scale = self.weight.float().view(1, *groups[1:]) * (variance + self.eps).rsqrt()
        shift = self.bias.float().view(1, *groups[1:]) - mean * scale
        scale, shift = (part.reshape(batch, channels, 1, 1) for part in (scale, shift))
        return torch.addcmul(shift, x, scale, out=torch.empty_like(x))

    def _offset(self, x: Tensor) -> Tensor | None:
        """`(B, C, 1, 1)`: about the mean of groups that are far from zero, 0 for others; None where there are none.

        Read off one position in 16, and for each image alone, so that its values do not depend on the others.
        """
        batch, channels = x.shape[:2]
        variance, mean = torch.var_mean(
            x[:, :, ::4, ::4].reshape(batch, self.num_groups, -1), dim=2, keepdim=True, correction=0
        )
        far = mean.square() > 4 * variance
        if not far.numpy().any():
            return None
        return (mean * far).expand(-1, -1, channels // self.num_groups).reshape(batch, channels, 1, 1)


class _ChannelsLast(torch.autograd.Function):
    """torch's forward; a backward of two sums over positions and one affine map of input and gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        batch, channels, height, width = x.shape
        y, mean, rstd = torch.native_group_norm(x, weight, bias, batch, channels, height * width, groups, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        dtype = torch.promote_types(x.dtype, torch.float32)
        (batch, channels, height, width), groups = x.shape, mean.shape[1]
        dy, x_ = gradient.to(dtype), x.to(dtype)
        product = dy * x_
        # With xh = (x - mean) rstd, n elements a group and <.> their sum over a group:
        # dx = rstd (w dy - (<w dy> + xh <w dy xh>) / n), which is scale dy + slope x + shift.
        per_channel = (batch, groups, channels // groups)
        sum_dy = dy.sum((2, 3)).view(per_channel)
        mean, rstd = mean.to(dtype)[..., None], rstd.to(dtype)[..., None]
        sum_dy_xh = (product.sum((2, 3)).view(per_channel) - mean * sum_dy) * rstd
        w = weight.to(dtype).view(1, *per_channel[1:])
        slope = (w * sum_dy_xh).sum(-1, keepdim=True) * rstd.square() / -(height * width * per_channel[2])
        shift = (w * sum_dy).sum(-1, keepdim=True) * rstd / -(height * width * per_channel[2]) - slope * mean
        scale, slope, shift = (
            part.expand(per_channel).reshape(batch, channels, 1, 1) for part in (w * rstd, slope, shift)
        )
        dx = torch.addcmul(shift, x_, slope, out=product).addcmul_(dy, scale).to(x.dtype)
        dw, db = (part.sum(0).view(channels).to(weight.dtype) for part in (sum_dy_xh, sum_dy))
        return dx, dw, db, None, None


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d`, and in train mode with several processes the statistics of the global batch.

    On every device, which `nn.SyncBatchNorm` is not. Processes must hold equal numbers of images.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`(B, C, H, W)` -> the same shape and dtype; reductions in float32."""
        processes = distributed.world_size()
        if not self.training or processes == 1:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        features = input.float()
        # Two rounds: mean of squares less squared mean would cancel where the mean is large.
        mean = distributed.mean(features.mean(dim=(0, 2, 3)))
        centred = features - mean.view(1, -1, 1, 1)
        variance = distributed.mean(centred.square().mean(dim=(0, 2, 3)))
        count = processes * input.numel() // input.shape[1]
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), self.momentum)
            self.num_batches_tracked.add_(1)
        scale = self.weight.float() * (variance + self.eps).rsqrt()
        return (centred * scale.view(1, -1, 1, 1) + self.bias.float().view(1, -1, 1, 1)).to(input.dtype)
