"""Training a prior on codes: the task for the loop, and the run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from prior.book import book_config, fill_book
from prior.conditions import ClassCondition
from prior.data import Data, frequencies, read_rows
from prior.decoding import decode, grid, open_tokenizer, short, spread
from prior.identity import check_codes, keep_codes
from prior.model import Prior, PriorConfig
from prior.models import load
from prior.recipe import PriorRecipe
from prior.retarget import as_begun, begin, interpolated
from prior.sampling import Sampler
from prior.scoring import Measured, bits_per_token, entropies, unigram
from prior.sequences import LayoutConfig
from prior.views import Views, with_folders
from tokenizers_vq import checks
from tokenizers_vq.config import read_yaml, schedule_value
from tokenizers_vq.folders import lasting_name
from tokenizers_vq.tokenizer import Tokenizer
from tokenizers_vq.training import anneal, loop, sharding
from tokenizers_vq.training.recompute import compute_anew
from tokenizers_vq.training.runs import alone, claim, has_checkpoint
from tokenizers_vq.training.tracking import tell

MAY_CHANGE = (*loop.MAY_CHANGE, "evaluate_every", "tokenizer")
MOVED = ("codes", "data.path", "data.workers", "model.condition.codes")
"""of a run on images: where they lie now, for the stored codes know them, and its own folders"""
PICTURED = 16


def configure(recipe: PriorRecipe, data: Data, tokenizer: Tokenizer | None = None) -> PriorConfig:
    """The prior that a recipe and its codes make; `tokenizer`: their own, which a network that is fed vectors needs.

    Raises `ValueError` where the codes lack what the condition needs.
    """
    shards, sets = data.shards, data.folders(recipe)
    labelled = all(codes.labels_info().bare == 0 for codes in sets.values())
    return PriorConfig(
        network=recipe.model.network,
        condition=recipe.model.told(labelled).fit(sets),
        layout=LayoutConfig.of(shards.layout),
        grids=recipe.model.grids,
        whole=None if shards.whole is None else LayoutConfig.of(shards.whole.layout),
        tokenizer=lasting_name(recipe.tokenizer) if recipe.tokenizer else shards.tokenizer,
        fingerprint=shards.fingerprint,
        book=book_config(recipe.model.network, tokenizer),
    )


class _Bits(nn.Module):
    """The latest measurement on the held-out codes, as state of a checkpoint: a resumed run logs what it would have."""

    value: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(float("nan")))


class PriorTask:
    """A `loop.Task` that trains a prior by its network's loss."""

    def __init__(self, recipe: PriorRecipe, prior: Prior, data: Data, tokenizer: Tokenizer | None = None) -> None:
        from timm.utils.model_ema import ModelEmaV3

        self.recipe, self.prior, self.data, self.tokenizer = recipe, prior, data, tokenizer
        self.modules: dict[str, nn.Module] = {"prior": prior.train()}
        self.bits = _Bits()
        self.bits.register_load_state_dict_post_hook(lambda bits, keys: self._resumed())
        self._measured = False
        held = frequencies(data.held, data.held_rows)
        self.unigram, self.entropies = unigram(data.frequencies(), held), entropies(held)
        self.state: dict[str, nn.Module] = {"bits": self.bits}
        self.ema: ModelEmaV3 | None = None
        if recipe.ema is not None:
            self.ema = ModelEmaV3(prior, decay=recipe.ema.decay, use_warmup=recipe.ema.warmup, exclude_buffers=True)
            self.state["ema"] = self.ema
        anneal.check(recipe.anneal, prior, "prior")
        blocks = prior.network.trunk_blocks()
        if recipe.compile:
            for block in blocks:
                block.compile()
        if recipe.gradient_checkpointing:
            compute_anew(blocks)
        if sharding.asked():  # copies are made by now, and what follows is of parts
            for each in (prior, *(() if self.ema is None else (self.ema.module,))):
                sharding.shard(each, each.network.trunk_blocks(), ("log_likelihood",))
        self.optimizers: dict[str, Any] = {"prior": _spare_vectors(recipe.optimizer.build(prior))}

    def step(self, batch: dict[str, Any], step: int, accelerator: Accelerator) -> dict[str, Tensor]:
        """One micro-batch `{tokens (B, N), labels (B,), captions}`."""
        model, optimizer = self.modules["prior"], self.optimizers["prior"]
        anneal.move(self.recipe.anneal, self.prior, step)
        with accelerator.accumulate(model):
            with accelerator.autocast():  # a sharded prior has no wrapper that would
                loss = model(batch["tokens"], self.prior.condition.take(batch, draw=True))
            loop.check_finite(step, {"the loss": loss})
            accelerator.backward(loss)
            lr = schedule_value(self.recipe.optimizer.lr, step)
            # Of an exact prior the loss is its likelihood; of others it is what they learn by.
            name = "bits_per_token" if self.prior.exact else "loss/bits"
            figures = {name: loss.detach() / math.log(2), "lr/prior": loss.new_tensor(lr)}
            if accelerator.sync_gradients:
                clip = self.recipe.optimizer.clip or float("inf")
                norm = sharding.norm(accelerator.clip_grad_norm_(model.parameters(), clip))
                loop.check_finite(step, {"the prior's gradient": norm})
                figures["gradient/prior"] = norm.to(loss.device)
                for group in optimizer.param_groups:
                    group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad()  # after the step: accelerate ignores it between micro-batches
        self._measured = self._measured or self._due(step)
        if self._measured:
            # The buffer itself: `after_step` fills it before the loop reads the figures.
            figures["held_out/bits_per_token"] = self.bits.value
            figures["unigram/bits_per_token"] = loss.new_tensor(self.unigram)
        return figures

    def _resumed(self) -> None:
        self._measured = not bool(self.bits.value.isnan())

    def _due(self, step: int) -> bool:
        return (step + 1) % self.recipe.evaluate_every == 0 or step + 1 == self.recipe.steps

    def after_step(self, step: int) -> list[str]:
        """Move the weight average; measure it on the held-out codes when they are due."""
        if self.ema is not None:
            self.ema.update(self.prior, step=step)
        if not self._due(step):
            return []
        size, bf16 = self.recipe.batch_size, self.recipe.precision == "bf16"
        with checks.at_once():
            self.bits.value.fill_(bits_per_token(self.trained, self.data.held, self.data.held_rows, size, bf16))
        return [] if step + 1 == self.recipe.steps else [f"step {step + 1}: {self.measured.words()}"]

    @property
    def measured(self) -> Measured:
        """The latest measurement on the held-out codes; NaN before the first."""
        rows, prior = len(self.data.held_rows), self.prior
        tokens = rows * prior.layout.length
        return Measured(float(self.bits.value), self.unigram, self.entropies, rows, tokens, prior.exact)

    @property
    def trained(self) -> Prior:
        """The prior that is saved: the weight average where there is one."""
        return self.ema.module if self.ema is not None else self.prior

    def _whole(self) -> Prior | None:
        """`trained`; of a sharded one a whole copy in the first process, None in the others."""
        config = self.prior.config
        return sharding.whole(self.trained, lambda: Prior(config))

    def picture(self) -> Tensor | None:
        """`(3, H, W)`: samples of one seed, classes in turn or held-out captions; None without the tokenizer."""
        if self.tokenizer is None or (trained := self._whole()) is None:
            return None
        condition, config = trained.condition, trained.config
        if trained is not self.trained:
            trained.to(self.prior.device)
            condition.adopt(self.tokenizer)
        if config.grids is not None:
            return self._completed(trained)
        if isinstance(condition, ClassCondition):
            told = spread(condition.every(), PICTURED)
        else:
            rows = np.resize(self.data.held_rows, PICTURED)
            told = self.trained.condition.take(read_rows(self.data.held, rows))
        tokens = trained.sample(PICTURED, told, Sampler(seed=self.recipe.seed))
        return grid(decode(self.tokenizer, self.prior, tokens), columns=4)

    def _completed(self, trained: Prior) -> Tensor | None:
        """Held-out images with the modelled grids drawn, where all the others are told."""
        config, held = trained.config, self.data.held
        assert config.grids is not None and held.whole is not None and self.tokenizer is not None
        whole = held.whole.layout
        if len({*config.grids, *config.given}) < len(whole.grids):
            return None
        batch = read_rows(held, np.resize(self.data.held_rows, PICTURED))
        told, codes = self.trained.condition.take(batch), batch["whole"].clone()
        drawn = trained.sample(PICTURED, told, Sampler(seed=self.recipe.seed))
        codes[:, whole.places_of(config.grids)] = drawn.cpu()
        images = self.tokenizer.decode(whole.unflatten(codes.to(self.tokenizer.device)))
        return grid(images.float().clamp(-1, 1).cpu(), columns=4)

    def save(self, folder: Path, step: int) -> None:
        """Write the prior as a loadable folder, with a card."""
        figures = {"bits per token, held out": float(self.bits.value), "the same, unigram": self.unigram}
        card = {
            "data": f"codes of {self.data.length} images, {self.recipe.batch_size} a step, {step} steps",
            "command": f"tvq-prior train recipe.yaml CODES --out {folder.parent.name}",
            "seed": self.recipe.seed,
            "figures": {} if self.bits.value.isnan() else figures,
        }
        if (trained := self._whole()) is not None:
            trained.save_pretrained(folder, card=card)


