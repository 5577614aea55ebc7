"""Augmentation of all that a discriminator sees: DiffAugment (Zhao et al., arXiv 2006.10738), with ADA's probability.

ADA (Karras et al., arXiv 2006.06676, section 3.1) raises the probability while the discriminator is too sure of real
images, and lowers it else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokenizers_vq import distributed
from tokenizers_vq.config import Config, Schedule, schedule_value
from tokenizers_vq.discriminators.base import Judgement, Wrapper
from tokenizers_vq.discriminators.drawn import generators

if TYPE_CHECKING:
    from tokenizers_vq.discriminators import DiscriminatorConfig

Operation = Literal["color", "translation", "cutout"]
INTERVAL = 4
"""batches of real images between two changes of ADA's probability"""
DRAWS = 10


class AugmentedConfig(Config):
    """The inner discriminator sees images and reconstructions changed alike, differentiably, in train mode only.

    An image, its reconstruction and what else of their size the inner discriminator asks for get the same draw, which
    follows from the image's key and the step.
    """

    kind: Literal["augmented"] = "augmented"
    discriminator: DiscriminatorConfig
    """the one that sees them"""
    policy: tuple[Operation, ...] = ("color", "translation", "cutout")
    """what is drawn: brightness, saturation and contrast; shifts to an eighth; a grey square of half the sides"""
    p: Annotated[float, Field(ge=0, le=1)] | Literal["ada"] = 1.0
    """probability of each of `policy` for each image; ada: begins at 0 and adapts"""
    target: Annotated[float, Field(gt=-1, lt=1)] = 0.6
    """ada: mean sign of the real logits that it holds"""
    ramp: Annotated[int, Field(ge=1)] = 500_000
    """ada: images over which the probability can rise from 0 to 1"""
    noise: Schedule = 0.0
    """deviation of Gaussian noise on the pixels, in [-1, 1]; a number or a schedule"""

    def build(self, channels: int = 3, image_size: tuple[int, int] = (256, 256)) -> Augmented:
        return Augmented(channels, image_size, **self.arguments())


class Augmented(Wrapper):
    """The inner discriminator's judgement of what was augmented. `p` is a buffer."""

    p: Tensor
    signs: Tensor
    seen: Tensor

    def __init__(self, channels: int = 3, image_size: tuple[int, int] = (256, 256), **fields: Any) -> None:
        super().__init__(AugmentedConfig(**fields), channels, image_size)
        self.adaptive = self.config.p == "ada"
        self.register_buffer("p", torch.tensor(0.0 if self.adaptive else self.config.p), persistent=self.adaptive)
        if self.adaptive:
            self.register_buffer("signs", torch.zeros(()))
            self.register_buffer("seen", torch.zeros(()))

    @property
    def conditional(self) -> bool:
        """The inner one's alone: draws are no condition."""
        return self.inner.conditional

    def inputs(self, record: Any, images: Tensor) -> tuple[Any, ...]:
        """Images, draws `(B, 10)`, noise `(B, C, H, W)` or None, whether they are real, what the inner one asks for."""
        real = images is record.images
        images, *others = self.inner_inputs(record, images)
        level = schedule_value(self.config.noise, record.step)
        draws, noise = record.once(("augmented", level), lambda: _drawn(record, level))
        return (images, draws, noise, real, *others)

    def forward(self, images: Tensor, draws: Tensor, noise: Tensor | None, real: bool, *others: Any) -> Judgement:
        """Images `(B, C, H, W)` in [-1, 1]; `real` ones move ADA's probability in train mode."""
        if not self.training:
            return self.inner(images, *others)
        size = images.shape[-2:]

        def change(part: Any) -> Any:
            if isinstance(part, tuple):
                return tuple(map(change, part))
            if not isinstance(part, Tensor) or part.ndim != 4 or part.shape[-2:] != size:
                return part
            return augment(part, draws.to(part.dtype), self.p, self.config.policy, noise)

        judgement: Judgement = self.inner(*[change(part) for part in (images, *others)])
        if self.adaptive and real:
            self._adapt(judgement.logits, len(images))
        return judgement

    def figures(self) -> dict[str, Tensor]:
        """ADA's probability as `p`."""
        return {**super().figures(), **({"p": self.p.clone()} if self.adaptive else {})}

    @torch.no_grad()
    def _adapt(self, logits: list[Tensor], count: int) -> None:
        sign = torch.stack([scale.detach().sign().to(self.p.dtype).mean() for scale in logits]).mean()
        self.signs.add_(distributed.mean(sign))
        self.seen.add_(1)
        due = self.seen >= INTERVAL
        step = torch.sign(self.signs / self.seen - self.config.target) * (
            INTERVAL * count * distributed.world_size() / self.config.ramp
        )
        self.p.copy_(torch.where(due, (self.p + step).clamp(0, 1), self.p))
        self.signs.mul_(~due)
        self.seen.mul_(~due)


