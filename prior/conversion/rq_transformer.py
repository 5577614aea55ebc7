"""RQ-Transformer as kakaobrain publishes it (rq-vae-transformer; arXiv 2203.01941)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from prior.conditions import ClassConfig, ConditionConfig, NoneConfig, TokensConfig
from prior.conversion.base import Converted, Given
from prior.conversion.keys import depth, stack
from prior.networks.rq import RqConfig
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.conversion.checkpoint import expect
from tokenizers_vq.conversion.given import number, part, whole, wholes
from tokenizers_vq.conversion.keys import rename, skip
from tokenizers_vq.conversion.maskgit import wanted
from tokenizers_vq.conversion.vqgan_keys import agree

HEAD_DIM = 64  # of all published sizes
_RULES = [
    (r"^input_mlp\.", "network.enter."),
    (r"^head_mlp\.", "network.enter_depth."),
    (r"^pos_emb_hw$", "network.positions"),
    (r"^pos_emb_d$", "network.level_positions"),
    (r"^body_transformer\.", "network."),
    (r"^head_transformer\.blocks\.", "network.depth_blocks."),
    (r"^classifier\.layer_norm\.", "network.head.norm."),
    (r"^classifier\.linear\.", "network.head."),
    (r"\.ln1\.", ".attention_norm."),
    (r"\.ln2\.", ".mlp_norm."),
    (r"\.attn\.proj\.", ".out."),
    (r"\.attn\.", "."),
    (r"\.mlp\.0\.", ".up."),
    (r"\.mlp\.2\.", ".down."),
]


def read(given: Given) -> Converted:
    """The prior of the published YAML's `arch`; without it, of published head widths and a square grid.

    The vectors that it is fed are in its tokenizer's file alone. The head that predicts the text of text-conditional
    models is left out. Raises `ValueError` for variants that no published model has: embeddings of its own, levels that
    are not summed.
    """
    arch = part(given.config, "arch") or given.config
    expect(given.config, arch, ("body", "head", "block_size", "embed_dim", "vocab_size"), given.path)
    _refuse_variants(arch, given)
    tensors = skip(given.tensors, r"cond_classifier\.", "they predict the text, not the picture")
    layout = _layout(tensors, arch, given)
    condition, told = _condition(tensors, arch, given)
    rest = {key: value for key, value in tensors.items() if key not in ("cond_emb.weight", "pos_emb_cond")}
    ours = rename(stack(rest, ("query", "key", "value"), "qkv"), _RULES)
    for name in ("network.positions", "network.level_positions"):
        ours[name] = ours[name].flatten(0, 1)
    shared = ours["network.head.weight"].ndim == 2
    if shared:
        ends = [key for key in ("network.head.weight", "network.head.bias") if key in ours]
        ours.update({key: ours[key][None] for key in ends})
    else:  # the reference keeps a level's matrix as (in, out)
        ours["network.head.weight"] = ours["network.head.weight"].transpose(1, 2).contiguous()
    if given.book is None:
        raise ValueError("it is fed the vectors of its tokenizer's codes: give that too, with --tokenizer")
    ours.update(told)
    return Converted(_network(tensors, arch, given, shared), condition, layout, ours, given.book)


def _refuse_variants(arch: Mapping[str, Any], given: Given) -> None:
    unlike = [name for name in ("input_emb_vqvae", "head_emb_vqvae", "cumsum_depth_ctx") if arch.get(name) is False]
    if any(key.startswith("tok_emb.") for key in given.tensors) or arch.get("use_padding_emb"):
        unlike.append("embeddings of codes of its own")
    if unlike:
        raise ValueError(f"{given.path}: {', '.join(unlike)}: no published model has it, it is not supported")


def _layout(tensors: Mapping[str, Tensor], arch: Mapping[str, Any], given: Given) -> CodeLayout:
    """Codes of the file's number of positions and levels, on the grid that the config or the tokenizer tells."""
    path = given.path
    positions, levels = (wanted(tensors, name, path).shape[-2] for name in ("pos_emb_hw", "pos_emb_d"))
    codes = wanted(tensors, "classifier.linear.weight", path)
    count = codes.shape[0] if codes.ndim == 2 else codes.shape[-1]
    side = math.isqrt(positions)
    grid = wholes(arch, "block_size", ())[:2] or (side, side)
    if given.layout is not None and not arch.get("block_size") and math.prod(given.layout.grids[0]) == positions:
        grid = given.layout.grids[0]
    if math.prod(grid) != positions:
        raise ValueError(
            f"{path} has {positions} positions, which a grid of {'x'.join(map(str, grid))} has not: give the config "
            "that belongs to it, with block_size"
        )
    sizes = arch.get("vocab_size")
    said = set(sizes) if isinstance(sizes, (list, tuple)) else {sizes} - {None}
    agree(arch, {"block_size": (*grid, levels)}, path)
    if said - {count}:
        raise ValueError(
            f"{path}: the config says vocab_size {sizes}, its tensors {count}: give the config of this model"
        )
    return CodeLayout((grid,), levels, (count,) * levels)


