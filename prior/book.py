"""The tokenizer's quantizer inside a prior whose network is fed the vectors of its codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prior.model import Prior
from prior.networks import NetworkConfig
from tokenizers_vq.quantizers import QuantizerConfig

if TYPE_CHECKING:
    from tokenizers_vq.tokenizer import Tokenizer


def book_config(network: NetworkConfig, tokenizer: Tokenizer | None) -> QuantizerConfig | None:
    """The config of the quantizer whose vectors a network is fed; None where it is fed none, or no tokenizer is given.

    Raises `ValueError` for a tokenizer that has a quantizer for each grid.
    """
    if not network.fed_vectors or tokenizer is None:
        return None
    if (found := getattr(tokenizer.config, "quantizer", None)) is None:
        raise ValueError(
            f"the network '{network.kind}' is fed the vectors of one quantizer, and this tokenizer, which is "
            f"{tokenizer.config.kind}, has one for each grid: take another kind of network"
        )
    return found


def fill_book(prior: Prior, tokenizer: Tokenizer | None) -> None:
    """Give a prior the state of the tokenizer's quantizer, where it is fed its vectors."""
    if prior.network.book is not None and tokenizer is not None:
        prior.network.book.load_state_dict(tokenizer.quantizer.state_dict())
