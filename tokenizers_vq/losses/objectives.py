"""Adversarial objectives on logits, and the adaptive weight that balances one against the reconstruction."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_vq.config import Config
from tokenizers_vq.discriminators.base import Judgement
from tokenizers_vq.losses.record import Record


class Objective(Config):
    """What the generator and the discriminator minimise; float32 scalars, averaged over the scales of the logits."""

    @property
    @abstractmethod
    def chance(self) -> float:
        """The discriminator's least loss where images and reconstructions cannot be told apart."""

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


class NonSaturating(Objective):
    """The non-saturating logistic loss (Goodfellow et al., arXiv 1406.2661), as StyleGAN2 has it."""

    kind: Literal["non_saturating"] = "non_saturating"

    @property
    def chance(self) -> float:
        """2 ln 2, at logits of 0."""
        return 2 * math.log(2)

    def generator(self, record: Record) -> Tensor:
        """`mean softplus(-f)`."""
        return _average(record.fake.logits, lambda f: F.softplus(-f))

    def discriminator(self, real: Judgement, fake: Judgement) -> Tensor:
        """`mean softplus(-r) + mean softplus(f)`."""
        return _average(real.logits, lambda r: F.softplus(-r)) + _average(fake.logits, lambda f: F.softplus(f))


def _average(logits: list[Tensor], loss: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.stack([loss(scale.float()).mean() for scale in logits]).mean()


def adaptive_weight(g_rec: Tensor, g_adv: Tensor, *, eps: float = 1e-4, max: float = 1e4) -> Tensor:
    """`clamp(|g_rec| / (|g_adv| + eps), 0, max)`, a scalar without gradient (Esser et al., arXiv 2012.09841, eq. 7).

    `g_rec`, `g_adv`: gradients of the reconstruction and the adversarial loss at the decoder's last weight, averaged
    over processes. A recipe's own weight multiplies after the clamp. At perfect reconstruction it is 0.
    """
    norms = [torch.linalg.vector_norm(gradient.detach().float()) for gradient in (g_rec, g_adv)]
    return (norms[0] / (norms[1] + eps)).clamp(0, max)
