"""StyleGAN2's discriminator (Karras et al., arXiv 1912.04958), ViT-VQGAN's choice: residual, one logit an image."""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizers_vq.batch import Batch
from tokenizers_vq.config import Config
from tokenizers_vq.discriminators.base import Embedded, Split

SMALLEST = 8


class StyleGAN2Config(Config):
    """Residual blocks that halve the image until its shorter side is 4, then one logit.

    Published with the non-saturating objective, R1 at weight 10 and at every 16th step, and Adam. Lazy R1 leaves Adam
    fewer, larger steps of it, which Karras et al. (appendix B) undo with lr x 16/17 and each beta to the power 16/17:
    for lr 0.002 and betas 0, 0.99 give the adversary `optimizer: {lr: 0.001882, betas: [0.0, 0.990586]}`.
    """

    kind: Literal["stylegan2"] = "stylegan2"
    width: Annotated[float, Field(gt=0)] = 1.0
    """factor of all the published widths: 512 where the shorter side is at most 32, less above"""
    channel_multiplier: Annotated[float, Field(gt=0)] = 2.0
    """m: published widths at 64, 128, 256 ... pixels are 256 m, 128 m, 64 m ..., m being 1 or 2; they cost the most"""
    stddev_group: Annotated[int, Field(ge=1)] = 4
    """images that share a minibatch standard deviation; more where it does not divide the batch"""

    def build(self, channels: int = 3, image_size: tuple[int, int] = (256, 256)) -> StyleGAN2:
        return StyleGAN2(channels, image_size, **self.arguments())


class StyleGAN2(Split):
    """Images `(B, C, H, W)` of the size it was built for -> logits `(B, 1)`, and the features of each block.

    The sides are powers of two from 8, not necessarily equal; widths follow the shorter one. Each process, and each
    micro-batch, has its own minibatch standard deviation, as in published code.
    Raises `ValueError` for other sizes.
    """

    def __init__(self, channels: int = 3, image_size: tuple[int, int] = (256, 256), **fields: Any) -> None:
        config = StyleGAN2Config(**fields)
        super().__init__(config, channels, image_size)
        self.stddev_group = config.stddev_group
        _check_sides(*image_size)
        short = min(image_size)
        sides = [short >> i for i in range(int(math.log2(short)) - 1)]
        widths = [layer_width(side, config.width, config.channel_multiplier) for side in sides]
        self.stem = nn.Sequential(EqualisedConv2d(channels, widths[0], 1), nn.LeakyReLU(0.2))
        self.blocks = nn.ModuleList(ResidualBlock(a, b) for a, b in itertools.pairwise(widths))
        self.feature_width = last = widths[-1]
        self.embedding_widths = [last]
        positions = math.prod(image_size) * 16 // short**2
        self.mix = nn.Sequential(EqualisedConv2d(last + 1, last, 3, padding=1), nn.LeakyReLU(0.2))
        self.head = nn.Sequential(
            nn.Flatten(),
            EqualisedLinear(last * positions, last),
            nn.LeakyReLU(0.2),
            EqualisedLinear(last, 1, gain=1.0),
        )

    def check(self, batch: Batch) -> None:
        super().check(batch)
        if len(batch.images) == 1 and self.stddev_group > 1:
            raise ValueError(
                "adversary.discriminator.stddev_group: one image a process and micro-batch has no deviation from "
                "others: raise `batch_size`, lower `accumulate`, or give stddev_group=1 to do without"
            )

    def embed(self, images: Tensor) -> Embedded:
        """Images `(B, C, H, W)` in [-1, 1]."""
        super().check(Batch(images))
        # The layout in which depthwise convolutions are fast: twice the speed of the whole on a CPU.
        images = self.stem(images.contiguous(memory_format=torch.channels_last))
        features = []
        for block in self.blocks:
            images = block(images)
            features.append(images)
        deviation = minibatch_deviation(images, self.stddev_group).to(images.dtype)
        return Embedded([self.head[:-1](self.mix(torch.cat([images, deviation], dim=1)))], features)

    def decide(self, embeddings: list[Tensor]) -> list[Tensor]:
        return [self.head[-1](embeddings[0])]


def layer_width(side: int, factor: float = 1.0, multiplier: float = 2.0) -> int:
    """Channels where the shorter side of the feature map is `side`: the published ones times `factor`."""
    published = 512 if side <= 32 else 16384 * multiplier / side
    return max(round(published * factor), 1)


