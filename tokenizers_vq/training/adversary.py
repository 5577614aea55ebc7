"""The adversary of a run: the discriminator, its losses, and the gradient that the tokenizer gets from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tokenizers_vq import distributed
from tokenizers_vq.batch import Batch
from tokenizers_vq.config import ConfigError, schedule_value
from tokenizers_vq.discriminators.base import Discriminator, Judgement
from tokenizers_vq.losses.objectives import adaptive_weight
from tokenizers_vq.losses.record import Record
from tokenizers_vq.losses.regularisers import Regulariser
from tokenizers_vq.tokenizer import Tokenizer
from tokenizers_vq.training import gradients
from tokenizers_vq.training.gradients import Gradients
from tokenizers_vq.training.recipe import AdversaryConfig, OptimizerConfig
from tokenizers_vq.training.start import DiscriminatorStart


class GeneratorLoss(NamedTuple):
    """What the tokenizer is told by the discriminator."""

    loss: Tensor
    """scalar, unweighted, without gradient"""
    at_leaves: Gradients
    """its gradients at the record's leaves, unweighted"""
    weight: Tensor
    """the recipe's, times the adaptive one"""
    figures: dict[str, Tensor]
    """for the log"""


@contextmanager
def _placed() -> Iterator[None]:
    """What a discriminator refuses gets the recipe's field in front, where it names none."""
    try:
        yield
    except ValueError as error:
        if str(error).startswith("adversary."):
            raise
        raise ConfigError(("adversary", "discriminator"), str(error)) from None


class Adversary:
    """Built by a recipe for a tokenizer. Raises `ValueError` where the discriminator cannot judge its images."""

    def __init__(self, config: AdversaryConfig, optimizer: OptimizerConfig, tokenizer: Tokenizer) -> None:
        self.config, self.optimizer = config, config.optimizer or optimizer
        with _placed():
            self.discriminator: Discriminator = config.discriminator.build(
                channels=tokenizer.config.channels, image_size=tokenizer.config.size
            )
        self.discriminator.check_tokenizer(tokenizer)
        self.regularisers: list[Regulariser] = [
            regulariser.build(self.discriminator, config.objective) for regulariser in config.regularisers
        ]
        assert not isinstance(config.start, float) and not isinstance(config.warmup, float)  # the recipe's are steps
        self.start = DiscriminatorStart(config.start, config.warmup, config.window, config.threshold)
        self.last: Tensor = tokenizer.decoder.head.weight  # type: ignore[assignment]

    def check(self, batch: Batch) -> None:
        """Raises `ValueError`, one line, for what discriminator or regularisers cannot take."""
        with _placed():
            self.discriminator.check(batch)
        for regulariser in self.regularisers:
            regulariser.check(batch)

    def generator(
        self, record: Record, output: Tensor, reconstruction: Gradients, accelerator: Accelerator
    ) -> GeneratorLoss:
        """The tokenizer's adversarial loss; `output` and `reconstruction`: its decoder's, and the terms' gradients."""
        with accelerator.autocast():
            loss = self.config.objective.generator(record)
        at_leaves = gradients.at(loss, record.leaves, last=True)
        # Filled there: a number that is copied to an accelerator is waited for.
        weight = torch.full((), schedule_value(self.config.weight, record.step), device=output.device)
        figures: dict[str, Tensor] = {}
        if self.config.adaptive:
            balance, figures = self._balance(output, reconstruction[0], at_leaves[0])
            weight = weight * balance
        if at_leaves[0] is not None:
            figures["gradient/generator"] = torch.linalg.vector_norm((weight * at_leaves[0]).float())
        return GeneratorLoss(loss.detach(), at_leaves, weight, figures)

    def _balance(self, output: Tensor, g_rec: Tensor | None, g_adv: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The adaptive weight, and the two norms that it is read from."""
        sides = [torch.zeros_like(output) if side is None else side for side in (g_rec, g_adv)]
        pulled = [torch.autograd.grad(output, self.last, side, retain_graph=True)[0].float() for side in sides]
        rec, adv = distributed.mean(torch.stack(pulled))
        balance = adaptive_weight(rec, adv, max=self.config.max_adaptive)
        return balance, {
            "adversary/adaptive": balance,
            "gradient/last_reconstruction": torch.linalg.vector_norm(rec),
            "gradient/last_adversary": torch.linalg.vector_norm(adv),
        }

    def own_loss(self, wrapped: nn.Module, record: Record, logged: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss on fresh judgements through its wrapper, and figures.

        `logged`: whether somebody reads those of the balance between the two sides.
        """
        fakes = record.reconstructions.detach()
        real: Judgement = wrapped(*self.discriminator.inputs(record, record.images))
        fake: Judgement = wrapped(*self.discriminator.inputs(record, fakes))
        loss = self.config.objective.discriminator(real, fake)
        figures = {"discriminator": loss.detach()}
        for judgement, which in ((real, "real"), (fake, "fake")):
            for name, own in judgement.losses.items():
                loss = loss + own
                figures[f"adversary/{name}_{which}"] = own.detach()
        for regulariser in self.regularisers:
            weight = schedule_value(regulariser.weight, record.step)
            if weight and record.step % regulariser.every == 0:
                value = regulariser(record, self.discriminator, real, fake)
                if value.requires_grad:
                    loss = loss + weight * regulariser.every * value
                figures[f"adversary/{regulariser.name}"] = value.detach()
        return loss, {**figures, **(self.balance(real, fake) if logged else {})}

    @torch.no_grad()
    def balance(self, real: Judgement, fake: Judgement) -> dict[str, Tensor]:
        """How the discriminator stands: its mean logits, their gap, how often it is right."""
        means = [torch.stack([part.float().mean() for part in side.logits]).mean() for side in (real, fake)]
        accuracy = self.config.objective.accuracy(real, fake)
        return {
            "adversary/logits_real": means[0],
            "adversary/logits_fake": means[1],
            "adversary/gap": means[0] - means[1],  # of a critic, its estimate of Wasserstein's distance
            "adversary/accuracy_real": accuracy.real,
            "adversary/accuracy_fake": accuracy.fake,
        }

    def state_figures(self) -> dict[str, Tensor]:
        """What the discriminator's own state says: ADA's probability, a bottleneck's multiplier."""
        return {f"adversary/{name}": value for name, value in self.discriminator.figures().items()}

    def after_step(self) -> None:
        """Called after the discriminator's optimizer step."""
        self.discriminator.after_step()
        for regulariser in self.regularisers:
            regulariser.after_step(self.discriminator)
