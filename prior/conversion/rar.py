"""RAR as 1d-tokenizer publishes it (arXiv 2411.00776): a GPT in random order, told a class by prefix and AdaLN."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prior.conditions import ClassConfig
from prior.conversion.base import Converted, Given
from prior.conversion.grids import grid_of
from prior.conversion.keys import depth
from prior.networks.gpt import GptConfig
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.conversion.checkpoint import expect
from tokenizers_vq.conversion.given import number, part
from tokenizers_vq.conversion.keys import rename
from tokenizers_vq.conversion.maskgit import wanted
from tokenizers_vq.conversion.vqgan_keys import agree

SURPLUS = 1024
"""rows of the tables of positions beyond the codes"""
_RULES = [
    (r"^blocks\.", "network.blocks."),
    (r"\.norm1\.", ".attention_norm."),
    (r"\.norm2\.", ".mlp_norm."),
    (r"\.attn\.q_norm\.", ".query_norm."),
    (r"\.attn\.k_norm\.", ".key_norm."),
    (r"\.attn\.qkv\.", ".qkv."),
    (r"\.attn\.proj\.", ".out."),
    (r"\.mlp\.fc1\.", ".up."),
    (r"\.mlp\.fc2\.", ".down."),
    (r"\.adaLN_modulation\.1\.", ".modulation."),
    (r"^adaln_before_head\.", "network.norm."),
    (r"^lm_head\.", "network.head."),
]
_TABLES = ("cls_token", "embeddings.weight", "pos_embed", "target_aware_pos_embed", "timesteps_embeddings")
_FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_seq_len", "condition_num_classes")


def read(given: Given) -> Converted:
    """The prior of a plain state dict, whose shapes tell all sizes; from the config dropouts alone.

    The table of embeddings holds the codes, a mask that is never read, the classes and the null class. The positions of
    the two vectors before the codes go into those vectors, and out of the steps that AdaLN adds to the class. Raises
    `ValueError` for a config that contradicts the tensors.
    """
    made = part(part(given.config, "model"), "generator")
    expect(given.config, made, _FIELDS, given.path)
    begin, words, positions, targets, steps = (
        wanted(given.tensors, name, given.path).float().flatten(0, -2) for name in _TABLES
    )
    codes, dim = wanted(given.tensors, "lm_head.weight", given.path).shape
    length, classes = len(positions) - SURPLUS, len(words) - codes - 2
    if length < 1 or classes < 1 or len(targets) != len(positions) or len(steps) <= length:
        raise ValueError(
            f"tables of {len(words)} words, {len(positions)} positions, {len(targets)} targets and {len(steps)} steps "
            f"do not fit {codes} codes: {SURPLUS} positions more than codes are wanted, and a mask, classes and null"
        )
    rest = {key: tensor for key, tensor in given.tensors.items() if key not in _TABLES}
    for key in [key for key in rest if re.match(r"adaln_before_head\.", key)]:
        rest[key] = torch.cat(rest[key].chunk(2)[::-1])  # scale first there, shift first here
    ours = rename(rest, _RULES)
    first, second = positions[:2]
    ours |= {
        "network.begin": begin[0] + first,
        "network.tokens.weight": words[:codes],
        "network.positions": positions[2 : 2 + length],
        "network.targets": targets[2 : 2 + length],
        "network.places": steps[: length + 1] - second,
        "network.random_order": torch.tensor(0.0),  # at the end of training
        "condition.classes.weight": words[codes + 1 :] + second,
    }
    network = _network(given, made, dim)
    _check(given, made, network, {"image_seq_len": length, "condition_num_classes": classes}, codes)
    layout = CodeLayout((grid_of(length, given.layout),), 1, (codes,))
    dropout = number(made, "class_label_dropout", 0.1)
    return Converted(network, ClassConfig(num_classes=classes, dropout=dropout), layout, ours)


def _network(given: Given, made: Mapping[str, Any], dim: int) -> GptConfig:
    hidden = wanted(given.tensors, "blocks.0.mlp.fc1.weight", given.path).shape[0]
    norm: Tensor | None = given.tensors.get("blocks.0.attn.q_norm.weight")
    if norm is None or not norm.numel() or dim % norm.numel():
        raise ValueError("blocks.0.attn.q_norm.weight tells no number of heads: it is of another layout")
    return GptConfig(
        layers=depth(given.tensors, r"blocks\."),
        dim=dim,
        heads=dim // norm.numel(),
        hidden=hidden,
        norm="layer",
        mlp="gelu",
        bias=True,
        head_bias=True,
        qk_norm=True,
        positions="learned",
        order="random",
        begin=True,
        entry=("prefix", "adaln"),
        adaln_places=True,
        residual_dropout=number(made, "dropout", 0.1),
        attention_dropout=number(made, "attn_drop", 0.1),
        eps=1e-6,
    )


def _check(given: Given, made: Mapping[str, Any], network: GptConfig, sizes: Mapping[str, int], codes: int) -> None:
    """Raises `ValueError` where the config contradicts what the tensors tell."""
    found = {
        "hidden_size": network.dim,
        "num_hidden_layers": network.layers,
        "num_attention_heads": network.heads,
        "intermediate_size": network.hidden,
        **sizes,
    }
    agree(made, found, given.path)
    agree(part(part(given.config, "model"), "vq_model"), {"codebook_size": codes}, given.path)
