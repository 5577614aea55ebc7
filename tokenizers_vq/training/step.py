"""The tokenizer's training step: every loss meets the tokenizer at its output, once.

The gradients of the reconstruction terms and of the adversary are taken at the decoder's output; the adaptive weight
(arXiv 2012.09841, eq. 7) is read from both, and one backward carries their sum through decoder and encoder.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tokenizers_vq import distributed
from tokenizers_vq.config import nearest, schedule_value
from tokenizers_vq.judgement import Discriminator, Judgement
from tokenizers_vq.losses.objectives import adaptive_weight
from tokenizers_vq.losses.record import Record
from tokenizers_vq.losses.regularisers import Regulariser
from tokenizers_vq.losses.terms import Term
from tokenizers_vq.tokenizer import Tokenizer
from tokenizers_vq.training import modes
from tokenizers_vq.training.health import looks_at_usage, usage_warning
from tokenizers_vq.training.loop import check_finite
from tokenizers_vq.training.recipe import AdversaryConfig, OptimizerConfig, Recipe
from tokenizers_vq.training.start import DiscriminatorStart


class TokenizerTask:
    """A `loop.Task` that trains a tokenizer by a recipe."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer, examples: Tensor | None = None, card: Any = None) -> None:
        from timm.utils.model_ema import ModelEmaV3

        self.recipe, self.tokenizer, self.examples, self.card = recipe, tokenizer, examples, card
        self.terms: list[Term] = [config.build().to(tokenizer.device) for config in recipe.losses]
        self.modules: dict[str, nn.Module] = {"tokenizer": modes.freeze(tokenizer.train(), recipe.train)}
        self.optimizers: dict[str, Any] = {"tokenizer": recipe.optimizer.build(tokenizer)}
        _check_annealed(recipe, tokenizer)
        self.state: dict[str, nn.Module] = {}
        self.usage: Tensor | None = None  # the last step's
        self.ema: ModelEmaV3 | None = None
        if recipe.ema is not None:
            self.ema = ModelEmaV3(tokenizer, decay=recipe.ema.decay, use_warmup=recipe.ema.warmup, exclude_buffers=True)
            self.state["ema"] = self.ema
        self.adversary: _Adversary | None = None
        if recipe.adversary is not None:
            self.adversary = _Adversary(recipe.adversary, recipe.adversary.optimizer or recipe.optimizer, tokenizer)
            self.modules["discriminator"] = self.adversary.discriminator.train()
            self.optimizers["discriminator"] = self.adversary.config_optimizer.build(self.adversary.discriminator)
            self.state["start"] = self.adversary.start
            regularisers = nn.ModuleList(self.adversary.regularisers)
            if list(regularisers.buffers()):
                self.state["regularisers"] = regularisers
        if recipe.compile:
            compile_in_place(tokenizer)

    def step(self, batch: dict[str, Any], step: int, accelerator: Accelerator) -> dict[str, Tensor]:
        """One micro-batch: one backward through the tokenizer, one through the discriminator."""
        images = batch["images"]
        for name, schedule in self.recipe.anneal.items():
            self.tokenizer.get_buffer(name).fill_(schedule_value(schedule, step))
        prepared = list(self.modules.values())
        with accelerator.accumulate(*prepared):
            out = self.modules["tokenizer"](images, render=False)  # the record renders what a loss asks for
            record = Record(
                images,
                out.output,
                self.tokenizer.render,
                to_pixels=self.tokenizer.to_pixels,
                labels=batch["labels"],
                step=step,
                features=out.features,
                quantized=out.quantized,
                discriminator=self.adversary.discriminator if self.adversary else None,
            )
            facing = self.adversary is not None and self.adversary.start.faces_generator(step)
            losses, gradient, figures = self._reconstruction(record, step, accelerator)
            if facing:
                assert self.adversary is not None
                adversarial, more = self.adversary.generator(record, out.output, gradient, step, accelerator)
                gradient = gradient + adversarial
                losses["generator"] = more["generator"]
                figures |= more
            quantizer = self._quantizer_losses(out.quantized.losses, step)
            losses |= quantizer
            check_finite(step, losses | {"the gradient at the decoder's output": gradient})
            total = (out.output * gradient).sum() + sum(quantizer.values(), torch.zeros((), device=images.device))
            accelerator.backward(total)
            figures |= {name: loss.detach() for name, loss in losses.items()}
            figures |= {f"quantizer/{name}": value for name, value in out.quantized.stats.items()}
            self.usage = out.quantized.stats.get("usage")
            figures |= self._update("tokenizer", self.recipe.optimizer, step, accelerator)
            if self.adversary is not None and self.adversary.start.trains_discriminator(step):
                figures |= self._discriminator(record, step, accelerator)
        return figures

    def _reconstruction(
        self, record: Record, step: int, accelerator: Accelerator
    ) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
        losses: dict[str, Tensor] = {}
        figures: dict[str, Tensor] = {}
        total = torch.zeros((), device=record.images.device)
        gradient = torch.zeros_like(record.output)
        for term in self.terms:
            weight = schedule_value(term.weight, step)
            if weight:
                with accelerator.autocast():
                    loss = term(record)
                # One by one: as many backwards as their sum has, and each term's share of the gradient is seen. What
                # terms share is kept by the record, the rest of the graph goes with `loss`.
                (own,) = torch.autograd.grad(weight * loss, record.output, retain_graph=True)
                figures[f"gradient/{term.name}"] = torch.linalg.vector_norm(own.float())
                losses[term.name] = loss.detach()
                gradient, total = gradient + own, total + weight * losses[term.name]
        if not losses:
            raise ValueError(f"step {step}: every reconstruction loss has weight 0; give one of `losses` a weight")
        if self.adversary is not None:
            self.adversary.start.observe(total)
        return losses, gradient, figures | {"reconstruction": total}

    def _quantizer_losses(self, losses: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        unknown = self.recipe.quantizer_losses.keys() - losses.keys()
        if unknown:
            raise ValueError(
                f"quantizer_losses.{min(unknown)}: this quantizer has no such loss; it has {', '.join(sorted(losses))}"
            )
        factors = self.recipe.quantizer_losses
        return {name: loss * schedule_value(factors.get(name, 1.0), step) for name, loss in losses.items()}

    def _update(self, name: str, config: OptimizerConfig, step: int, accelerator: Accelerator) -> dict[str, Tensor]:
        """Clip and step one optimizer where the gradients are whole; figures of both."""
        lr = schedule_value(config.lr, step)
        figures = {f"lr/{name}": torch.tensor(lr)}
        optimizer = self.optimizers[name]
        if accelerator.sync_gradients:
            norm = torch.as_tensor(
                accelerator.clip_grad_norm_(self.modules[name].parameters(), config.clip or float("inf"))
            )
            check_finite(step, {f"the {name}'s gradient": norm})
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad()  # after: before a backward it would drop what earlier micro-batches gave
            figures[f"gradient/{name}"] = norm.detach()
        return figures

    def _discriminator(self, record: Record, step: int, accelerator: Accelerator) -> dict[str, Tensor]:
        assert self.adversary is not None
        loss, figures = self.adversary.own_loss(self.modules["discriminator"], record, step)
        check_finite(step, figures)
        accelerator.backward(loss)
        figures |= self._update("discriminator", self.adversary.config_optimizer, step, accelerator)
        figures["adversary/started"] = self.adversary.start.started.float()
        if accelerator.sync_gradients:
            for regulariser in self.adversary.regularisers:
                regulariser.after_step(self.adversary.discriminator)
        return figures

    def after_step(self, step: int) -> list[str]:
        """Move the weight average; tell when the discriminator starts, and when few codes are in use."""
        if self.ema is not None:
            self.ema.update(self.tokenizer, step=step)
        messages = [] if self.adversary is None else self.adversary.start.after_step(step)
        if self.usage is not None and looks_at_usage(self.recipe, step + 1):
            messages += usage_warning(self.recipe, step + 1, float(self.usage))
        return messages

    @property
    def trained(self) -> Tokenizer:
        """The tokenizer that is saved: the weight average where there is one."""
        return self.ema.module if self.ema is not None else self.tokenizer

    def picture(self) -> Tensor | None:
        """Originals above reconstructions, `(3, H, W)`."""
        if self.examples is None:
            return None
        from torchvision.utils import make_grid

        tokenizer = copy.deepcopy(self.trained).eval()
        with torch.no_grad():
            reconstructions = tokenizer.decode(tokenizer.encode(self.examples.to(tokenizer.device))).cpu()
        rows = torch.cat([self.examples, reconstructions.float().clamp(-1, 1)])[:, :3]
        return make_grid(rows, nrow=len(self.examples), padding=2, pad_value=1.0)

    def save(self, folder: Path, step: int) -> None:
        """Write the tokenizer as a loadable folder."""
        self.trained.save_pretrained(folder, card=self.card(step) if self.card else None)


def _check_annealed(recipe: Recipe, tokenizer: Tokenizer) -> None:
    buffers = tokenizer.named_buffers()
    scalars = [name for name, buffer in buffers if buffer.ndim == 0 and buffer.is_floating_point()]
    for name in recipe.anneal:
        if name not in scalars:
            raise ValueError(f"anneal: this tokenizer has no scalar buffer '{name}'{nearest(name, scalars)}")


class _Adversary:
    """The discriminator, its losses, and the generator's gradient from it."""

    def __init__(self, config: AdversaryConfig, optimizer: OptimizerConfig, tokenizer: Tokenizer) -> None:
        self.config, self.config_optimizer = config, optimizer
        self.discriminator: Discriminator = config.discriminator.build(
            channels=tokenizer.config.channels, image_size=tokenizer.config.size
        )
        self.discriminator.check(*tokenizer.config.size)  # now, not at the step where it starts
        self.regularisers: list[Regulariser] = [regulariser.build() for regulariser in config.regularisers]
        assert not isinstance(config.start, float) and not isinstance(config.warmup, float)  # the recipe's are steps
        self.start = DiscriminatorStart(config.start, config.warmup, config.window, config.threshold)
        self.last: Tensor = tokenizer.decoder.head.weight  # type: ignore[assignment]

    def generator(
        self, record: Record, output: Tensor, g_rec: Tensor, step: int, accelerator: Accelerator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted adversarial gradient at the output, and figures."""
        with accelerator.autocast():
            loss = self.config.objective.generator(record.fake, None)
        (g_adv,) = torch.autograd.grad(loss, record.output)
        weight = torch.tensor(schedule_value(self.config.weight, step), device=output.device)
        figures = {"generator": loss.detach()}
        if self.config.adaptive:
            pulled = [torch.autograd.grad(output, self.last, g, retain_graph=True)[0].float() for g in (g_rec, g_adv)]
            rec, adv = distributed.mean(torch.stack(pulled))
            balance = adaptive_weight(rec, adv, max=self.config.max_adaptive)
            weight = weight * balance
            figures |= {
                "adversary/adaptive": balance,
                "gradient/last_reconstruction": torch.linalg.vector_norm(rec),
                "gradient/last_adversary": torch.linalg.vector_norm(adv),
            }
        weighted = weight * g_adv
        return weighted, figures | {"gradient/generator": torch.linalg.vector_norm(weighted.float())}

    def own_loss(self, wrapped: nn.Module, record: Record, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss on fresh judgements through its wrapper, and figures."""
        fakes = record.reconstructions.detach()
        real: Judgement = wrapped(*self.discriminator.inputs(record, record.images))
        fake: Judgement = wrapped(*self.discriminator.inputs(record, fakes))
        loss = self.config.objective.discriminator(real, fake)
        figures = {"discriminator": loss.detach()}
        for judgement in (real, fake):
            for own in judgement.losses.values():
                loss = loss + own
        for regulariser in self.regularisers:
            weight = schedule_value(regulariser.weight, step)
            if weight and step % regulariser.every == 0:
                value = regulariser(record, self.discriminator, real, fake)
                loss = loss + weight * regulariser.every * value
                figures[f"adversary/{regulariser.name}"] = value.detach()
        figures["adversary/logits_real"] = torch.stack([part.detach().float().mean() for part in real.logits]).mean()
        figures["adversary/logits_fake"] = torch.stack([part.detach().float().mean() for part in fake.logits]).mean()
        return loss, figures


def compile_in_place(tokenizer: Tokenizer) -> None:
    """`torch.compile` the blocks of encoder and decoder, one by one; heads stay eager, as the adaptive weight asks."""
    limits = torch._dynamo.config
    name = "recompile_limit" if hasattr(limits, "recompile_limit") else "cache_size_limit"
    # Blocks of one class share a code object, and dynamo counts compilations by code object: past its limit of 8 the
    # rest would run eager with only a warning.
    setattr(limits, name, max(getattr(limits, name), 64))
    for part in (tokenizer.encoder, tokenizer.decoder):
        for block in part.trunk_blocks():
            block.compile()
