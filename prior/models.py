"""Priors by name: presets to train, shipped ones, run and saved folders, the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from prior import model
from prior.conditions import ConditionConfig
from prior.model import Prior, PriorConfig, load_folder
from prior.sequences import LayoutConfig
from tokenizers_vq import folders
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.config import nearest, parse, read_yaml

PRESETS = Path(__file__).parent / "presets"


def list_models(kind: str = "preset") -> list[str]:
    """Sorted names: of `preset`s that `create` takes, or `shipped` priors that `load` takes.

    Raises `ValueError` for another kind.
    """
    if kind == "preset":
        return sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if kind == "shipped":
        return folders.shipped(model.WEIGHTS)
    raise ValueError(f"no kind of model '{kind}'{nearest(kind, ('preset', 'shipped'))}")


def create(
    preset: str, layout: CodeLayout, condition: ConditionConfig | dict[str, Any] | None = None, **fields: Any
) -> Prior:
    """An untrained prior of a preset's size for a layout. `fields`: tokenizer, fingerprint, label_names.

    Raises `ValueError` for an unknown preset, with the nearest name.
    """
    if preset not in list_models():
        raise ValueError(f"no preset '{preset}' of a prior{nearest(preset, list_models())}")
    data = read_yaml(PRESETS / f"{preset}.yaml")
    if condition is not None:
        data["condition"] = condition
    return Prior(parse(PriorConfig, {**data, "layout": LayoutConfig.of(layout), **fields}, f"preset {preset}"))


def load(name: Path | str, *, device: str | torch.device | None = None) -> Prior:
    """A prior from a folder (of a run: its `model/`), the name of a shipped one, or a Hub repository `owner/name`.

    float32, in eval mode. Raises `FileNotFoundError` where nothing is there, `ValueError` where a file is damaged, its
    tensors do not fit the config, or a tokenizer is there.
    """
    prior = load_folder(find_model(name))
    return prior if device is None else prior.to(device)


def find_model(name: str | Path, **options: Any) -> Path:
    """The folder that `load(name)` reads, downloaded from the Hub where it must be, with the options of a download."""
    from tokenizers_vq.models import list_models as tokenizers

    try:
        return folders.find(name, model.WEIGHTS, "prior", **options)
    except FileNotFoundError:
        if str(name) in tokenizers("shipped"):
            problem = "is a tokenizer, where a prior is wanted: give it to tokenizers_vq.load or `tvq`"
        elif str(name) in list_models():
            problem = "is a preset without trained weights: train it first, or use prior.create"
        else:
            raise
    raise ValueError(f"'{name}' {problem}")
