"""What a prior's recipe takes, told before step 0."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from prior.book import book_config
from prior.conditions import ClassConfig, ConditionConfig, GridsConfig, SeveralConfig
from prior.model import Prior, PriorConfig
from prior.networks.masked import Masked
from prior.recipe import PriorRecipe, load_recipe
from prior.sequences import LayoutConfig
from tokenizers_vq import folders
from tokenizers_vq.devices import without_memory
from tokenizers_vq.hierarchical import AnyTokenizerConfig
from tokenizers_vq.models import find, list_models, preset_config
from tokenizers_vq.tokenizer import read_tokenizer_config
from tokenizers_vq.training import estimate
from tokenizers_vq.training.estimate import Estimate, Measured


def plan(
    recipe: str | Path | PriorRecipe,
    tokenizer: str | Path,
    overrides: Sequence[str] = (),
    *,
    classes: int = 1000,
    gpus: int = 1,
    memory: float = 80.0,
    fsdp: bool = False,
    utilisation: float = 0.35,
) -> Estimate:
    """Parameters, memory and days of a recipe over the codes of a tokenizer, on `gpus` cards of `memory` GB.

    `tokenizer`: a preset, or what `load` takes. `classes`: how many there are, where the recipe leaves it to the codes.
    Raises `ValueError` for recipes that cannot be, and where the batch does not part into so many cards.
    """
    if not isinstance(recipe, PriorRecipe):
        recipe = load_recipe(recipe, "CODES", overrides)
    micro = estimate.micro_batch(recipe.batch_size, gpus, recipe.accumulate)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with without_memory():
        made = Prior(_configured(recipe, _tokenizer_config(tokenizer), classes))
    prior: Any = estimate.faked(made.train(), mode)
    image, besides, flops = estimate.by_image(lambda images: _step(prior, recipe, mode, images))
    return Estimate(
        parameters={"prior": sum(one.numel() for one in prior.parameters() if one.requires_grad)},
        state=estimate.state_of([prior], prior if recipe.ema else None, recipe.optimizer.kind),
        image=image,
        besides=besides,
        flops=flops,
        steps=recipe.steps,
        batch=recipe.batch_size,
        micro=micro,
        precision=recipe.precision,
        gpus=gpus,
        memory=memory * 1e9,
        fsdp=fsdp,
        utilisation=utilisation,
        left_out=() if recipe.data is None else ("the tokenizer, which encodes images as the prior trains",),
    )


def _tokenizer_config(name: str | Path) -> AnyTokenizerConfig:
    if str(name) in list_models("preset") and folders.local(name) is None:
        return preset_config(str(name))
    folder = find(name)
    return read_tokenizer_config(folders.read_config(folder), str(folder / folders.CONFIG))


def _configured(recipe: PriorRecipe, tokenizer: AnyTokenizerConfig, classes: int) -> PriorConfig:
    """What `training.configure` makes of a recipe and its codes, without codes."""
    built = tokenizer.build()
    whole = LayoutConfig.of(built.code_layout())
    grids = recipe.model.grids
    return PriorConfig(
        network=recipe.model.network,
        condition=_fitted(recipe.model.told(True), whole, classes),
        layout=whole if grids is None else LayoutConfig.of(whole.build().part(grids)),
        grids=grids,
        whole=None if grids is None else whole,
        book=book_config(recipe.model.network, built),
    )


def _fitted(told: ConditionConfig, whole: LayoutConfig, classes: int) -> ConditionConfig:
    """A condition with what codes would tell it."""
    if isinstance(told, SeveralConfig):
        parts = tuple(_fitted(part, whole, classes) for part in told.conditions)
        return SeveralConfig(conditions=parts, dropout=told.dropout)  # type: ignore[arg-type]  # of one thing each
    if isinstance(told, ClassConfig) and told.num_classes is None:
        return told.replace(num_classes=classes)
    return told.replace(layout=whole) if isinstance(told, GridsConfig) else told


def _step(prior: Prior, recipe: PriorRecipe, mode: FakeTensorMode, images: int) -> Measured:
    with mode, torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.precision == "bf16"):
        tokens = torch.zeros(images, prior.layout.length, dtype=torch.int64)

        def loss() -> Tensor:
            context = prior.condition(*prior.condition.nothing(images))
            if not isinstance(prior.network, Masked):
                return prior.network.loss(tokens, context)
            # Which codes are masked depends on values; all have their logits, and those of most have a loss.
            return prior.network.part_logits(prior.network.split(tokens), context).float().log_softmax(dim=-1).mean()

        blocks = prior.network.trunk_blocks() if recipe.gradient_checkpointing else []
        cost = estimate.count(loss, [prior], blocks)
    return Measured(cost.peak, cost.flops)