def _spare_vectors(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Take the vectors (gains of norms, begin vector) out of the weight decay, which would pull them to 0."""
    (group,) = optimizer.param_groups
    vectors = [parameter for parameter in group["params"] if parameter.ndim < 2]
    group["params"] = [parameter for parameter in group["params"] if parameter.ndim >= 2]
    optimizer.add_param_group({"params": vectors, "weight_decay": 0.0})
    return optimizer


@alone
def train(recipe: PriorRecipe, out: Path, *, device: str = "auto", init_from: str | None = None) -> Measured:
    """Train by `recipe` into the folder `out`, going on where it holds a run -> how it compares with the unigram.

    `init_from`: a prior whose weights a new run begins with; codes of another tokenizer get a new embedding and head,
    another grid stretches its positions. Raises `ValueError` where `out` holds a run of another recipe or tokenizer,
    where codes or tokenizer do not belong together, and what `read_codes`, `retarget.begin` and `loop.run` raise.
    """
    accelerator, recipe = loop.make_accelerator(recipe, out, device), as_begun(recipe, out)
    views = None if recipe.data is None else _open_views(recipe, out, device, accelerator)
    recipe = recipe if recipe.data is None else with_folders(recipe, out)
    data = Data(recipe)
    trained = load(init_from) if init_from is not None and not has_checkpoint(out) else None
    recipe = recipe if trained is None else interpolated(recipe, data.shards.layout, trained)
    recipe = recipe.replace(fingerprint=data.shards.fingerprint)
    _refuse_other_tokenizer(recipe, out)
    tokenizer = _tokenizer(recipe, data, accelerator)
    config = configure(recipe, data, tokenizer)
    with accelerator.main_process_first():
        may_change = (*MAY_CHANGE, *check_codes(recipe, data, out), *(() if views is None else MOVED))
        changed = claim(recipe, out, write=accelerator.is_main_process, may_change=may_change)
        if accelerator.is_main_process:
            keep_codes(recipe, data, out)
    if changed:
        tell(accelerator, changed)
    loop.seed_everything(recipe.seed)
    prior = Prior(config)
    fill_book(prior, tokenizer)
    if trained is not None and init_from is not None:
        begin(prior, trained, init_from, partial(tell, accelerator))
    elif init_from is not None:
        tell(accelerator, f"{out} resumes from its checkpoint: --init-from {init_from} is for a new run")
    prior = prior.to(accelerator.device)
    with accelerator.main_process_first():
        prior.condition.prepare(data.folders(recipe))
    if tokenizer is not None:
        prior.condition.adopt(tokenizer)
    tell(
        accelerator,
        f"training on {accelerator.device}, {recipe.precision}: {data.length} rows of {prior.layout.length} "
        f"codes, {len(data.held_rows)} held out; the run is {out}",
    )
    task = PriorTask(recipe, prior, data, tokenizer if recipe.image_every else None)

    def batches(start: int, rank: int, world: int) -> Iterator[dict[str, Any]]:
        if views is None:
            return data.batches(recipe, start, rank, world)
        return views.batches(recipe, data, start, rank, world)

    loop.run(task, recipe, accelerator, out, batches)
    return task.measured


def _open_views(recipe: PriorRecipe, out: Path, device: str, accelerator: Accelerator) -> Views:
    """The images of a run, the codes of their centres stored in it."""
    recipe = with_folders(recipe, out)
    views = Views(recipe, out, device)
    recipe = recipe.replace(fingerprint=views.encoder.fingerprint)
    _refuse_other_tokenizer(recipe, out)
    with accelerator.main_process_first():
        claim(recipe, out, write=accelerator.is_main_process, may_change=(*MAY_CHANGE, *MOVED))
    views.store(recipe.batch_size)
    accelerator.wait_for_everyone()
    return views


def _refuse_other_tokenizer(recipe: PriorRecipe, out: Path) -> None:
    path = out / "recipe.yaml"
    before = read_yaml(path).get("fingerprint") if path.is_file() else None
    if before not in (None, recipe.fingerprint):
        raise ValueError(
            f"{recipe.codes} holds codes of another tokenizer ({short(recipe.fingerprint)}) than the run {out} was "
            f"begun with ({short(before)}): give another --out, or the codes it began with"
        )


def _tokenizer(recipe: PriorRecipe, data: Data, accelerator: Accelerator) -> Tokenizer | None:
    """The tokenizer for pictures; where it is not at hand, and nobody needs it, the run does without."""
    name = recipe.tokenizer or data.shards.tokenizer
    needed = recipe.tokenizer is not None or recipe.model.network.fed_vectors
    if name is None and not needed:
        return None
    try:
        return open_tokenizer(name, data.shards.fingerprint, recipe.codes, accelerator.device)
    except FileNotFoundError as error:
        if needed:
            raise
        tell(accelerator, f"no pictures, because the tokenizer cannot be loaded: {error}")
        return None
