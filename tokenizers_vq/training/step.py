"""The tokenizer's training step: every loss meets the tokenizer at the leaves of one record, once.

The gradients of the terms and of the adversary are taken at the decoder's output and, where they speak of them, at the
features; `gradients.mixed` adds them, and one backward carries their sum through decoder and encoder. The step knows
roles (terms, objective, discriminator, regularisers), no variant.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from tokenizers_vq import distributed
from tokenizers_vq.batch import Batch
from tokenizers_vq.config import schedule_value
from tokenizers_vq.data.told import Told
from tokenizers_vq.images import from_uint8
from tokenizers_vq.losses.objectives import adaptive_weight
from tokenizers_vq.losses.record import Record, levels
from tokenizers_vq.losses.terms import Term, placed
from tokenizers_vq.tokenizer import Tokenizer
from tokenizers_vq.training import anneal, gradients, modes
from tokenizers_vq.training.adversary import Adversary
from tokenizers_vq.training.gradients import Gradients
from tokenizers_vq.training.health import looks_at_usage, usage_warning
from tokenizers_vq.training.loop import check_finite
from tokenizers_vq.training.recipe import OptimizerConfig, Recipe
from tokenizers_vq.training.recompute import compute_anew


class Terms(NamedTuple):
    """What the reconstruction losses of a micro-batch give."""

    losses: dict[str, Tensor]
    """unweighted, without gradient"""
    at_leaves: Gradients
    """their summed gradients at the record's leaves"""
    at_parameters: Gradients
    """and at what the terms train"""
    at_output: dict[str, Tensor]
    """each one's own at the output, where the step is logged"""
    figures: dict[str, Tensor]
    """for the log"""


