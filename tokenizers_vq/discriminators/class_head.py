"""A class head on any discriminator (AC-GAN, Odena et al., arXiv 1610.09585): it also tells the class of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tokenizers_vq.batch import Batch, check_labels
from tokenizers_vq.config import Config
from tokenizers_vq.discriminators.base import Judgement, Wrapper

if TYPE_CHECKING:
    from tokenizers_vq.discriminators import DiscriminatorConfig


class ClassHeadConfig(Config):
    """A linear classifier on the inner discriminator's last features, trained with it on images and reconstructions."""

    kind: Literal["class_head"] = "class_head"
    discriminator: DiscriminatorConfig
    """the one that tells images from reconstructions"""
    num_classes: Annotated[int, Field(ge=2)]
    """labels are 0 to num_classes - 1; each image needs one"""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """of the classifier's cross-entropy in the discriminator's loss"""

    def build(self, channels: int = 3, image_size: tuple[int, int] = (256, 256)) -> ClassHead:
        return ClassHead(channels, image_size, **self.arguments())


class ClassHead(Wrapper):
    """The inner discriminator's judgement, and the loss `class`: a cross-entropy of its features, pooled."""

    def __init__(self, channels: int = 3, image_size: tuple[int, int] = (256, 256), **fields: Any) -> None:
        super().__init__(ClassHeadConfig(**fields), channels, image_size)
        self.head = nn.Linear(self.feature_width, self.config.num_classes)

    def check(self, batch: Batch) -> None:
        super().check(batch)
        self._check_labels(batch)

    @property
    def conditional(self) -> bool:
        """The inner one's alone: labels do not reach the logits."""
        return self.inner.conditional

    def _check_labels(self, batch: Batch) -> Tensor:
        where = "adversary.discriminator"
        return check_labels(batch.labels, self.config.num_classes, f"{where}: class_head", f"{where}.num_classes")

    def inputs(self, record: Any, images: Tensor) -> tuple[Any, ...]:
        """Images, labels, then what the inner discriminator asks for."""
        # Data may be labelled here and not there: the first batch says nothing of the others.
        labels = record.once(("class_head", id(self)), lambda: self._check_labels(record.batch))
        images, *others = self.inner_inputs(record, images)
        return (images, labels, *others)

    def forward(self, images: Tensor, labels: Tensor, *others: Any) -> Judgement:
        """Images `(B, C, H, W)`, labels `(B,)`."""
        judgement: Judgement = self.inner(images, *others)
        classes = self.head(judgement.features[-1].flatten(2).mean(dim=2))
        loss = self.config.weight * F.cross_entropy(classes.float(), labels)
        return judgement._replace(losses={**judgement.losses, "class": loss})
