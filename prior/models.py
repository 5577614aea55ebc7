"""Priors by name: presets to train, shipped ones, published ones, run and saved folders, the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import TypeAdapter

from prior import model
from prior.book import book_config, fill_book
from prior.conditions import ConditionConfig, GridsConfig, NoneConfig, beside
from prior.conversion import catalogue
from prior.model import Prior, PriorConfig, load_folder
from prior.networks import NetworkConfig
from prior.sequences import LayoutConfig
from tokenizers_vq import folders
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.config import nearest, parse, read_yaml

if TYPE_CHECKING:
    from tokenizers_vq.tokenizer import Tokenizer

PRESETS = Path(__file__).parent / "presets"


def list_models(kind: str = "preset") -> list[str]:
    """Sorted names: of `preset`s that `create` takes, of `shipped` or `published` priors that `load` takes.

    Raises `ValueError` for another kind.
    """
    if kind == "preset":
        return sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if kind == "shipped":
        return folders.shipped(model.WEIGHTS)
    if kind == "published":
        return sorted(catalogue.entries())
    raise ValueError(f"no kind of model '{kind}'{nearest(kind, ('preset', 'shipped', 'published'))}")


def create(
    preset: str,
    layout: CodeLayout | Tokenizer,
    condition: ConditionConfig | dict[str, Any] | None = None,
    **fields: Any,
) -> Prior:
    """An untrained prior of a preset's size for codes of a layout, or of a tokenizer.

    A network that is fed the vectors of codes (var, rq) needs the tokenizer. `fields`: tokenizer (its name),
    fingerprint. Raises `ValueError` for an unknown preset, with the nearest name, and for codes that it cannot take.
    """
    if preset not in list_models():
        raise ValueError(f"no preset '{preset}' of a prior{nearest(preset, list_models())}")
    data = read_yaml(PRESETS / f"{preset}.yaml")
    if condition is not None:
        data["condition"] = condition
    tokenizer = None if isinstance(layout, CodeLayout) else layout
    codes = layout if isinstance(layout, CodeLayout) else layout.code_layout()
    grids, given = data.pop("grids", None), data.pop("given", None)
    if grids is not None:
        data |= {"grids": tuple(grids), "whole": LayoutConfig.of(codes)}
        if given is not None:
            told = TypeAdapter(ConditionConfig).validate_python(data.get("condition", NoneConfig()))
            data["condition"] = beside(told, GridsConfig(**{**given, "layout": data["whole"]}))
        codes = codes.part(grids)
    if tokenizer is not None:
        network = TypeAdapter(NetworkConfig).validate_python(data["network"])
        data |= {"book": book_config(network, tokenizer), "fingerprint": tokenizer.fingerprint}
    made = Prior(parse(PriorConfig, {**data, "layout": LayoutConfig.of(codes), **fields}, f"preset {preset}"))
    fill_book(made, tokenizer)
    return made


def load(name: Path | str, *, device: str | torch.device | None = None) -> Prior:
    """A prior by the first that fits of: a run or saved folder, a shipped name, a published one, a Hub `owner/name`.

    A published one (`list_models("published")`) is downloaded and converted once, and so is its tokenizer. float32, in
    eval mode. Raises `FileNotFoundError` where nothing is there, saying what to fetch where only its publisher's page
    has the weights; `ValueError` where a file is damaged, its tensors do not fit the config, or a tokenizer is there.
    """
    prior = load_folder(find_model(name))
    return prior if device is None else prior.to(device)


def find_model(name: str | Path, **options: Any) -> Path:
    """The folder that `load(name)` reads, downloaded from the Hub where it must be, with the options of a download."""
    from tokenizers_vq.models import list_models as tokenizers

    text = str(name)
    if folders.local(name) is None and text in catalogue.entries() and text not in list_models("shipped"):
        from prior.conversion.download import fetch  # what converts takes seconds to import

        return fetch(text)
    try:
        return folders.find(name, model.WEIGHTS, "prior", **options)
    except FileNotFoundError as error:
        if text in (*tokenizers("shipped"), *tokenizers("published")):
            problem = "is a tokenizer, expected a prior: give it to tokenizers_vq.load or `tvq`"
        elif text in list_models():
            problem = "is a preset without trained weights: train it first, or use prior.create"
        else:
            near = nearest(text, catalogue.entries())
            if "did you mean" not in near or "did you mean" in str(error):
                raise
            raise FileNotFoundError(f"{error}{near}") from None
    raise ValueError(f"'{name}' {problem}")