def _condition(
    tensors: Mapping[str, Tensor], arch: Mapping[str, Any], given: Given
) -> tuple[ConditionConfig, dict[str, Tensor]]:
    """The condition and its tensors by our keys; the place is part of each vector."""
    table, places = wanted(tensors, "cond_emb.weight", given.path), wanted(tensors, "pos_emb_cond", given.path)
    length, count = places.shape[-2], len(table)
    agree(arch, {"vocab_size_cond": count, "block_size_cond": length}, given.path)
    if table.shape[1] != places.shape[-1]:
        raise ValueError(
            f"cond_emb.weight is {tuple(table.shape)}, pos_emb_cond {tuple(places.shape)}: not of one width"
        )
    if length > 1:
        told = {"condition.tokens.weight": table, "condition.positions": places.flatten(0, -2)}
        return TokensConfig(vocabulary=count, length=length), told
    vectors = table + places.flatten(0, -2)
    if count == 1:
        return NoneConfig(), {"condition.begin": vectors[0]}
    # It was never trained without a class: the row of the null class is not used.
    return ClassConfig(num_classes=count, dropout=0), {"condition.classes.weight": F.pad(vectors, (0, 0, 0, 1))}


def _network(tensors: Mapping[str, Tensor], arch: Mapping[str, Any], given: Given, shared: bool) -> RqConfig:
    dim = wanted(tensors, "input_mlp.weight", given.path).shape[0]
    body, head = (part(part(arch, name), "block") for name in ("body", "head"))
    heads = whole(body, "n_head", 0 if dim % HEAD_DIM else dim // HEAD_DIM)
    layers, depth_layers = (depth(tensors, rf"{name}_transformer\.blocks\.") for name in ("body", "head"))
    agree(arch, {"embed_dim": dim}, given.path)
    for name, found in (("body", layers), ("head", depth_layers)):
        agree(part(arch, name), {"n_layer": found}, given.path)
    if heads < 1 or dim % heads:
        raise ValueError(f"{given.path} does not tell its number of heads, {dim} wide: give its config, with n_head")
    if (other := whole(head, "n_head", heads)) != heads:
        raise ValueError(f"{given.path}: {heads} heads in its body, {other} in its head: no published model has it")
    if layers < 1 or depth_layers < 1:
        raise ValueError(f"{given.path} has {layers} blocks in its body and {depth_layers} in its head: both need some")
    for block in (body, head):
        if (gelu := block.get("gelu", "v1")) != "v1":
            raise ValueError(f"{given.path}: gelu {gelu}: no published model has it, it is not supported")
    return RqConfig(
        layers=layers,
        depth_layers=depth_layers,
        dim=dim,
        heads=heads,
        shared_head=shared,
        token_dropout=number(arch, "embd_pdrop", 0.0),
        residual_dropout=number(body, "resid_pdrop", 0.1),
    )
