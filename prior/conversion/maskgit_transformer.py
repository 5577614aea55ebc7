"""TiTok's generators as 1d-tokenizer publishes them: MaskGIT in BERT (`ImageBert`), or a U-ViT (`UViTBert`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from prior.conditions import ClassConfig
from prior.conversion.base import Converted, Given
from prior.conversion.keys import depth, stack
from prior.networks.maskgit import MaskGitConfig
from prior.networks.uvit import UvitConfig
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.conversion.checkpoint import expect
from tokenizers_vq.conversion.given import number, part, whole
from tokenizers_vq.conversion.keys import Renamed, rekey, rename, skip
from tokenizers_vq.conversion.maskgit import wanted
from tokenizers_vq.conversion.vqgan_keys import agree

HEADS, WIDTHS = 16, (768, 1024)  # of all published models
_FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_seq_len", "condition_num_classes")
_BERT = [
    (r"^model\.embeddings\.LayerNorm\.", "network.norm."),
    (r"^model\.lm_head\.", "network.head."),
    (r"^model\.encoder\.layer\.", "network.blocks."),
    (r"\.attention\.self\.", "."),
    (r"\.attention\.output\.dense\.", ".out."),
    (r"\.attention\.output\.LayerNorm\.", ".attention_norm."),
    (r"\.intermediate\.dense\.", ".up."),
    (r"\.output\.dense\.", ".down."),
    (r"\.output\.LayerNorm\.", ".mlp_norm."),
]


_UVIT = [
    (r"^(norm|lm_head)\.", r"network.\1."),
    (r"^network\.lm_head\.", "network.head."),
    (r"\.norm1\.", ".attention_norm."),
    (r"\.norm2\.", ".mlp_norm."),
    (r"\.attn\.qkv\.", ".qkv."),
    (r"\.attn\.proj\.", ".out."),
    (r"\.mlp\.fc1\.", ".up."),
    (r"\.mlp\.fc2\.", ".down."),
]


def read(given: Given) -> Converted:
    """The prior of a plain state dict; its table holds the codes, the mask, the classes and the null class.

    Sizes are read from the keys; heads stand in the config alone (`model.generator.num_attention_heads`): without, the
    16 of the published widths. Raises `ValueError` for a config that contradicts the keys.
    """
    expect(given.config, _generator(given), _FIELDS, given.path)
    uvit = any(re.match(r"(?:in|mid|out)_blocks?\.", key) for key in given.tensors)
    agree(_generator(given), {"model_type": "UViT" if uvit else "ViT"}, given.path)
    return _uvit(given) if uvit else _vit(given)


def _vit(given: Given) -> Converted:
    tensors, path = skip(given.tensors, r"model\.embeddings\.position_ids$", "numbers of the places"), given.path
    names = [f"model.embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type")]
    table, positions, types = (wanted(tensors, name, path) for name in names)
    mlp = wanted(tensors, "model.encoder.layer.0.intermediate.dense.weight", path).shape[0]
    layers = depth(tensors, r"model\.encoder\.layer\.")
    rest = {key: tensor for key, tensor in tensors.items() if key not in names}
    ours = stack(rename(rest, _BERT), ("query", "key", "value"), "qkv")
    # A type of token, always the first, is added at every place.
    tables = _Tables(table, positions + types[0], wanted(tensors, "model.lm_head.weight", path).shape[0])
    sizes = {"num_hidden_layers": layers, "intermediate_size": mlp}
    network = MaskGitConfig(layers=layers, **_shared(given, table.shape[1]))
    return _converted(given, network, tables, ours, sizes)


def _uvit(given: Given) -> Converted:
    tensors, path = given.tensors, given.path
    table, positions = (wanted(tensors, name, path) for name in ("embeddings.weight", "pos_embed"))
    mlp = wanted(tensors, "mid_block.mlp.fc1.weight", path).shape[0]
    half = depth(tensors, r"in_blocks\.")

    def numbered(key: str) -> str:
        key = re.sub(r"^in_blocks\.", "network.blocks.", re.sub(r"^mid_block\.", f"network.blocks.{half}.", key))
        key = re.sub(r"^out_blocks\.(\d{1,6})\.skip_linear\.", r"network.skips.\1.", key)
        return re.sub(r"^out_blocks\.(\d{1,6})\.", lambda match: f"network.blocks.{half + 1 + int(match[1])}.", key)

    rest = {key: tensor for key, tensor in tensors.items() if key not in ("embeddings.weight", "pos_embed")}
    ours = rename(rekey(rest, numbered), _UVIT)
    tables = _Tables(table, positions.flatten(0, -2), wanted(tensors, "lm_head.weight", path).shape[0])
    # Of an even number of layers it has one more than it says.
    said = whole(_generator(given), "num_hidden_layers", 2 * half)
    sizes = {"num_hidden_layers": said if said // 2 == half else 2 * half, "intermediate_size": mlp}
    network = UvitConfig(layers=2 * half + 1, hidden=mlp, **_shared(given, table.shape[1]))
    return _converted(given, network, tables, ours, sizes)


class _Tables(NamedTuple):
    words: Tensor
    """`(K + C + 2, D)`: the codes, the mask, the classes, the null class"""
    positions: Tensor
    """`(1 + N, D)`: of the class, of the codes"""
    codes: int
    """K"""


def _converted(
    given: Given, network: MaskGitConfig | UvitConfig, tables: _Tables, ours: Renamed, sizes: Mapping[str, int]
) -> Converted:
    """The two tables taken apart, and the config held to what the tensors tell."""
    words, positions, codes = tables
    places, classes = positions.shape[0] - 1, words.shape[0] - codes - 2
    if places < 1 or classes < 1 or words.shape[1] != positions.shape[1]:
        raise ValueError(
            f"tables of {tuple(words.shape)} and {tuple(positions.shape)} hold no {codes} codes, a mask and classes"
        )
    _check(given, {**sizes, "hidden_size": words.shape[1], "condition_num_classes": classes}, codes, places)
    ours["network.tokens.weight"] = words[: codes + 1]
    ours["network.positions"] = positions[1:]
    ours["condition.classes.weight"] = words[codes + 1 :] + positions[0]
    dropout = number(_generator(given), "class_label_dropout", 0.1)
    return Converted(
        network, ClassConfig(num_classes=classes, dropout=dropout), CodeLayout(((places,),), 1, (codes,)), ours
    )


def _shared(given: Given, dim: int) -> dict[str, Any]:
    """Fields that both networks have."""
    made = _generator(given)
    if made.get("num_attention_heads") is None and dim not in WIDTHS:
        raise ValueError(
            f"the number of heads of a network of width {dim} (model.generator.num_attention_heads) stands in the "
            "config alone: give it"
        )
    heads, dropout = whole(made, "num_attention_heads", HEADS), number(made, "dropout", 0.1)
    return {"dim": dim, "heads": heads, "dropout": dropout, "schedule": "arccos"}


def _generator(given: Given) -> Mapping[str, Any]:
    """The config's part that describes the network."""
    return part(part(given.config, "model"), "generator")


def _check(given: Given, sizes: Mapping[str, int], codes: int, places: int) -> None:
    """Raises `ValueError` where the config contradicts what the tensors tell."""
    book = part(part(given.config, "model"), "vq_model")
    agree(_generator(given), sizes, given.path)
    agree(book, {"codebook_size": codes}, given.path)
    length = _generator(given).get("image_seq_len")
    if isinstance(length, str) and "num_latent_tokens" in length:  # OmegaConf's reference, unresolved
        length = book.get("num_latent_tokens")
    agree({"image_seq_len": length}, {"image_seq_len": places}, given.path)
