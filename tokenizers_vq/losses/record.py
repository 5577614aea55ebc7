"""`Record`: everything that the losses may ask of one micro-batch, computed once and only when asked for."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from tokenizers_vq.batch import Batch
from tokenizers_vq.codes import Quantized
from tokenizers_vq.discriminators.base import Discriminator, Judgement, judge
from tokenizers_vq.tokenizer import Tokenizer

T = TypeVar("T")


class Record:
    """One micro-batch as the losses see it; lazy and cached.

    Losses meet the tokenizer only at two leaves, `output` and `features`: tensors cut from its graph, at which their
    gradients are taken. Outside a tokenizer a record is made of images and an output alone.
    """

    def __init__(
        self,
        batch: Batch | Tensor,
        output: Tensor,
        *,
        features: Tensor | tuple[Tensor, ...] | None = None,
        quantized: Quantized | None = None,
        tokenizer: Tokenizer | None = None,
        discriminator: Discriminator | None = None,
        step: int = 0,
    ) -> None:
        self.batch = batch if isinstance(batch, Batch) else Batch(batch)
        """images, keys, labels, captions"""
        self.output: Tensor = _cut(output).requires_grad_()
        """a leaf: the decoder's raw output"""
        self.features: Any = _each(features, lambda level: _cut(level).requires_grad_())
        """a leaf: `(B, D, *grid)` before the quantizer, a tuple of several grids (leaves all); None without"""
        self.quantized = None if quantized is None else Quantized(*_each(tuple(quantized), _cut))
        """what the quantizer gave, without gradient"""
        self.tokenizer = tokenizer
        """the eager one, not its wrapper"""
        self.discriminator = discriminator
        """the eager one, not its wrapper"""
        self.step = step
        """optimizer step, 0 = first"""
        self._shared: dict[Hashable, Any] = {}

    @property
    def images(self) -> Tensor:
        """`(B, C, H, W)` in [-1, 1]."""
        return self.batch.images

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """Where losses are differentiated: `output`, then `features` (of several grids, each) where there are some."""
        return (self.output, *levels(self.features))

    @cached_property
    def reconstructions(self) -> Tensor:
        """`(B, C, H, W)`, in the range of the images but not clamped; differentiable down to `output`."""
        return self.output if self.tokenizer is None else self.tokenizer.render(self.output)

    @cached_property
    def pixels(self) -> Tensor:
        """The images in the range that the networks see."""
        return self.images if self.tokenizer is None else self.tokenizer.to_pixels(self.images)

    @cached_property
    def fake(self) -> Judgement:
        """Judgement of the reconstructions; the discriminator itself stays untouched."""
        return judge(self._judging(), self, self.reconstructions, frozen=True)

    @cached_property
    def real(self) -> Judgement:
        """Judgement of the images, without gradient."""
        with torch.no_grad():
            return judge(self._judging(), self, self.images, frozen=True)

    def taken(self, rows: Tensor) -> Record:
        """The record of the images with these indices `(N,)`, without the losses of the quantizer."""
        batch, quantized, places = self.batch, self.quantized, rows.tolist()

        def take(value: Tensor) -> Tensor:
            return value.detach()[rows]

        captions = batch.captions
        return Record(
            Batch(
                take(batch.images),
                [batch.keys[i] for i in places] if batch.keys else (),
                None if batch.labels is None else take(batch.labels),
                None if captions is None else [captions[i] for i in places],
            ),
            take(self.output),
            features=_each(self.features, take),
            quantized=None
            if quantized is None
            else Quantized(_each(quantized.features, take), _each(quantized.codes, take), {}, {}),
            tokenizer=self.tokenizer,
            discriminator=self.discriminator,
            step=self.step,
        )

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """`make()`, called for the first asker of `key` only: work that several terms share."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def _judging(self) -> Discriminator:
        if self.discriminator is None:
            raise ValueError(
                "a loss asked for a judgement, but there is no discriminator: add an `adversary` to the recipe"
            )
        return self.discriminator


def levels(features: Any) -> tuple[Tensor, ...]:
    """Features as a tuple, one tensor a grid; empty where there are none."""
    if features is None:
        return ()
    return features if isinstance(features, tuple) else (features,)


def _cut(tensor: Tensor) -> Tensor:
    return tensor.detach()


def _each(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """`value` with `function` of every tensor in its tuples and dicts."""
    if isinstance(value, tuple):
        return tuple(_each(part, function) for part in value)
    if isinstance(value, dict):
        return {name: _each(part, function) for name, part in value.items()}
    return None if value is None else function(value)