class TokenizerTask:
    """A `loop.Task` that trains a tokenizer by a recipe."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer, examples: Tensor | None = None, card: Any = None) -> None:
        from timm.utils.model_ema import ModelEmaV3

        self.recipe, self.tokenizer, self.examples, self.card = recipe, tokenizer, examples, card
        self.terms: list[Term] = []
        for i, config in enumerate(recipe.losses):
            with placed(i, config.kind):
                self.terms.append(config.build(tokenizer).to(tokenizer.device))
        self.term_parameters = [p for term in self.terms for p in term.parameters() if p.requires_grad]
        self.modules: dict[str, nn.Module] = {"tokenizer": modes.freeze(tokenizer.train(), recipe.train)}
        self.optimizers: dict[str, Any] = {"tokenizer": recipe.optimizer.build(tokenizer, *self.terms)}
        anneal.check(recipe.anneal, tokenizer, "tokenizer")
        self.state: dict[str, nn.Module] = {}
        self.usage: Tensor | None = None  # the last step's
        self._asked: tuple[int, Tensor] | None = None  # after how many steps, and the usage then, until it is told
        self.ema: ModelEmaV3 | None = None
        if recipe.ema is not None:
            self.ema = ModelEmaV3(tokenizer, decay=recipe.ema.decay, use_warmup=recipe.ema.warmup, exclude_buffers=True)
            self.state["ema"] = self.ema
        self.adversary: Adversary | None = None
        if recipe.adversary is not None:
            self.adversary = Adversary(recipe.adversary, recipe.optimizer, tokenizer)
            self.modules["discriminator"] = self.adversary.discriminator.train()
            self.optimizers["discriminator"] = self.adversary.optimizer.build(self.adversary.discriminator)
            self.state["start"] = self.adversary.start
            self._keep("regularisers", self.adversary.regularisers)
        self._keep("terms", self.terms)
        self.told: Told | None = None
        """what the data say of all their images, where somebody knows; parts are asked about it before step 0"""
        self._checked = False
        if recipe.compile:
            compile_in_place(tokenizer)
        if recipe.gradient_checkpointing:
            compute_anew(trunk_blocks(tokenizer))

    def _keep(self, name: str, parts: Sequence[nn.Module]) -> None:
        """Join the parts to the checkpoint, where they have anything to save."""
        together = nn.ModuleList(parts)
        if together.state_dict():
            self.state[name] = together

    def step(self, batch: dict[str, Any], step: int, accelerator: Accelerator) -> dict[str, Tensor]:
        """One micro-batch: one backward through the tokenizer, one through the discriminator."""
        seen = Batch.of(batch)
        if seen.images.dtype == torch.uint8:  # as it was read: in [-1, 1] here, where it is computed
            seen = seen._replace(images=from_uint8(seen.images))
        if not self._checked:
            self._check(seen)
        anneal.move(self.recipe.anneal, self.tokenizer, step)
        prepared = list(self.modules.values())
        with accelerator.accumulate(*prepared):
            out = self.modules["tokenizer"](seen.images, render=False)  # the record renders what a loss asks for
            record = Record(
                seen,
                out.output,
                features=out.features,
                quantized=out.quantized,
                tokenizer=self.tokenizer,
                discriminator=self.adversary.discriminator if self.adversary else None,
                step=step,
            )
            ends = (out.output, *levels(out.features))
            losses, at_leaves, at_parameters, at_output, figures = self._reconstruction(record, ends, accelerator)
            if self.adversary is not None and self.adversary.start.faces_generator(step):
                generator = self.adversary.generator(record, out.output, at_leaves, accelerator)
                at_leaves = gradients.mixed(at_leaves, generator.at_leaves, generator.weight)
                losses["generator"] = generator.loss
                figures |= generator.figures
                if generator.at_leaves[0] is not None and self.recipe.logs(step):
                    at_output["generator"] = generator.weight * generator.at_leaves[0]
            quantizer = self._quantizer_losses(out.quantized.losses, step)
            losses |= quantizer
            check_finite(step, losses | _named(at_leaves))
            if at_output:
                figures |= self._shares(out.output, at_output)
            total = gradients.carried((*ends, *self.term_parameters), (*at_leaves, *at_parameters))
            accelerator.backward(sum(quantizer.values(), total))
            figures |= {name: loss.detach() for name, loss in losses.items()}
            figures |= {f"quantizer/{name}": value for name, value in out.quantized.stats.items()}
            self.usage = out.quantized.stats.get("usage")
            figures |= self._update("tokenizer", self.recipe.optimizer, step, accelerator)
            if self.adversary is not None and self.adversary.start.trains_discriminator(step):
                figures |= self._discriminator(self.adversary, record, accelerator)
        return figures

    def _check(self, batch: Batch) -> None:
        """Raises `ValueError` where a part cannot take the labels, captions or sizes that the data have."""
        if self.told is not None:
            batch = batch._replace(labels=self.told.labels, captions=self.told.captions)
        for i, term in enumerate(self.terms):
            with placed(i, term.name):
                term.check(batch)
        if self.adversary is not None:
            self.adversary.check(batch)
        self._checked = True

    def _shares(self, output: Tensor, at_output: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each loss's share of the gradient at the decoder's last layer."""
        last: Tensor = self.tokenizer.decoder.head.weight  # type: ignore[assignment]
        return {f"share/{name}": share for name, share in gradients.shares(output, last, at_output).items()}

    def _reconstruction(self, record: Record, ends: Sequence[Tensor], accelerator: Accelerator) -> Terms:
        """`ends`: what the record's leaves were cut from."""
        losses: dict[str, Tensor] = {}
        at_output: dict[str, Tensor] = {}
        figures: dict[str, Tensor] = {}
        total = torch.zeros((), device=record.images.device)
        places, count = (*record.leaves, *self.term_parameters), len(record.leaves)
        summed: Gradients = (torch.zeros_like(record.output), *(None for _ in places[1:]))
        balanced: dict[str, Gradients] = {}
        seen = False  # whether any term looks at the output
        for i, term in enumerate(self.terms):
            weight = schedule_value(term.weight, record.step)
            if weight:
                with accelerator.autocast(), placed(i, term.name):
                    loss = term(record)
                if not loss.requires_grad:
                    raise ValueError(f"the {term.name} loss has no gradient at output or features: take it out")
                # One by one: as many backwards as their sum has, and each term's share of the gradient is seen. What
                # terms share is kept by the record, the rest of the graph goes with `loss`.
                own = gradients.at(weight * loss, places)
                for name, share in zip(("", "features/"), (own[:1], own[1:count]), strict=True):
                    norms = [torch.linalg.vector_norm(part.float()) for part in share if part is not None]
                    if norms:
                        figures[f"gradient/{name}{term.name}"] = torch.linalg.vector_norm(torch.stack(norms))
                losses[term.name] = loss.detach()
                if own[0] is not None and self.recipe.logs(record.step):
                    at_output[term.name] = own[0]
                seen = seen or own[0] is not None
                total = total + weight * losses[term.name]
                if term.adaptive:
                    balanced[term.name] = own
                else:
                    summed = gradients.added(summed, own)
        if not losses:
            raise ValueError(
                f"step {record.step}: every reconstruction loss has weight 0; give one of `losses` a weight"
            )
        alone = summed
        for name, own in balanced.items():
            factor = self._balance(ends, alone[:count], own[:count])
            figures[f"adaptive/{name}"] = factor
            summed = gradients.added(summed, gradients.scaled(own, factor))
        if self.adversary is not None:
            self.adversary.start.observe(total)
        elif not seen:
            raise ValueError(
                f"step {record.step}: no loss looks at the reconstruction, so the decoder cannot learn: "
                "give `losses` one that does, such as l1"
            )
        return Terms(losses, summed[:count], summed[count:], at_output, figures | {"reconstruction": total})

    def _balance(self, ends: Sequence[Tensor], others: Gradients, own: Gradients) -> Tensor:
        """VA-VAE's adaptive weight (arXiv 2501.01423): how much longer the others' gradient is at the last layer."""
        last = self.tokenizer.encoder.last
        rec, aligned = (gradients.pulled(ends, part, last) for part in (others, own))
        return adaptive_weight(rec, aligned, max=1e8)

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
            parameters = list(self.modules[name].parameters())
            if name == "tokenizer":  # its wrapper averages its own gradients over processes, not those of terms
                average_gradients(self.term_parameters)
                parameters += self.term_parameters
            norm = torch.as_tensor(accelerator.clip_grad_norm_(parameters, config.clip or float("inf")))
            check_finite(step, {f"the {name}'s gradient": norm})
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad()  # after: before a backward it would drop what earlier micro-batches gave
            figures[f"gradient/{name}"] = norm.detach()
        return figures

    def _discriminator(self, adversary: Adversary, record: Record, accelerator: Accelerator) -> dict[str, Tensor]:
        logged = self.recipe.logs(record.step)
        loss, figures = adversary.own_loss(self.modules["discriminator"], record, logged)
        check_finite(record.step, figures)
        accelerator.backward(loss)
        figures |= self._update("discriminator", adversary.optimizer, record.step, accelerator)
        figures["adversary/started"] = adversary.start.started.float()
        if accelerator.sync_gradients:
            adversary.after_step()
        return figures | (adversary.state_figures() if logged else {})

    def after_step(self, step: int) -> list[str]:
        """Move the weight average; tell when the discriminator starts, and when few codes are in use."""
        if self.ema is not None:
            self.ema.update(self.tokenizer, step=step)
        messages = [] if self.adversary is None else self.adversary.start.after_step(step)
        if self.usage is not None and looks_at_usage(self.recipe, step + 1):
            self._asked = step + 1, self.usage
        if self._asked is not None and self.recipe.logs(step):
            messages += usage_warning(self.recipe, self._asked[0], float(self._asked[1]))
            self._asked = None
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


