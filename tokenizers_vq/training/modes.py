"""What of a tokenizer trains: all of it, all but its codebook, or its decoder alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from tokenizers_vq.config import ConfigError
from tokenizers_vq.tokenizer import Tokenizer

Mode = Literal["all", "frozen_codebook", "decoder"]


def check(
    mode: Mode, quantizers: Iterable[Any], quantizer_losses: Mapping[str, Any], anneal: Mapping[str, Any]
) -> None:
    """Raises `ConfigError` where a recipe asks what is frozen to train, or has nothing to freeze."""
    if mode == "all":
        return
    if mode == "decoder" and quantizer_losses:
        raise ConfigError(
            ("quantizer_losses",),
            f"'{min(quantizer_losses)}' trains what train=decoder freezes: take it out, or give train=all",
        )
    moved = [name for name in anneal if not name.startswith("decoder.")]
    if moved:
        raise ConfigError(("anneal",), f"'{min(moved)}' would move while train={mode} freezes it: take it out")
    for quantizer in quantizers if mode == "frozen_codebook" else ():
        if (reason := quantizer.frozen()) is not None:
            raise ConfigError(("train",), reason)


def freeze(tokenizer: Tokenizer, mode: Mode) -> Tokenizer:
    """The tokenizer with what `mode` freezes in eval mode (its statistics rest too) and without gradients."""
    frozen = {"all": (), "frozen_codebook": ("quantizer",), "decoder": ("encoder", "quantizer")}[mode]
    for name in frozen:
        tokenizer.get_submodule(name).eval().requires_grad_(False)
    return tokenizer
