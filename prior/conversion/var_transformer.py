"""VAR's transformer as FoundationVision publishes it (arXiv 2404.02905), and as its training saves it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from prior.conditions import ClassConfig
from prior.conversion.base import Book, Converted, Given
from prior.conversion.keys import depth
from prior.networks.var import VarConfig
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.conversion import var
from tokenizers_vq.conversion.checkpoint import below, expect
from tokenizers_vq.conversion.given import number, whole
from tokenizers_vq.conversion.keys import rename, skip
from tokenizers_vq.conversion.maskgit import wanted
from tokenizers_vq.conversion.vqgan_keys import agree

_FIELDS = ("depth", "embed_dim", "num_heads", "num_classes", "patch_nums", "v_patch_nums", "shared_aln", "attn_l2_norm")
_RULES = [
    (r"^class_emb\.", "condition.classes."),
    (r"^word_embed\.", "network.enter."),
    (r"^lvl_embed\.", "network.scales."),
    (r"^(?:head_nm\.ada_lin\.1)\.", "network.condition."),
    (r"^head\.", "network.head."),
    (r"^shared_ada_lin\.1\.", "network.shared."),
    (r"^blocks\.", "network.blocks."),
    (r"\.ada_lin\.1\.", ".condition."),
    (r"\.attn\.mat_qkv\.", ".attention.qkv."),
    (r"\.attn\.proj\.", ".attention.out."),
    (r"\.attn\.(q_bias|v_bias)$", r".attention.\1"),
    (r"\.attn\.scale_mul_1H11$", ".attention.log_scale"),
    (r"\.ada_gss$", ".vectors"),
    (r"\.ffn\.fc1\.", ".up."),
    (r"\.ffn\.fc2\.", ".down."),
    (r"^pos_start$", "network.begin"),
    (r"^pos_1LC$", "network.positions"),
]
_LEADING = {"network.begin": 1, "network.positions": 1, "log_scale": 1, "vectors": 2}
"""dimensions of size 1 that stand first in the reference alone, by the end of our key"""


def read(given: Given) -> Converted:
    """The prior of a plain state dict, or of a checkpoint of the training, whose own tokenizer then serves.

    Sizes are read from the keys. The number of heads stands there with `attn_l2_norm` alone, else in the config; of a
    width of 64 times the depth, as published, it is the depth. Raises `ValueError` where no tokenizer is at hand.
    """
    expect(given.config, given.config, _FIELDS, given.path)
    path = given.path
    tensors = below(given.tensors, "trainer.var_wo_ddp.") or below(given.tensors, "var_wo_ddp.") or given.tensors
    sides = _scales(tensors, given.config, path)
    if any(bool(tensor.any()) for key, tensor in tensors.items() if key.endswith(".attn.zero_k_bias")):
        raise ValueError(f"{path} has biases of keys (zero_k_bias), which no published model has")
    pattern = r"lvl_1L$|attn_bias_for_masking$|blocks\.\d+\.attn\.zero_k_bias$"
    ours = rename(skip(tensors, pattern, "which the scales tell"), _RULES)
    for end, count in _LEADING.items():
        there = [key for key in ours if key.endswith(end) and ours[key].ndim > count]
        ours.update({key: ours[key].flatten(0, count) for key in there})
    network = _network(tensors, given)
    classes, codes = (wanted(tensors, key, path).shape[0] for key in ("class_emb.weight", "head.weight"))
    agree(given.config, {"num_classes": classes - 1}, path)
    layout = CodeLayout(sides, 1, (codes,) * len(sides))
    condition = ClassConfig(num_classes=classes - 1, dropout=number(given.config, "cond_drop_rate", 0.1))
    return Converted(network, condition, layout, ours, given.book or _own_book(path, sides))


def _network(tensors: Mapping[str, Tensor], given: Given) -> VarConfig:
    path, config = given.path, given.config
    dim = wanted(tensors, "word_embed.weight", path).shape[0]
    hidden, layers = wanted(tensors, "blocks.0.ffn.fc1.weight", path).shape[0], depth(tensors, r"blocks\.")
    scale = tensors.get("blocks.0.attn.scale_mul_1H11")
    heads = scale.numel() if scale is not None else whole(config, "num_heads", layers if dim == 64 * layers else 0)
    l2_norm, shared = scale is not None, "blocks.0.ada_gss" in tensors
    found: dict[str, Any] = {
        "depth": layers,
        "embed_dim": dim,
        "num_heads": heads,
        "shared_aln": shared,
        "attn_l2_norm": l2_norm,
    }
    if heads < 1 or dim % heads:
        raise ValueError(f"{path} does not tell its number of heads, {dim} wide: give its config, with num_heads")
    agree(config, found, path)
    return VarConfig(
        layers=layers,
        dim=dim,
        heads=heads,
        mlp_ratio=hidden / dim,
        attn_l2_norm=l2_norm,
        shared_aln=shared,
        drop_path=number(config, "drop_path_rate", 0.1 * layers / 24),
        eps=number(config, "norm_eps", 1e-6),
    )


def _scales(tensors: Mapping[str, Tensor], config: Mapping[str, Any], path: Path) -> tuple[tuple[int, int], ...]:
    """Sides of the scales, told by the file's numbers of scales, and by the config."""
    numbers = tensors.get("lvl_1L")
    said = config.get("patch_nums", config.get("v_patch_nums"))
    sides: list[int] = []
    if numbers is not None:
        sides = [math.isqrt(count) for count in numbers.unique(return_counts=True)[1].tolist()]
    elif isinstance(said, (list, tuple)) and said and all(type(side) is int for side in said):
        sides = list(said)
    else:
        raise ValueError(f"{path} has no lvl_1L, which tells its scales: give a config with patch_nums, [1, 2, 4] say")
    count = wanted(tensors, "pos_1LC", path).shape[-2]
    if count != sum(side * side for side in sides) or 0 in sides:
        raise ValueError(f"{path}: scales of sides {sides} have not the {count} places of pos_1LC")
    agree({"patch_nums": said}, {"patch_nums": tuple(sides)}, path)
    return tuple((side, side) for side in sides)


def _own_book(path: Path, sides: tuple[tuple[int, int], ...]) -> Book:
    """The quantizer of the tokenizer that a checkpoint of the training holds beside the transformer."""
    try:
        tokenizer = var.convert(path, {"v_patch_nums": [side for side, _ in sides]})
    except ValueError:
        raise ValueError(
            f"{path} holds the transformer alone, which is fed the vectors of its tokenizer's codes: give that too, "
            "with --tokenizer"
        ) from None
    return Book(tokenizer.config.quantizer, tokenizer.quantizer.state_dict())
