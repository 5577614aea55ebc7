"""The layouts of published priors: which module reads one, how its files are known, what they are wrapped in."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

from tokenizers_vq.config import nearest


class Source(NamedTuple):
    """One published layout."""

    module: str
    """the module of this package that reads it: `read(given: Given) -> Converted`"""
    mark: str
    """regular expression of a key that other layouts lack"""
    wrappers: tuple[str, ...] = ()
    """where its files keep the tensors, tried before the names that all training frameworks use"""


SOURCES: dict[str, Source] = {
    "halton-maskgit": Source("halton_maskgit", r"last_norm\.norm_final\.", ("model_state_dict",)),
    "llamagen-gpt": Source("llamagen_gpt", r"layers\.\d+\.attention\.wqkv\.|cls_embedding\."),
    "maskgit-transformer": Source("maskgit_transformer", r"model\.embeddings\.word_embeddings\.|in_blocks\.\d+\."),
    "pixelcnn": Source("pixelcnn", r"layers\.\d+\.vert_stack\.|(horizontal|vertical)\.conv\.conv\."),
    "rar": Source("rar", r"target_aware_pos_embed$"),
    "rq-transformer": Source("rq_transformer", r"(body|head)_transformer\.blocks\.\d+\."),
    "taming-gpt": Source("taming_gpt", r"(?:transformer\.)?blocks\.\d+\.attn\.(?:query|key)\.|transformer\.tok_emb\."),
    "var-transformer": Source("var_transformer", r"(trainer\.var_wo_ddp\.)?pos_1LC$", ("trainer", "var_wo_ddp")),
}
"""`convert`'s source -> how it is read"""


def module(source: str) -> Any:
    """The module that reads a source. Raises `ValueError` for an unknown one, with those there are."""
    if source not in SOURCES:
        raise ValueError(f"no source of priors '{source}'{nearest(source, sorted(SOURCES))}")
    return importlib.import_module(f"prior.conversion.{SOURCES[source].module}")
