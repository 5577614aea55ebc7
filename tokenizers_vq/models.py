"""Models by name: presets to train, shipped ones, published ones, run and saved folders, the Hub."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from tokenizers_vq import folders, tokenizer
from tokenizers_vq.config import apply_overrides, nearest, read_yaml
from tokenizers_vq.conversion import catalogue
from tokenizers_vq.hierarchical import HierarchicalConfig
from tokenizers_vq.tokenizer import Tokenizer, TokenizerConfig, load_folder, read_tokenizer_config

Kind = Literal["preset", "shipped", "published"]
PRESETS = Path(__file__).parent / "presets" / "models"


def create(preset: str | TokenizerConfig | HierarchicalConfig, overrides: Sequence[str] = ()) -> Tokenizer:
    """An untrained tokenizer from a preset's name (`list_models("preset")`) or a config.

    `overrides` are `path=value` strings, such as `quantizer.num_codes=512`. Raises `ValueError` for unknown names.
    """
    if isinstance(preset, str):
        return preset_config(preset, overrides).build()
    if not isinstance(preset, (TokenizerConfig, HierarchicalConfig)):
        raise ValueError(f"create takes a preset's name or a config, got {type(preset).__name__}")
    config = read_tokenizer_config(apply_overrides(preset.to_dict(), overrides)) if overrides else preset
    return config.build()


def preset_config(name: str, overrides: Sequence[str] = ()) -> TokenizerConfig | HierarchicalConfig:
    """The config of a model preset with `path=value` overrides. Raises `ValueError` with near names."""
    if name not in list_models("preset"):
        raise ValueError(f"no model preset '{name}'{nearest(name, list_models('preset'))}")
    return read_tokenizer_config(apply_overrides(read_yaml(PRESETS / f"{name}.yaml"), overrides), f"preset {name}")


def load(name: str | Path, *, device: str | torch.device | None = None) -> Tokenizer:
    """A trained tokenizer, float32 in eval mode, by the first that fits of: a run or saved folder, a shipped name, a
    published one (`list_models("published")`, downloaded and converted once), a Hub `owner/name`.

    Raises `ValueError` or `FileNotFoundError` with what to do next, for weights that only their publisher's page has
    as well.
    """
    loaded = load_folder(find(name))
    return loaded if device is None else loaded.to(device)


def find(name: str | Path) -> Path:
    """The folder that `load(name)` reads. Raises as `load` does."""
    text = str(name)
    if (
        isinstance(name, (str, Path))
        and folders.local(name) is None
        and text not in list_models("shipped")
        and text in catalogue.entries()  # last: reading it takes longer than loading a small model
    ):
        from tokenizers_vq.conversion.download import fetch  # what converts takes seconds to import

        return fetch(text)
    try:
        return folders.find(name, tokenizer.WEIGHTS, "tokenizer")
    except FileNotFoundError as error:
        if text in list_models("preset"):
            problem = "is a preset without trained weights"
            raise ValueError(f"'{text}' {problem}: use create('{text}'), or train it first") from None
        if is_prior(text):
            raise ValueError(
                f"'{text}' is a prior, expected a tokenizer: give it to prior.load or `tvq-prior`"
            ) from None
        near = nearest(text, catalogue.entries())
        if "did you mean" not in near or "did you mean" in str(error):
            raise
        raise FileNotFoundError(f"{error}{near}") from None


def is_prior(name: str) -> bool:
    """Whether a prior of that name comes with the package `prior`, which is not imported for it."""
    spec = importlib.util.find_spec("prior")
    places = [] if spec is None else spec.submodule_search_locations or []
    return any(name in folders.shipped(Path(place) / "weights") for place in places)


def list_models(kind: Kind = "preset") -> list[str]:
    """Sorted names: of presets (for `create`), of shipped models or of published ones (both for `load`).

    Raises `ValueError` for another kind.
    """
    if kind == "preset":
        return sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if kind == "shipped":
        return folders.shipped(tokenizer.WEIGHTS)
    if kind == "published":
        return sorted(catalogue.entries())
    raise ValueError(f"no kind of models '{kind}'{nearest(kind, ('preset', 'shipped', 'published'))}")
