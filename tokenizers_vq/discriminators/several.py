"""Several discriminators at once, as vision-aided GANs have (Kumari et al., arXiv 2112.09130): each with its weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from tokenizers_vq.batch import Batch
from tokenizers_vq.config import Config, ConfigError
from tokenizers_vq.discriminators.base import Discriminator, Judgement, Mixing, inside

if TYPE_CHECKING:
    from tokenizers_vq.discriminators import DiscriminatorConfig


class SeveralConfig(Config):
    """An ensemble; the adversarial gradient is the weighted mean of what each discriminator alone would give."""

    kind: Literal["several"] = "several"
    discriminators: Annotated[tuple[DiscriminatorConfig, ...], Field(min_length=1)]
    """the members, wrappers too"""
    weights: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """one each; only their ratios count; null = equal"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.weights is not None and len(self.weights) != len(self.discriminators):
            raise ConfigError(
                ("weights",), f"{len(self.weights)} weights for {len(self.discriminators)} discriminators: one each"
            )
        return self

    def build(self, channels: int = 3, image_size: tuple[int, int] = (256, 256)) -> Several:
        return Several(channels, image_size, **self.arguments())


class Several(Discriminator):
    """Images `(B, C, H, W)` -> the logits, features and losses of all members, one after the other."""

    members: Any

    def __init__(self, channels: int = 3, image_size: tuple[int, int] = (256, 256), **fields: Any) -> None:
        config = SeveralConfig(**fields)
        super().__init__(config, channels, image_size)
        self.members = nn.ModuleList()
        for i, member in enumerate(config.discriminators):
            with inside("discriminators", str(i)):
                self.members.append(member.build(channels, image_size))
        weights = config.weights or (1.0,) * len(self.members)
        self.shares = [weight / sum(weights) for weight in weights]
        self.feature_width = self.members[-1].feature_width

    def check(self, batch: Batch) -> None:
        for i, member in enumerate(self.members):
            with inside("discriminators", str(i)):
                member.check(batch)

    def check_tokenizer(self, tokenizer: Any) -> None:
        for i, member in enumerate(self.members):
            with inside("discriminators", str(i)):
                member.check_tokenizer(tokenizer)

    @property
    def conditional(self) -> bool:
        """Whether a member is."""
        return any(member.conditional for member in self.members)

    @property
    def mixing(self) -> Mixing | None:
        """What mixes in the first member in which something does."""
        found = [(i, member.mixing) for i, member in enumerate(self.members) if member.mixing is not None]
        return found[0][1]._replace(path=("discriminators", str(found[0][0]), *found[0][1].path)) if found else None

    def after_step(self) -> None:
        for member in self.members:
            member.after_step()

    def figures(self) -> dict[str, Tensor]:
        """Those of all members, numbered."""
        return {f"{name}_{i}": x for i, member in enumerate(self.members) for name, x in member.figures().items()}

    def inputs(self, record: Any, images: Tensor) -> tuple[Any, ...]:
        """Images, then a tuple of what each member asks for beside them."""
        others = []
        for i, member in enumerate(self.members):
            with inside("discriminators", str(i)):
                others.append(member.inputs(record, images)[1:])
        return (images, *others)

    def forward(self, images: Tensor, *others: tuple[Any, ...]) -> Judgement:
        """Images `(B, C, H, W)` in [-1, 1]; `others` may be left out where no member asks for anything."""
        asked = others or ((),) * len(self.members)
        judgements = [member(images, *own) for member, own in zip(self.members, asked, strict=True)]
        count = sum(len(judgement.logits) for judgement in judgements)
        logits: list[Tensor] = []
        for judgement, share in zip(judgements, self.shares, strict=True):
            # Objectives average over all logits, of which members may have unlike numbers.
            logits += [_pulling(scale, share * count / len(judgement.logits)) for scale in judgement.logits]
        features = [feature for judgement in judgements for feature in judgement.features]
        losses = {f"{name}_{i}": x for i, judgement in enumerate(judgements) for name, x in judgement.losses.items()}
        return Judgement(logits, features, losses)


def _pulling(logits: Tensor, factor: float) -> Tensor:
    """The same logits, with `factor` times their gradient."""
    fixed = logits.detach()
    return fixed + factor * (logits - fixed)
