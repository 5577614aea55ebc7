"""Halton-MaskGIT's transformer as valeoai publishes it (arXiv 2503.17076)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prior.conditions import ClassConfig
from prior.conversion.base import Converted, Given
from prior.conversion.keys import depth, stack
from prior.networks.maskgit import MaskGitConfig
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.conversion.checkpoint import expect
from tokenizers_vq.conversion.given import number, part, whole
from tokenizers_vq.conversion.keys import rename
from tokenizers_vq.conversion.maskgit import wanted
from tokenizers_vq.conversion.vqgan_keys import agree

SIZES = {"tiny": (384, 6), "small": (512, 6), "base": (768, 12), "large": (1024, 16), "xlarge": (1152, 16)}
"""width and heads of the published sizes"""
_FIELDS = ("vit_size", "codebook_size", "nb_class", "img_size", "register", "mask_value", "transformer")
_RULES = [
    (r"^cls_emb\.", "condition.classes."),
    (r"^tok_emb\.", "network.tokens."),
    (r"^pos_emb\.weight$", "network.positions"),
    (r"^reg_tokens\.weight$", "network.registers"),
    (r"^head\.weight$", "network.head.weight"),
    (r"^head\.bias$", "network.head.bias"),
    (r"^last_norm\.mlp\.1\.", "network.last_norm.modulation."),
    (r"^transformer\.layers\.", "network.blocks."),
    (r"\.mlp\.1\.", ".modulation."),
    (r"\.ln1\.", ".attention_norm."),
    (r"\.ln2\.", ".mlp_norm."),
    (r"\.attn\.wo\.", ".out."),
    (r"\.ff\.w2\.", ".down."),
]


def read(given: Given) -> Converted:
    """The prior of a plain state dict. The logit of the mask, which is never drawn, is left out.

    Sizes are read from the keys; heads stand in the config alone (`transformer.heads`, or `vit_size`): without, they
    are those of the published model of this width. The last norm's own weights are folded into what the class does to
    it. Raises `ValueError` for a config that contradicts the keys.
    """
    config, path = given.config, given.path
    expect(config, config, _FIELDS, path)
    tensors = rename(given.tensors, _RULES)
    tensors = stack(tensors, ("attn.wq", "attn.wk", "attn.wv"), "qkv")
    tensors = stack(tensors, ("ff.w1", "ff.w3"), "gate_up")
    table, classes, positions = (
        wanted(tensors, name, path)
        for name in ("network.tokens.weight", "condition.classes.weight", "network.positions")
    )
    (rows, dim), side = table.shape, math.isqrt(len(positions))
    if side**2 != len(positions):
        raise ValueError(f"{path}: {len(positions)} positions fill no square, the only grid of this layout")
    registers = tensors.get("network.registers")
    network = _network(given, tensors, dim, 0 if registers is None else len(registers))
    _check(config, path, {"codebook_size": rows - 1, "nb_class": len(classes) - 1, "register": network.registers}, side)
    ours = tensors
    bias, head = ours.pop("network.head.bias")[:-1], ours.pop("network.head.weight")
    if network.tied:
        ours["network.head_bias"] = bias
    else:
        ours |= {"network.head.weight": head[:-1], "network.head.bias": bias}
    _fold(ours)
    condition = ClassConfig(num_classes=len(classes) - 1, dropout=number(config, "drop_label", 0.1))
    return Converted(network, condition, CodeLayout(((side, side),), 1, (rows - 1,)), ours)


def _network(given: Given, tensors: Mapping[str, Tensor], dim: int, registers: int) -> MaskGitConfig:
    config, path = given.config, given.path
    if whole(config, "proj", 1) != 1:
        raise ValueError(f"{path}: proj {config['proj']} of the config does not run in the reference either")
    size = str(config.get("vit_size", ""))
    named = SIZES[size][1] if size in SIZES and SIZES[size][0] == dim else dict(SIZES.values()).get(dim, 0)
    heads = whole(part(config, "transformer"), "heads", named)
    inner = wanted(tensors, "network.blocks.0.qkv.weight", path).shape[0] // 3
    if heads < 1 or (dim // heads) * heads != inner:
        raise ValueError(
            f"{path}: {heads or 'an unknown number of'} heads do not make {inner} channels of a width of {dim}: give "
            "the config with its transformer.heads"
        )
    head, table = wanted(tensors, "network.head.weight", path), tensors["network.tokens.weight"]
    if "network.head.bias" not in tensors or head.shape != table.shape:
        raise ValueError(f"{path}: its head is {tuple(head.shape)}, expected {tuple(table.shape)} and a bias")
    return MaskGitConfig(
        layers=depth(tensors, r"network\.blocks\."),
        dim=dim,
        heads=heads,
        head_dim=dim // heads,
        mlp="swiglu",
        norm="rms",
        norm_first=True,
        bias=False,
        qk_norm="width",
        registers=registers,
        tied=torch.equal(head, table),
        entry=("adaln",),
        dropout=number(config, "dropout", 0.1),
        eps=1e-5,
        schedule="arccos",
    )


def _check(config: Mapping[str, Any], path: Any, found: Mapping[str, int], side: int) -> None:
    """Raises `ValueError` where the config contradicts what the tensors tell."""
    agree(config, {**found, "mask_value": found["codebook_size"]}, path)
    if "img_size" in config and "f_factor" in config:
        said = whole(config, "img_size", 0) // max(whole(config, "f_factor", 1), 1)
        agree({"img_size / f_factor": said}, {"img_size / f_factor": side}, path)


def _fold(ours: dict[str, Tensor]) -> None:
    """The last norm's weight w and bias b: (n w + b) (1 + scale) + shift = n (1 + scale') + shift'."""
    norm, modulation = "network.last_norm.", "network.last_norm.modulation."
    names = [f"last_norm.norm_final.{name}" for name in ("weight", "bias")]
    if missing := [name for name in (*names, f"{modulation}weight", f"{modulation}bias") if name not in ours]:
        raise ValueError(f"missing {missing[0].removeprefix(norm)}")
    weight, bias = (ours.pop(name) for name in names)
    for name in ("weight", "bias"):
        shift, scale = ours[f"{modulation}{name}"].chunk(2)
        w, b = (weight[:, None], bias[:, None]) if name == "weight" else (weight, bias)
        one = 0 if name == "weight" else 1
        ours[f"{modulation}{name}"] = torch.cat((shift + b * (one + scale), w * (one + scale) - one))
