"""Adversarial objectives on logits, and the adaptive weight that balances one against the reconstruction."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from tokenizers_vq import distributed
from tokenizers_vq.config import Config, ConfigError
from tokenizers_vq.discriminators.base import Judgement
from tokenizers_vq.losses.record import Record


class Accuracy(NamedTuple):
    """Shares of the logits, in [0, 1], at which the discriminator is right; averaged over scales."""

    real: Tensor
    """of the images"""
    fake: Tensor
    """of the reconstructions"""


class Objective(Config):
    """What the generator and the discriminator minimise; float32 scalars, averaged over the scales of the logits."""

    @property
    @abstractmethod
    def chance(self) -> float:
        """The discriminator's least loss where images and reconstructions cannot be told apart."""

    @property
    def best(self) -> float:
        """The loss that a discriminator which knows all apart comes near to: 0, or -inf where chance is 0."""
        return 0.0 if self.chance > 0 else -math.inf

    @property
    def threshold(self) -> float:
        """The logit that, at chance, is said of everything: what lies above is called real."""
        return 0.0

    def accuracy(self, real: Judgement, fake: Judgement) -> Accuracy:
        """How often the discriminator is right, by `threshold`; its answer to all alike is right about one side."""
        return Accuracy(
            _average(real.logits, lambda r: (r > self.threshold).float()),
            _average(fake.logits, lambda f: (f <= self.threshold).float()),
        )

    @model_validator(mode="before")
    @classmethod
    def _refuse_smoothing(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "real_target" in data and "real_target" not in cls.model_fields:
            smooth = ", ".join(sorted(_kinds(Sigmoid)))  # type: ignore[type-abstract]
            raise ConfigError(
                ("real_target",),
                f"label smoothing needs an objective with a sigmoid, and {cls.model_fields['kind'].default} has none: "
                f"take it out, or choose one of {smooth}",
            )
        return data

    @abstractmethod
    def generator(self, record: Record) -> Tensor:
        """Of `record.fake`; `record.real` is judged only where it is asked for, and has no gradient."""

    @abstractmethod
    def discriminator(self, real: Judgement, fake: Judgement) -> Tensor:
        """Of the judgements of images and reconstructions, with gradient to the discriminator."""


class Hinge(Objective):
    """Hinge loss (Lim and Ye, arXiv 1705.02894), the discriminator's halved as in VQGAN (Esser et al.)."""

    kind: Literal["hinge"] = "hinge"
    generator_loss: Literal["hinge", "non_saturating"] = "hinge"
    """the generator's side; SEED-Voken sets the non-saturating one against the discriminator's hinge"""

    @property
    def chance(self) -> float:
        """1, at logits of 0."""
        return 1.0

    def generator(self, record: Record) -> Tensor:
        """`-mean f`, or `mean softplus(-f)`."""
        if self.generator_loss == "non_saturating":
            return NonSaturating().generator(record)
        return _average(record.fake.logits, lambda f: -f)

    def discriminator(self, real: Judgement, fake: Judgement) -> Tensor:
        """`(mean max(0, 1 - r) + mean max(0, 1 + f)) / 2`."""
        return 0.5 * (_average(real.logits, lambda r: F.relu(1 - r)) + _average(fake.logits, lambda f: F.relu(1 + f)))


class Sigmoid(Objective):
    """What the objectives have in common whose logits mean a probability, `sigmoid(logit)` = real."""

    real_target: Annotated[float, Field(gt=0.5, le=1)] = 1.0
    """one-sided label smoothing (Salimans et al., arXiv 1606.03498): what the discriminator shall say of images; 0.9"""

    @property
    def chance(self) -> float:
        """`-t ln(t / 2) - (2 - t) ln(1 - t / 2)` at `sigmoid = t / 2`, t being `real_target`; 2 ln 2 without."""
        return 2 * _entropy(self.real_target / 2)

    @property
    def best(self) -> float:
        """The entropy of `real_target`."""
        return _entropy(self.real_target)

    @property
    def threshold(self) -> float:
        """`ln(t / (2 - t))`, t being `real_target`: the logit of t / 2; 0 without."""
        return math.log(self.real_target / (2 - self.real_target))

    def discriminator(self, real: Judgement, fake: Judgement) -> Tensor:
        """`mean [t softplus(-r) + (1 - t) softplus(r)] + mean softplus(f)`."""
        return _average(real.logits, self._is_real) + _average(fake.logits, F.softplus)

    def _is_real(self, logits: Tensor) -> Tensor:
        """Cross-entropy of `real_target`."""
        return F.softplus(-logits) + (1 - self.real_target) * logits


class NonSaturating(Sigmoid):
    """The non-saturating logistic loss (Goodfellow et al., arXiv 1406.2661), as StyleGAN2 has it."""

    kind: Literal["non_saturating"] = "non_saturating"

    def generator(self, record: Record) -> Tensor:
        """`mean softplus(-f)`."""
        return _average(record.fake.logits, lambda f: F.softplus(-f))


class Minimax(Sigmoid):
    """The game of the first GAN (Goodfellow et al., arXiv 1406.2661, eq. 1): the generator's slope dies as D wins."""

    kind: Literal["minimax"] = "minimax"

    def generator(self, record: Record) -> Tensor:
        """`mean ln(1 - sigmoid(f))`."""
        return _average(record.fake.logits, lambda f: -F.softplus(f))


class RelativisticAverage(Sigmoid):
    """How much more real than the other side's average (Jolicoeur-Martineau, arXiv 1807.00734, RaSGAN).

    Averages are over the batches of all processes, scale by scale.
    """

    kind: Literal["relativistic_average"] = "relativistic_average"

    @property
    def chance(self) -> float:
        """2 ln 2, at logits of one value: a difference to the average has no side to be smoothed to."""
        return 2 * math.log(2)

    @property
    def best(self) -> float:
        """`-(1 + t) ln((1 + t) / 2) - (1 - t) ln((1 - t) / 2)`, t being `real_target`; 0 without."""
        return 2 * _entropy((1 + self.real_target) / 2)

    def accuracy(self, real: Judgement, fake: Judgement) -> Accuracy:
        """How often an image lies above the mean reconstruction, and a reconstruction not above the mean image."""
        return _accuracy(real, fake, lambda r, f: (_mean(f), _mean(r)))

    def generator(self, record: Record) -> Tensor:
        """`mean softplus(mean r - f) + mean softplus(r - mean f)`: it also lowers the average that images are above."""
        return _average_of_two(
            record.real.logits,
            record.fake.logits,
            lambda r, f: F.softplus(_mean(r) - f).mean() + F.softplus(r - _mean(f)).mean(),
        )

    def discriminator(self, real: Judgement, fake: Judgement) -> Tensor:
        """`mean [t softplus(mean f - r) + (1 - t) softplus(r - mean f)] + mean softplus(f - mean r)`."""
        return _average_of_two(
            real.logits,
            fake.logits,
            lambda r, f: self._is_real(r - _mean(f)).mean() + F.softplus(f - _mean(r)).mean(),
        )


class LeastSquares(Objective):
    """Least squares (Mao et al., arXiv 1611.04076, eq. 9): no side saturates."""

    kind: Literal["least_squares"] = "least_squares"
    targets: tuple[float, float, float] = (0.0, 1.0, 1.0)
    """a, b, c of the paper: what the discriminator shall say of reconstructions, of images, and the generator wants it
    to say; the paper's other choice, -1, 1, 0, minimises Pearson's chi-squared distance"""

    @model_validator(mode="after")
    def _check(self) -> LeastSquares:
        fake, real, _ = self.targets
        if fake >= real:
            raise ConfigError(("targets",), f"images must lie above reconstructions, got {list(self.targets)}")
        return self

    @property
    def chance(self) -> float:
        """`(b - a)^2 / 4`, at logits of `(a + b) / 2`."""
        return (self.targets[1] - self.targets[0]) ** 2 / 4

    @property
    def threshold(self) -> float:
        """`(a + b) / 2`."""
        return (self.targets[0] + self.targets[1]) / 2

    def generator(self, record: Record) -> Tensor:
        """`mean (f - c)^2 / 2`."""
        return 0.5 * _average(record.fake.logits, lambda f: (f - self.targets[2]).square())

    def discriminator(self, real: Judgement, fake: Judgement) -> Tensor:
        """`mean (r - b)^2 / 2 + mean (f - a)^2 / 2`."""
        a, b, _ = self.targets
        images = _average(real.logits, lambda r: (r - b).square())
        return 0.5 * (images + _average(fake.logits, lambda f: (f - a).square()))


class Wasserstein(Objective):
    """Wasserstein's (Arjovsky et al., arXiv 1701.07875): the discriminator's loss is minus the gap of the mean logits.

    The gap is a distance only while the discriminator's slope is bounded: give it the regulariser `gradient_penalty` or
    `weight_clipping`, or spectral norm.
    """

    kind: Literal["wasserstein"] = "wasserstein"

    @property
    def chance(self) -> float:
        """0, at logits of one value; there is no least loss beyond it."""
        return 0.0

    def accuracy(self, real: Judgement, fake: Judgement) -> Accuracy:
        """By the middle of the two means: logits have no zero here."""
        return _accuracy(real, fake, lambda r, f: ((_mean(r) + _mean(f)) / 2,) * 2)

    def generator(self, record: Record) -> Tensor:
        """`-mean f`."""
        return -_average(record.fake.logits, lambda f: f)

    def discriminator(self, real: Judgement, fake: Judgement) -> Tensor:
        """`mean f - mean r`."""
        return _average(fake.logits, lambda f: f) - _average(real.logits, lambda r: r)


def _accuracy(
    real: Judgement, fake: Judgement, thresholds: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> Accuracy:
    """Scale by scale: what lies above the first threshold of images, and not above the second of reconstructions."""
    found = []
    for scale in zip(real.logits, fake.logits, strict=True):
        r, f = (side.float() for side in scale)
        above, below = thresholds(r, f)
        found.append(torch.stack([(r > above).float().mean(), (f <= below).float().mean()]))
    return Accuracy(*torch.stack(found).mean(dim=0))


def _kinds(base: type[Objective]) -> Iterator[str]:
    """What recipes call the objectives of a sort."""
    for one in base.__subclasses__():
        yield from _kinds(one)
        if "kind" in one.model_fields:
            yield one.model_fields["kind"].default


def _entropy(share: float) -> float:
    """Of a coin, in nats."""
    return sum(-p * math.log(p) for p in (share, 1 - share) if p > 0)


def _mean(logits: Tensor) -> Tensor:
    return distributed.mean(logits.mean())


def _average_of_two(real: list[Tensor], fake: list[Tensor], loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    return torch.stack([loss(r.float(), f.float()) for r, f in zip(real, fake, strict=True)]).mean()


def _average(logits: list[Tensor], loss: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.stack([loss(scale.float()).mean() for scale in logits]).mean()


def adaptive_weight(g_rec: Tensor, g_adv: Tensor, *, eps: float = 1e-4, max: float = 1e4) -> Tensor:
    """`clamp(|g_rec| / (|g_adv| + eps), 0, max)`, a scalar without gradient (Esser et al., arXiv 2012.09841, eq. 7).

    `g_rec`, `g_adv`: gradients of the reconstruction and the adversarial loss at the decoder's last weight, averaged
    over processes. A recipe's own weight multiplies after the clamp. At perfect reconstruction it is 0.
    """
    norms = [torch.linalg.vector_norm(gradient.detach().float()) for gradient in (g_rec, g_adv)]
    return (norms[0] / (norms[1] + eps)).clamp(0, max)
