"""Our side of comparisons: each function gives a function of no arguments that does one unit of work."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prior.conditions import ClassConfig
from prior.model import Prior, PriorConfig
from prior.networks.gpt import GptConfig
from prior.sampling import Sampler
from prior.sequences import LayoutConfig


def sampler(
    layers: int, dim: int, vocabulary: int, tokens: int, batch: int, guidance: float, dtype: torch.dtype
) -> Callable[[], Tensor]:
    """One batch of samples, class-conditional, heads of 64, no top-k or top-p; untrained weights cost the same."""
    network = GptConfig(layers=layers, dim=dim, heads=dim // 64)
    layout = LayoutConfig(grids=((tokens,),), levels=1, sizes=(vocabulary,))
    prior = Prior(PriorConfig(network=network, condition=ClassConfig(num_classes=10), layout=layout)).to(dtype).eval()
    labels, settings = torch.arange(batch) % 10, Sampler(guidance=guidance)
    return lambda: prior.sample(batch, labels, settings)
