"""Models by name: presets to train, shipped ones, published ones, run and saved folders, the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from tokenizers_vq import folders, tokenizer
from tokenizers_vq.config import nearest
from tokenizers_vq.conversion import catalogue
from tokenizers_vq.tokenizer import Tokenizer

Kind = Literal["preset", "shipped", "published"]


def load(name: str | Path, *, device: str | torch.device | None = None) -> Tokenizer:
    """A trained tokenizer, float32 in eval mode, by the first that fits of: a run or saved folder, a shipped name, a
    published one (`list_models("published")`, downloaded and converted once), a Hub `owner/name`.

    Raises `ValueError` or `FileNotFoundError` with what to do next, for weights that only their publisher's page has
    as well.
    """
    loaded = tokenizer.load_folder(find(name))
    return loaded if device is None else loaded.to(device)


def find(name: str | Path) -> Path:
    """The folder that `load(name)` reads. Raises as `load` does."""
    text = str(name)
    if folders.local(name) is None and text in catalogue.entries() and text not in folders.shipped(tokenizer.WEIGHTS):
        return catalogue.fetch(text)
    try:
        return tokenizer.find_model(name)
    except FileNotFoundError as error:
        near = nearest(text, catalogue.entries())
        if "did you mean" not in near or "did you mean" in str(error):
            raise
        raise FileNotFoundError(f"{error}{near}") from None


def list_models(kind: Kind = "preset") -> list[str]:
    """Sorted names: of presets (for `create`), of shipped models or of published ones (both for `load`).

    Raises `ValueError` for another kind.
    """
    if kind == "published":
        return sorted(catalogue.entries())
    if kind not in ("preset", "shipped"):
        raise ValueError(f"no kind of models '{kind}'{nearest(kind, ('preset', 'shipped', 'published'))}")
    return tokenizer.list_models(kind)