def _drawn(record: Any, level: float) -> tuple[Tensor, Tensor | None]:
    images = record.images
    rows, noise = [], []
    for generator in generators(record):
        rows.append(torch.rand(DRAWS, generator=generator))
        if level:
            noise.append(level * torch.randn(images.shape[1:], generator=generator))
    return torch.stack(rows).to(images), torch.stack(noise).to(images) if noise else None


def augment(
    images: Tensor, draws: Tensor, p: Tensor, policy: tuple[Operation, ...], noise: Tensor | None = None
) -> Tensor:
    """`(B, C, H, W)` changed image by image as `draws` `(B, 10)` in [0, 1) say; the same draws, the same change.

    The first three draws decide with probability `p` on color, translation and cutout, the others how much.
    """
    operations: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "color": _color,
        "translation": _translated,
        "cutout": _cut_out,
    }
    for i, (name, operation) in enumerate(operations.items()):
        if name in policy:
            images = operation(images, draws[:, 3:].view(-1, 7, 1, 1, 1), (draws[:, i] < p).view(-1, 1, 1, 1))
    if noise is None:
        return images
    copies = images.shape[1] // noise.shape[1]  # pairs have several images in their channels
    return images + noise.to(images.dtype).repeat(1, copies, 1, 1)


def _color(images: Tensor, u: Tensor, on: Tensor) -> Tensor:
    changed = images + (u[:, 0] - 0.5)
    grey = changed.mean(dim=1, keepdim=True)
    changed = (changed - grey) * (2 * u[:, 1]) + grey
    mean = changed.mean(dim=(1, 2, 3), keepdim=True)
    changed = (changed - mean) * (u[:, 2] + 0.5) + mean
    return torch.where(on, changed, images)


def _translated(images: Tensor, u: Tensor, on: Tensor) -> Tensor:
    for axis, draw in ((2, u[:, 3]), (3, u[:, 4])):
        side = images.shape[axis]
        most = int(side / 8 + 0.5)
        shift = (draw * (2 * most + 1)).floor().long() - most
        shape = [1, 1, 1, 1]
        shape[axis] = side
        source = torch.arange(side, device=images.device).view(shape) - shift * on
        inside = (source >= 0) & (source < side)
        images = images.gather(axis, source.clamp(0, side - 1).expand_as(images)) * inside
    return images


def _cut_out(images: Tensor, u: Tensor, on: Tensor) -> Tensor:
    gone = on
    for axis, draw in ((2, u[:, 5]), (3, u[:, 6])):
        side = images.shape[axis]
        half = int(side / 2 + 0.5)
        first = (draw * (side + 1 - half % 2)).floor() - half // 2
        shape = [1, 1, 1, 1]
        shape[axis] = side
        place = torch.arange(side, device=images.device).view(shape)
        gone = gone & (place >= first) & (place < first + half)
    return images * ~gone
