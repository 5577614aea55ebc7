"""From codes to images: the tokenizer that a prior was made for, and no other."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

import tokenizers_vq._torchvision  # noqa: F401  (before anything that imports torchvision)
from prior.chain import Chain
from prior.model import Prior
from tokenizers_vq.models import load
from tokenizers_vq.tokenizer import Tokenizer

T = TypeVar("T")


def short(fingerprint: str | None) -> str:
    """A fingerprint as messages show it."""
    return str(fingerprint)[:8]


def open_tokenizer(name: str | None, fingerprint: str | None, whose: str, device: torch.device | str) -> Tokenizer:
    """The tokenizer `name` on a device, which must have this fingerprint; `whose` is who asks, for errors.

    Raises `ValueError` for another tokenizer or none named, and what `load` raises.
    """
    if fingerprint is None:
        raise ValueError(
            f"{whose} does not say which tokenizer made its codes; train it on codes of `tvq encode`, "
            "or convert it again with --tokenizer"
        )
    if name is None:
        raise ValueError(f"{whose} does not say which tokenizer made its codes: give it with --tokenizer")
    try:
        tokenizer = load(name, device=device)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"the tokenizer of {whose}: {error}; say where it is now with --tokenizer") from None
    if tokenizer.fingerprint != fingerprint:
        raise ValueError(
            f"{whose} is of another tokenizer ({short(fingerprint)}) than {name} ({short(tokenizer.fingerprint)}): "
            "give its own with --tokenizer"
        )
    return tokenizer


def refuse_part(prior: Prior) -> None:
    """Raises `ValueError` for a prior of some grids alone."""
    if prior.config.grids is not None:
        raise ValueError(
            f"this prior models grids {list(prior.config.grids)} of its tokenizer's codes alone, and images need all: "
            "draw with all priors of its chain, coarse first (prior.Chain, `tvq-prior sample TOP BOTTOM`)"
        )


def decode(tokenizer: Tokenizer, prior: Prior | Chain, tokens: Tensor) -> Tensor:
    """int64 `(B, N)` of a prior or a chain of them -> float32 images `(B, C, H, W)` in [-1, 1] on the CPU."""
    if isinstance(prior, Prior):
        refuse_part(prior)
    codes = prior.layout.unflatten(tokens.to(tokenizer.device))
    return tokenizer.decode(codes).float().clamp(-1, 1).cpu()


def grid(images: Tensor, columns: int) -> Tensor:
    """`(B, C, H, W)` -> one picture `(3, H, W)` in [-1, 1], row by row, on white."""
    from torchvision.utils import make_grid

    shown = images[:, :3] if images.shape[1] >= 3 else images[:, :1]
    return make_grid(shown, nrow=columns, padding=2, pad_value=1.0)


def spread(values: list[T], count: int) -> list[T]:
    """`count` values in turn, each as often as the next, so that a grid shows them row by row."""
    return [values[index * len(values) // count] for index in range(count)]
