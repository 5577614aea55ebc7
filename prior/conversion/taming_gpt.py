"""taming-transformers' Net2NetTransformer (arXiv 2012.09841): a GPT over [condition, codes] in one vocabulary."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prior.conditions import ClassConfig, ConditionConfig, ImageConfig, NoneConfig
from prior.conversion.base import Converted, Given
from prior.conversion.grids import grid_of
from prior.conversion.keys import depth, stack
from prior.networks.gpt import GptConfig
from prior.sequences import LayoutConfig
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.conversion.checkpoint import below, expect
from tokenizers_vq.conversion.given import number, part, whole
from tokenizers_vq.conversion.keys import rename, skip
from tokenizers_vq.conversion.maskgit import wanted
from tokenizers_vq.conversion.vqgan_keys import agree

TRANSFORMER = "transformer."
_RULES = [
    (r"^blocks\.", "network.blocks."),
    (r"\.ln1\.", ".attention_norm."),
    (r"\.ln2\.", ".mlp_norm."),
    (r"\.attn\.proj\.", ".out."),
    (r"\.attn\.", "."),
    (r"\.mlp\.0\.", ".up."),
    (r"\.mlp\.2\.", ".down."),
    (r"^ln_f\.", "network.norm."),
    (r"^head\.", "network.head."),
]


class _Lengths(NamedTuple):
    prefix: int
    """places of the condition"""
    codes: int
    """places of the codes"""


def read(given: Given) -> Converted:
    """The prior below `transformer.` of a Lightning file; its config alone says what stands before the codes.

    Condition and codes share one table of vectors and one of positions there; here the condition has copies of its
    rows. Raises `ValueError` without a config, for a permuted order, and where config and tensors disagree.
    """
    params = part(part(given.config, "model"), "params") or given.config
    made = part(part(params, "transformer_config"), "params")
    if not made:
        raise ValueError("heads and condition are not in the file: give its config (model.params.transformer_config)")
    expect(given.config, made, ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"), given.path)
    _refuse_permuted(params)
    tensors = _transformer(given)
    words, places = (wanted(tensors, name, given.path) for name in ("tok_emb.weight", "pos_emb"))
    places = places.float().flatten(0, -2)
    kind = _kind(params)
    lengths = _lengths(kind, len(places), given.layout)
    opened = _opened(tensors, lengths.prefix)
    tensors = {key: tensor for key, tensor in tensors.items() if not key.endswith(".attn.mask")}
    tables = {"tok_emb.weight", "pos_emb"}
    rest = {key: tensor for key, tensor in tensors.items() if key not in tables}
    ours = stack(rename(rest, _RULES), ("query", "key", "value"), "qkv")
    network = _network(given, tensors, params, made)
    sizes = {"vocab_size": len(words), "block_size": len(places), "n_layer": network.layers, "n_embd": network.dim}
    agree(made, sizes, given.path)
    condition, told = _condition(kind, params, words.float(), places[: lengths.prefix])
    first, last = lengths.prefix, lengths.prefix + lengths.codes
    own = places[first:last]
    ours |= {"network.tokens.weight": words, **told}
    # The last code is never read, so a table may lack its place.
    ours["network.positions"] = torch.cat((own, own.new_zeros(lengths.codes - len(own), own.shape[1])))
    layout = CodeLayout((grid_of(lengths.codes, given.layout),), 1, (len(words),))
    return Converted(network.replace(open_prefix=opened), condition, layout, ours)


def _transformer(given: Given) -> dict[str, Tensor]:
    tensors = given.tensors
    if any(key.startswith(TRANSFORMER) for key in tensors):
        tensors = skip(tensors, rf"(?!{re.escape(TRANSFORMER)})", "they belong to the tokenizers below the transformer")
        tensors = below(tensors, TRANSFORMER)
    return dict(tensors)


def _refuse_permuted(params: Mapping[str, Any]) -> None:
    named = str(part(params, "permuter_config").get("target", "Identity"))
    if not named.endswith("Identity"):
        raise ValueError(f"its codes stand in another order ({named}); raster order alone is read")


def _kind(params: Mapping[str, Any]) -> str:
    """What stands before the codes: "none", "class" or "codes"."""
    stage = params.get("cond_stage_config")
    if stage == "__is_unconditional__" or params.get("unconditional"):
        return "none"
    if stage == "__is_first_stage__":
        return "codes"
    target = str(part(params, "cond_stage_config").get("target", ""))
    if not target:
        raise ValueError("its config has no cond_stage_config, which says what stands before the codes")
    return "class" if target.endswith(("Labelator", "ClassProvider")) else "codes"


def _lengths(kind: str, places: int, made: CodeLayout | None) -> _Lengths:
    """Places of condition and codes, of a table of positions: it may lack the last code's, or have it."""
    if kind == "codes":
        codes = places // 2 if made is None else made.length
        if not 0 < codes < places:
            raise ValueError(f"{codes} codes and a condition do not fit into {places} places")
        return _Lengths(places - codes, codes)
    if made is not None and made.length in (places, places - 1):
        return _Lengths(1, made.length)
    return _Lengths(1, places - 1 if math.isqrt(places - 1) ** 2 == places - 1 else places)


