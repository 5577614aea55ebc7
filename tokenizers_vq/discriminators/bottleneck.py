"""The variational discriminator bottleneck (Peng et al., arXiv 1810.00821): it may know only so much of an image."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tokenizers_vq import distributed
from tokenizers_vq.batch import Batch
from tokenizers_vq.config import Config, ConfigError
from tokenizers_vq.discriminators.base import Discriminator, Judgement, Split, Wrapper
from tokenizers_vq.discriminators.drawn import generators

if TYPE_CHECKING:
    from tokenizers_vq.discriminators import DiscriminatorConfig


class BottleneckConfig(Config):
    """Noise on what the inner discriminator decides by, as much as holds its information at a target.

    It stands right around a discriminator of images, inside other wrappers.
    """

    kind: Literal["bottleneck"] = "bottleneck"
    discriminator: DiscriminatorConfig
    """the one that decides, no wrapper"""
    target: Annotated[float, Field(gt=0)] = 0.1
    """I_c: nats that each position of the embedding may tell of images and reconstructions"""
    multiplier: Annotated[float, Field(ge=0)] = 0.1
    """beta at first: price of a nat beyond the target"""
    rate: Annotated[float, Field(ge=0)] = 1e-5
    """alpha: how far a nat beyond the target raises the multiplier at each step"""

    def build(self, channels: int = 3, image_size: tuple[int, int] = (256, 256)) -> Bottleneck:
        return Bottleneck(channels, image_size, **self.arguments())


class Bottleneck(Wrapper):
    """The inner discriminator's logits of a code `z ~ N(mean, deviation)` in the place of its embedding.

    Mean and log deviation are linear in the embedding. The loss `bottleneck`, of images and of reconstructions half
    each, is `multiplier * (KL(z | N(0, 1)) - target)`: channels are summed, positions (and embeddings, of several)
    averaged. The multiplier is a buffer, moved by dual ascent after each step: `max(0, multiplier + rate * (KL -
    target))`. In eval mode z is its mean. z is also the last of the features: wrappers around it know no more.
    Raises `ConfigError` around another wrapper, which has no embedding of its own.
    """

    inner: Split
    multiplier: Tensor
    kl: Tensor
    total: Tensor
    count: Tensor

    def __init__(self, channels: int = 3, image_size: tuple[int, int] = (256, 256), **fields: Any) -> None:
        super().__init__(BottleneckConfig(**fields), channels, image_size)
        if not isinstance(self.inner, Split):
            kind = self.inner.config.kind
            raise ConfigError(
                ("adversary", "discriminator"),
                f"bottleneck stands right around a discriminator of images, and {kind} is none: put bottleneck inside "
                f"{kind}, around what it holds",
            )
        self.codes = nn.ModuleList(map(Code, self.inner.embedding_widths))
        self.feature_width = self.inner.embedding_widths[-1]
        self.register_buffer("multiplier", torch.tensor(float(self.config.multiplier)))
        for name in ("kl", "total", "count"):
            self.register_buffer(name, torch.zeros(()))

    def check(self, batch: Batch) -> None:
        """What the inner one cannot take, and any size but its own: noise has that of its embedding."""
        super().check(batch)
        Discriminator.check(self, batch)

    @property
    def conditional(self) -> bool:
        """The inner one's alone: draws are no condition."""
        return self.inner.conditional

    @cached_property
    def shapes(self) -> list[torch.Size]:
        """Of each embedding of an image, positions in a row: `(D, positions)`."""
        mode = self.inner.training
        images = next(self.codes.parameters()).new_zeros(1, self.channels, *self.image_size)
        with torch.no_grad():
            found = self.inner.eval().embed(images)
        self.inner.train(mode)
        return [_rows(embedding)[0].shape for embedding in found.embeddings]

    def inputs(self, record: Any, images: Tensor) -> tuple[Any, ...]:
        """Images, and noise `(B, D, positions)` for each embedding: by key and step, one for images, one for fakes."""
        side = "real" if images is record.images else "fake"
        noise = record.once(("bottleneck", tuple(self.shapes), side), lambda: self._drawn(record, side))
        return (images, noise)

    def _drawn(self, record: Any, side: str) -> tuple[Tensor, ...]:
        device = record.images.device
        rows = [
            [torch.randn(shape, generator=generator, device=device) for shape in self.shapes]
            for generator in generators(record, f" bottleneck {side}", device)
        ]
        return tuple(torch.stack(column) for column in zip(*rows, strict=True))

    def forward(self, images: Tensor, noise: tuple[Tensor, ...] | None = None) -> Judgement:
        """Images `(B, C, H, W)` in [-1, 1]; `noise` may be left out in eval mode."""
        embeddings, features = self.inner.embed(images)
        drawn = noise if self.training and noise is not None else (None,) * len(embeddings)
        coded = [code(x, n) for code, x, n in zip(self.codes, embeddings, drawn, strict=True)]
        kl = torch.stack([each for _, each in coded]).mean()
        if self.training:
            self.total.add_(distributed.mean(kl.detach()))  # buffers agree between processes
            self.count.add_(1)
        loss = 0.5 * self.multiplier * (kl - self.config.target)
        last = coded[-1][0]
        return Judgement(
            self.inner.decide([code for code, _ in coded]),
            [*features, last if last.ndim == 4 else last[..., None, None]],
            {"bottleneck": loss},
        )

    @torch.no_grad()
    def after_step(self) -> None:
        """Dual ascent by what the step's forwards found, of all processes and micro-batches."""
        self.kl.copy_(self.total / self.count.clamp(min=1))
        self.multiplier.add_(self.config.rate * (self.kl - self.config.target)).clamp_(min=0)
        self.total.zero_()
        self.count.zero_()

    def figures(self) -> dict[str, Tensor]:
        """The multiplier, and the KL of the step before."""
        return {**super().figures(), "multiplier": self.multiplier.clone(), "kl": self.kl.clone()}


class Code(nn.Module):
    """An embedding of `width` channels -> a draw of its code, of the same shape, and the KL of codes to N(0, 1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mean, self.log_deviation = nn.Conv1d(width, width, 1), nn.Conv1d(width, width, 1)
        for parameter in self.log_deviation.parameters():  # begins at deviation 1, however large embeddings are
            nn.init.zeros_(parameter)

    def forward(self, embedding: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """`(B, D)` or `(B, D, h, w)`; `noise` of its shape, positions in a row; without it the mean is given."""
        rows = _rows(embedding)
        mean, log_deviation = (part(rows) for part in (self.mean, self.log_deviation))
        exact = torch.promote_types(mean.dtype, torch.float32)
        mean, log_deviation = mean.to(exact), log_deviation.to(exact)
        kl = (0.5 * (mean.square() + (2 * log_deviation).exp() - 1) - log_deviation).sum(dim=1).mean()
        code = mean if noise is None else mean + log_deviation.exp() * noise
        return code.view_as(embedding).to(embedding.dtype), kl


def _rows(embedding: Tensor) -> Tensor:
    """`(B, D)` or `(B, D, h, w)` -> `(B, D, positions)`."""
    return embedding.reshape(*embedding.shape[:2], -1)
