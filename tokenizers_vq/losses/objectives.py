"""Adversarial objectives on logits, and the adaptive weight that balances one against the reconstruction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_vq.config import Config
from tokenizers_vq.judgement import Judgement


class Objective(Protocol):
    """What the generator and the discriminator minimise; float32 scalars, averaged over the scales of the logits."""

    def generator(self, fake: Judgement, real: Judgement | None = None) -> Tensor: ...

    def discriminator(self, real: Judgement, fake: Judgement) -> Tensor: ...


class Hinge(Config):
    """Hinge loss (Lim and Ye, arXiv 1705.02894), the discriminator's halved as in VQGAN (Esser et al.)."""

    kind: Literal["hinge"] = "hinge"
    generator_loss: Literal["hinge", "non_saturating"] = "hinge"
    """the generator's side; SEED-Voken sets the non-saturating one against the discriminator's hinge"""

    def generator(self, fake: Judgement, real: Judgement | None = None) -> Tensor:
        """`-mean f`, or `mean softplus(-f)`."""
        if self.generator_loss == "non_saturating":
            return NonSaturating().generator(fake)
        return _average(fake.logits, lambda f: -f)

    def discriminator(self, real: Judgement, fake: Judgement) -> Tensor:
        """`(mean max(0, 1 - r) + mean max(0, 1 + f)) / 2`."""
        return 0.5 * (_average(real.logits, lambda r: F.relu(1 - r)) + _average(fake.logits, lambda f: F.relu(1 + f)))


class NonSaturating(Config):
    """The non-saturating logistic loss (Goodfellow et al., arXiv 1406.2661), as StyleGAN2 has it."""

    kind: Literal["non_saturating"] = "non_saturating"

    def generator(self, fake: Judgement, real: Judgement | None = None) -> Tensor:
        """`mean softplus(-f)`."""
        return _average(fake.logits, lambda f: F.softplus(-f))

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
