"""LlamaGen's transformers (arXiv 2406.06525), told a class or a text: `c2i_*.pt`, `t2i_*.pt`, `consolidated.pth`."""

from __future__ import annotations

from torch import Tensor

from prior.conditions import ClassConfig, ConditionConfig, TextEncoderConfig
from prior.conversion.base import Converted, Given
from prior.conversion.grids import grid_of
from prior.conversion.keys import depth, stack
from prior.networks.gpt import GptConfig
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.conversion.checkpoint import expect
from tokenizers_vq.conversion.given import number, whole
from tokenizers_vq.conversion.keys import Renamed, rename, skip
from tokenizers_vq.conversion.maskgit import wanted
from tokenizers_vq.conversion.vqgan_keys import agree

HEADS = {768: 12, 1024: 16, 1280: 20, 1536: 24, 3200: 32}
"""by width, of the published sizes"""
_RULES = [
    (r"^tok_embeddings\.", "network.tokens."),
    (r"^layers\.", "network.blocks."),
    (r"\.attention\.wqkv\.", ".qkv."),
    (r"\.attention\.wo\.", ".out."),
    (r"\.feed_forward\.w2\.", ".down."),
    (r"\.feed_forward\.", "."),
    (r"\.ffn_norm\.", ".mlp_norm."),
    (r"^norm\.", "network.norm."),
    (r"^output\.", "network.head."),
    (r"^cls_embedding\.embedding_table\.", "condition.classes."),
    (r"^cls_embedding\.uncond_embedding$", "condition.null"),
    (r"^cls_embedding\.cap_proj\.fc1\.", "condition.project.0."),
    (r"^cls_embedding\.cap_proj\.fc2\.", "condition.project.2."),
]
ENCODER = "google/flan-t5-xl"
"""whose features all its published text models are told"""
_FIELDS = ("dim", "n_layer", "n_head", "vocab_size", "block_size", "num_classes", "model_type", "cls_token_num")


def read(given: Given) -> Converted:
    """The prior of LlamaGen's own keys. The last class is the null class; a text is told as features of flan-t5-xl.

    Neither heads nor the number of codes stand in the tensors: heads are those of the published sizes, the codes those
    of the named tokenizer, or as the config says (`n_head`, `block_size`). Raises `ValueError` where nothing says them,
    and for a config that contradicts the tensors.
    """
    expect(given.config, given.config, _FIELDS, given.path)
    tensors = skip(given.tensors, r"freqs_cis$|causal_mask$", "tables that are computed here")
    tensors = skip(tensors, r".*\.attention\.kv_cache\.", "its caches of drawing")
    vocabulary, dim = wanted(tensors, "tok_embeddings.weight", given.path).shape
    layers = depth(tensors, r"layers\.")
    ours = stack(rename(tensors, _RULES), ("w1", "w3"), "gate_up")
    found = {"dim": dim, "n_layer": layers, "vocab_size": vocabulary}
    agree(given.config, found, given.path)
    network = GptConfig(
        layers=layers,
        dim=dim,
        heads=_heads(given, dim),
        hidden=wanted(tensors, "layers.0.feed_forward.w1.weight", given.path).shape[0],
        positions="llamagen",
        base=number(given.config, "rope_base", 10000.0),
        token_dropout=number(given.config, "token_dropout_p", 0.1),
        residual_dropout=number(given.config, "resid_dropout_p", 0.1),
        eps=number(given.config, "norm_eps", 1e-5),
    )
    layout = CodeLayout((grid_of(_length(given), given.layout),), 1, (vocabulary,))
    return Converted(network, _condition(given, ours), layout, ours)


def _condition(given: Given, ours: Renamed) -> ConditionConfig:
    dropout = number(given.config, "class_dropout_prob", 0.1)
    if (null := ours.get("condition.null")) is not None:
        if null.ndim != 2:
            raise ValueError(f"cls_embedding.uncond_embedding is {tuple(null.shape)}, expected a vector a token")
        length, width = null.shape
        agree(given.config, {"cls_token_num": length, "caption_dim": width, "model_type": "t2i"}, given.path)
        return TextEncoderConfig(encoder=ENCODER, length=length, width=width, dropout=dropout, null_padding=True)
    table: Tensor | None = ours.get("condition.classes.weight")
    if table is None or table.ndim != 2 or len(table) < 2:
        raise ValueError("cls_embedding holds neither vectors of classes nor of a text: it is of another layout")
    agree(given.config, {"num_classes": len(table) - 1, "model_type": "c2i"}, given.path)
    return ClassConfig(num_classes=len(table) - 1, dropout=dropout)


def _heads(given: Given, dim: int) -> int:
    heads = whole(given.config, "n_head", HEADS.get(dim, 0))
    if heads < 1:
        raise ValueError(f"the number of heads of a width of {dim} is not in the file: give a config with n_head")
    return heads


def _length(given: Given) -> int:
    """Codes of one image."""
    if given.config.get("block_size") is None and given.layout is not None:
        return given.layout.length
    length = whole(given.config, "block_size", 0)
    if length < 1:
        raise ValueError(
            "how many codes an image has is not in the file: give its tokenizer, or a config with block_size, such as "
            "256 (16x16) or 576 (24x24)"
        )
    return length
