"""`Record`: everything that the losses may ask of one micro-batch, computed once and only when asked for."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from tokenizers_vq.judgement import Discriminator, Judgement, judge

T = TypeVar("T")


class Record:
    """One micro-batch as the losses see it; lazy and cached.

    Losses meet the tokenizer only at `output`, a detached leaf: their gradient is taken there, once.
    """

    def __init__(
        self,
        images: Tensor,
        output: Tensor,
        render: Callable[[Tensor], Tensor],
        *,
        to_pixels: Callable[[Tensor], Tensor] = lambda images: images,
        labels: Tensor | None = None,
        step: int = 0,
        features: Any = None,
        quantized: Any = None,
        discriminator: Discriminator | None = None,
    ) -> None:
        self.images = images
        """`(B, C, H, W)` in [-1, 1]"""
        self.output = output.detach().requires_grad_()
        """the decoder's raw output, a leaf"""
        self.labels = labels
        """`(B,)` int64, where the data has them"""
        self.step = step
        """optimizer step, 0 = first"""
        self.features = features
        """`(B, D, *grid)` before the quantizer"""
        self.quantized = quantized
        self.discriminator = discriminator
        """the eager one, not its wrapper"""
        self._render, self._to_pixels = render, to_pixels
        self._shared: dict[Hashable, Any] = {}

    @cached_property
    def reconstructions(self) -> Tensor:
        """`(B, C, H, W)`, in the range of the images but not clamped; differentiable down to `output`."""
        return self._render(self.output)

    @cached_property
    def pixels(self) -> Tensor:
        """The images in the range that the networks see."""
        return self._to_pixels(self.images)

    @cached_property
    def fake(self) -> Judgement:
        """Judgement of the reconstructions; the discriminator itself stays untouched."""
        return judge(self._judging(), self, self.reconstructions, frozen=True)

    @cached_property
    def real(self) -> Judgement:
        """Judgement of the images, without gradient."""
        with torch.no_grad():
            return judge(self._judging(), self, self.images, frozen=True)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """`make()`, called for the first asker of `key` only: work that several terms share."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def _judging(self) -> Discriminator:
        if self.discriminator is None:
            raise ValueError(
                "a loss asked for a judgement, but there is no discriminator: give the recipe an `adversary`"
            )
        return self.discriminator
