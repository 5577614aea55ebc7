"""Projection on any discriminator (Miyato and Koyama, arXiv 1802.05637): is it real, and of this class?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from tokenizers_vq.batch import Batch, check_labels
from tokenizers_vq.config import Config
from tokenizers_vq.discriminators.base import Judgement, Wrapper

if TYPE_CHECKING:
    from tokenizers_vq.discriminators import DiscriminatorConfig


class ProjectionConfig(Config):
    """A vector a class, whose product with the inner discriminator's pooled features joins all its logits."""

    kind: Literal["projection"] = "projection"
    discriminator: DiscriminatorConfig
    """the one that tells images from reconstructions"""
    num_classes: Annotated[int, Field(ge=2)]
    """labels are 0 to num_classes - 1; each image needs one"""

    def build(self, channels: int = 3, image_size: tuple[int, int] = (256, 256)) -> Projection:
        return Projection(channels, image_size, **self.arguments())


class Projection(Wrapper):
    """`logits + <vector of the class, mean of the last features over positions>`."""

    def __init__(self, channels: int = 3, image_size: tuple[int, int] = (256, 256), **fields: Any) -> None:
        super().__init__(ProjectionConfig(**fields), channels, image_size)
        self.classes = nn.Embedding(self.config.num_classes, self.feature_width)
        # As long as a row of a linear layer: the inner one's logits are not drowned.
        nn.init.normal_(self.classes.weight, std=self.feature_width**-0.5)

    def check(self, batch: Batch) -> None:
        super().check(batch)
        self._check_labels(batch)

    def _check_labels(self, batch: Batch) -> Tensor:
        where = "adversary.discriminator"
        return check_labels(batch.labels, self.config.num_classes, f"{where}: projection", f"{where}.num_classes")

    def inputs(self, record: Any, images: Tensor) -> tuple[Any, ...]:
        """Images, labels, then what the inner discriminator asks for."""
        # Data may be labelled here and not there: the first batch says nothing of the others.
        labels = record.once(("projection", id(self)), lambda: self._check_labels(record.batch))
        images, *others = self.inner_inputs(record, images)
        return (images, labels, *others)

    def forward(self, images: Tensor, labels: Tensor, *others: Any) -> Judgement:
        """Images `(B, C, H, W)`, labels `(B,)`."""
        return projected(self.inner(images, *others), self.classes(labels))


def projected(judgement: Judgement, vectors: Tensor) -> Judgement:
    """To all logits of an image comes the product of its vector, `(B, D)`, with its last features, pooled."""
    pooled = judgement.features[-1].flatten(2).mean(dim=2)
    return raised(judgement, (pooled * vectors).sum(dim=1))


def raised(judgement: Judgement, amount: Tensor) -> Judgement:
    """`amount` `(B,)` more at all logits of an image."""
    logits = [scale + amount.view(-1, *(1 for _ in scale.shape[1:])) for scale in judgement.logits]
    return judgement._replace(logits=logits)
