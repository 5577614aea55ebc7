"""Batch normalisation whose batch is the batch of all processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenizers_vq import distributed


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
