"""Our side of comparisons: each function gives a function of no arguments that does one unit of work."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import tokenizers_vq._torchvision  # noqa: F401  (before timm, which imports torchvision)
from prior.conditions import ClassConfig
from prior.model import Prior, PriorConfig
from prior.networks.gpt import GptConfig
from prior.sampling import Sampler
from prior.sequences import LayoutConfig
from tokenizers_vq import Tokenizer
from tokenizers_vq.training.loop import make_accelerator
from tokenizers_vq.training.recipe import load_recipe
from tokenizers_vq.training.step import TokenizerTask


def sampler(
    layers: int, dim: int, vocabulary: int, tokens: int, batch: int, guidance: float, dtype: torch.dtype
) -> Callable[[], Tensor]:
    """One batch of samples, class-conditional, heads of 64, no top-k or top-p; untrained weights cost the same."""
    network = GptConfig(layers=layers, dim=dim, heads=dim // 64)
    layout = LayoutConfig(grids=((tokens,),), levels=1, sizes=(vocabulary,))
    prior = Prior(PriorConfig(network=network, condition=ClassConfig(num_classes=10), layout=layout)).to(dtype).eval()
    labels, settings = torch.arange(batch) % 10, Sampler(guidance=guidance)
    return lambda: prior.sample(batch, labels, settings)


PATCHGAN = "{kind: patchgan, width: 64, layers: 2}"


def training_step(
    images: Tensor, width: int, precision: str = "fp32", discriminator: str = PATCHGAN
) -> Callable[[], object]:
    """One G + D step of an f4 VQGAN, as a run takes it: forward, losses, adaptive weight, both updates."""
    return training_task(images, width, precision, discriminator)[1]


def training_task(
    images: Tensor, width: int, precision: str, discriminator: str = PATCHGAN
) -> tuple[TokenizerTask, Callable[[], object]]:
    """The task that `training_step` drives, and its step."""
    recipe = load_recipe("vqgan-tiny-64", step_overrides(images.shape[-1], width, precision, discriminator))
    accelerator = make_accelerator(recipe, Path(), "cpu")
    task = TokenizerTask(recipe, Tokenizer(recipe.model).to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    task.modules = {name: accelerator.prepare(module) for name, module in task.modules.items()}
    task.optimizers = {name: accelerator.prepare(optimizer) for name, optimizer in task.optimizers.items()}
    batch = {"images": images, "labels": torch.zeros(len(images), dtype=torch.int64)}
    steps = itertools.count()
    return task, lambda: task.step(batch, next(steps), accelerator)


def step_overrides(size: int, width: int, precision: str = "fp32", discriminator: str = PATCHGAN) -> list[str]:
    """The recipe that all sides of the step's comparison train by: L1, a hinge, no perceptual loss."""
    network = f"{{kind: vqgan, width: {width}, multipliers: [1, 2, 4], latent_width: 256}}"
    return [
        f"model.image_size={size}",
        f"model.encoder={network}",
        f"model.decoder={network}",
        "model.quantizer={kind: vector, num_codes: 1024, dim: 256}",
        "losses=[{kind: l1}]",
        f"adversary.discriminator={discriminator}",
        "adversary.start=0",
        "adversary.warmup=0",
        "adversary.weight=0.8",
        "optimizer={lr: 1e-4, betas: [0.5, 0.9]}",
        "ema=null",
        f"precision={precision}",
    ]