def _named(at_leaves: Gradients) -> dict[str, Tensor]:
    """The gradients by the names that the message about a non-finite step gives them."""
    output, *features = at_leaves
    named = {"the gradient at the decoder's output": output}
    named |= {f"the gradient at the features of grid {i}": gradient for i, gradient in enumerate(features, 1)}
    return {name: gradient for name, gradient in named.items() if gradient is not None}


def average_gradients(parameters: Sequence[Tensor]) -> None:
    """Each gradient becomes its mean over processes, in place; parameters without one, alike in all, stay so."""
    given = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if given and distributed.world_size() > 1:
        vector_to_parameters(distributed.mean(parameters_to_vector(given)), given)


def compile_in_place(tokenizer: Tokenizer) -> None:
    """`torch.compile` the blocks of encoder and decoder, one by one; heads stay eager, as the adaptive weight asks."""
    limits = torch._dynamo.config
    name = "recompile_limit" if hasattr(limits, "recompile_limit") else "cache_size_limit"
    # Blocks of one class share a code object, and dynamo counts compilations by code object: past its limit of 8 the
    # rest would run eager with only a warning.
    setattr(limits, name, max(getattr(limits, name), 64))
    for block in trunk_blocks(tokenizer):
        block.compile()


def trunk_blocks(tokenizer: Tokenizer) -> list[nn.Module]:
    """The blocks of encoder and decoder."""
    return [block for part in (tokenizer.encoder, tokenizer.decoder) for block in part.trunk_blocks()]
