"""GigaGAN's discriminator (Kang et al., arXiv 2303.05511, section 3.3): a pyramid in, logits at every later scale."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tokenizers_vq.config import Config
from tokenizers_vq.discriminators.base import Embedded, Split
from tokenizers_vq.discriminators.layers import Blur, DownBlock, Width, bounded

SLOPE = 0.2


class MultiscaleConfig(Config):
    """One trunk of blocks that halve; the image enters at each size of a pyramid, and is judged after each later block.

    Published with the non-saturating objective and R1, without norms. The text and the attention of the paper are left
    out.
    """

    kind: Literal["multiscale"] = "multiscale"
    width: Width = 64
    """channels of the first block; doubled by each one, to 8 times at most"""
    scales: Annotated[int, Field(ge=1, le=10)] = 4
    """sizes of the pyramid, the image's own one included, and blocks"""
    norm: Literal["none", "spectral"] = "none"
    """spectral norm of every convolution (arXiv 1802.05957), or none"""

    def build(self, channels: int = 3, image_size: tuple[int, int] = (256, 256)) -> Multiscale:
        return Multiscale(channels, image_size, **self.arguments())


class Multiscale(Split):
    """Images `(B, C, H, W)` -> logits `(B, 1, H / 2^j, W / 2^j)` for each pair of scales i < j, and features.

    Scale i is the image halved i times. The pairs stand in the order of j, then of i: (0, 1), (0, 2), (1, 2), ... The
    features are those of the image's own size. Raises `ValueError` for sides that `2^scales` does not divide, or of
    which it leaves less than 2.
    """

    def __init__(self, channels: int = 3, image_size: tuple[int, int] = (256, 256), **fields: Any) -> None:
        config = MultiscaleConfig(**fields)
        super().__init__(config, channels, image_size)
        stride = 2**config.scales
        if any(side % stride or side < 2 * stride for side in image_size):
            height, width = image_size
            raise ValueError(
                f"multiscale with {config.scales} scales needs sides that are multiples of {stride} from {2 * stride}, "
                f"got {height}x{width}: lower its `scales` or change `image_size`"
            )
        spectral = config.norm == "spectral"
        widths = [config.width * min(2**i, 8) for i in range(config.scales)]
        befores = [widths[0], *widths[:-1]]
        self.halve = Blur(edge=True)
        self.stems = nn.ModuleList(bounded(nn.Conv2d(channels, w, 3, padding=1), spectral) for w in befores)
        self.blocks = nn.ModuleList(
            DownBlock(before, w, slope=SLOPE, spectral=spectral) for before, w in zip(befores, widths, strict=True)
        )
        self.heads = nn.ModuleList(bounded(nn.Conv2d(w, 1, 1), spectral) for w in widths)
        self.feature_width = widths[-1]
        self.embedding_widths = [w for j, w in enumerate(widths) for _ in range(j + 1)]

    def embed(self, images: Tensor) -> Embedded:
        """Images `(B, C, H, W)` in [-1, 1]."""
        batch = len(images)
        embeddings, features, trunk = [], [], images[:0]
        for i, (stem, block) in enumerate(zip(self.stems, self.blocks, strict=True)):
            entering = stem(images)
            # What entered before and what enters here go through the block together, one after the other.
            trunk = block(entering if i == 0 else torch.cat([trunk, entering]))
            embeddings += F.leaky_relu(trunk, SLOPE).split(batch)
            features.append(trunk[:batch])
            images = self.halve(images)
        return Embedded(embeddings, features)

    def decide(self, embeddings: list[Tensor]) -> list[Tensor]:
        logits: list[Tensor] = []
        for j, head in enumerate(self.heads):
            # Those of one scale together, as the block made them.
            judged = embeddings[len(logits) : len(logits) + j + 1]
            logits += head(torch.cat(judged)).split(len(judged[0]))
        return logits