def _opened(tensors: Mapping[str, Tensor], prefix: int) -> bool:
    """Whether the condition's places see each other, by the masks in the file. Raises `ValueError` for other masks."""
    for key, mask in tensors.items():
        if not key.endswith(".attn.mask"):
            continue
        square = mask.flatten(0, -2)
        if square.shape[0] != square.shape[-1]:
            raise ValueError(f"{key} is {tuple(mask.shape)}, expected a square")
        opened = bool(square[0].sum() > 1)
        wanted_mask = torch.ones_like(square).tril()
        if opened:
            wanted_mask[:prefix, :prefix] = 1
        if not torch.equal(square, wanted_mask):
            raise ValueError(f"{key} is neither causal nor open over the {prefix} places of the condition (n_unmasked)")
        return opened
    return False


def _network(
    given: Given, tensors: Mapping[str, Tensor], params: Mapping[str, Any], made: Mapping[str, Any]
) -> GptConfig:
    return GptConfig(
        layers=depth(tensors, r"blocks\."),
        dim=wanted(tensors, "tok_emb.weight", given.path).shape[1],
        heads=whole(made, "n_head", 8),
        hidden=wanted(tensors, "blocks.0.mlp.0.weight", given.path).shape[0],
        norm="layer",
        mlp="gelu",
        bias=True,
        positions="learned",
        token_dropout=number(made, "embd_pdrop", 0.0),
        token_noise=1 - number(params, "pkeep", 1.0),
        residual_dropout=number(made, "resid_pdrop", 0.0),
        attention_dropout=number(made, "attn_pdrop", 0.0),
    )


def _condition(
    kind: str, params: Mapping[str, Any], words: Tensor, places: Tensor
) -> tuple[ConditionConfig, dict[str, Tensor]]:
    """The condition and its tensors, from the table of vectors and the positions of its places."""
    if kind == "none":
        sos = whole(params, "sos_token", 0)
        if not 0 <= sos < len(words):
            raise ValueError(f"the config's sos_token {sos} is none of {len(words)} codes")
        return NoneConfig(), {"condition.begin": words[sos] + places[0]}
    if kind == "class":
        classes = whole(part(part(params, "cond_stage_config"), "params"), "n_classes", len(words))
        if not 0 < classes <= len(words):
            raise ValueError(f"the config's n_classes {classes} do not fit into a table of {len(words)}")
        # It was never trained without a class: what stands for none is never read.
        table = torch.cat((words[:classes] + places[0], torch.zeros_like(places[:1])))
        return ClassConfig(num_classes=classes, dropout=0.0), {"condition.classes.weight": table}
    layout = LayoutConfig(grids=(grid_of(len(places), None),), levels=1, sizes=(len(words),))
    # What is told where there is no picture was never trained, and is never read.
    table = torch.cat((words, torch.zeros_like(places[:1])))
    told = {"condition.tokens.weight": table, "condition.places": places}
    return ImageConfig(layout=layout, dropout=0.0), told