def minibatch_deviation(features: Tensor, group: int) -> Tensor:
    """`(B, C, H, W)` -> `(B, 1, H, W)`: standard deviation over a group of images, averaged (arXiv 1710.10196).

    Image i belongs to group i mod (B // group), so that a batch that `group` does not divide has larger groups; a batch
    smaller than `group` is one. float32, whatever the features are.
    """
    batch, _, height, width = features.shape
    groups = max(batch // group, 1)
    rows = -(-batch // groups)
    flat = F.pad(features.float().flatten(1), (0, 0, 0, rows * groups - batch)).unflatten(0, (rows, groups))
    present = (torch.arange(rows * groups, device=flat.device) < batch).view(rows, groups, 1).to(flat.dtype)
    count = present.sum(dim=0)
    centred = (flat - flat.sum(dim=0) / count) * present
    deviation = (centred.square().sum(dim=0) / count + 1e-8).sqrt().mean(dim=1)
    return deviation.repeat(rows)[:batch].view(batch, 1, 1, 1).expand(batch, 1, height, width)


class ResidualBlock(nn.Module):
    """`(B, C, H, W)` -> `(B, D, H / 2, W / 2)`: two convolutions beside a linear shortcut, their sum over sqrt 2."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        # The sqrt 2 of the sum goes into the gains of both branches.
        self.conv1 = EqualisedConv2d(channels, channels, 3, padding=1)
        self.conv2 = EqualisedConv2d(channels, width, 3, stride=2, gain=1.0)
        self.skip = EqualisedConv2d(channels, width, 1, bias=False, gain=math.sqrt(0.5))
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("taps", taps.outer(taps)[None, None], persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        hidden = F.leaky_relu(self.conv1(features), 0.2)
        hidden = F.leaky_relu(self.conv2(self._blur(hidden, padding=2)), 0.2)
        # Published code blurs at full size and strides in the 1x1 convolution, which drops three in four.
        return hidden + self.skip(self._blur(features, padding=1, stride=2))

    def _blur(self, features: Tensor, padding: int, stride: int = 1) -> Tensor:
        channels = features.shape[1]
        kernel = self.taps.expand(channels, 1, 4, 4)  # type: ignore[operator]
        return F.conv2d(features, kernel, stride=stride, padding=padding, groups=channels)


class EqualisedConv2d(nn.Conv2d):
    """Convolution whose N(0, 1) weights are scaled at run time by `gain / sqrt(fan-in)` (arXiv 1710.10196).

    The bias is scaled by `gain`: sqrt 2 is StyleGAN2's factor behind its leaky ReLU, with which it commutes.
    """

    def __init__(self, *arguments: Any, gain: float = math.sqrt(2), **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.gain, self.scale = gain, gain / math.sqrt(self.weight[0].numel())

    def reset_parameters(self) -> None:
        _standard_normal(self.weight, self.bias)

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias * self.gain
        return F.conv2d(input, self.weight * self.scale, bias, self.stride, self.padding)


class EqualisedLinear(nn.Linear):
    """The linear layer of `EqualisedConv2d`'s kind."""

    def __init__(self, *arguments: Any, gain: float = math.sqrt(2), **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.gain, self.scale = gain, gain / math.sqrt(self.in_features)

    def reset_parameters(self) -> None:
        _standard_normal(self.weight, self.bias)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight * self.scale, self.bias * self.gain)


def _standard_normal(weight: Tensor, bias: Tensor | None) -> None:
    nn.init.normal_(weight)
    if bias is not None:
        nn.init.zeros_(bias)


def _check_sides(height: int, width: int) -> None:
    def near(side: int) -> list[int]:
        below = 1 << max(side, 1).bit_length() - 1
        return [side] if side == below >= SMALLEST else sorted({max(below, SMALLEST), max(2 * below, SMALLEST)})

    sizes = [f"{h}x{w}" for h in near(height) for w in near(width)]
    if sizes != [f"{height}x{width}"]:
        raise ValueError(
            f"stylegan2 needs sides that are powers of two from {SMALLEST}, got {height}x{width}: "
            f"set `image_size` to {' or '.join(sizes)}, or take patchgan"
        )
