"""What the page shows: tokenizers and priors by name, each opened once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import prior.models
from prior.cli.opening import Opened, open_priors
from tokenizers_vq import folders
from tokenizers_vq.config import nearest
from tokenizers_vq.evaluation.codecs import TokenizerCodec
from tokenizers_vq.models import find, list_models
from tokenizers_vq.verbs.compare import short_names
from tokenizers_vq.verbs.opening import open_encoder


class Models(NamedTuple):
    """What is open, by the names that the page shows."""

    tokenizers: dict[str, TokenizerCodec]
    """those that were named, then those of the priors"""
    priors: dict[str, Opened]
    """each with its tokenizer; priors of some grids each are one chain"""


def open_models(names: Sequence[str] = (), *, device: str = "auto", precision: str = "auto") -> Models:
    """Tokenizers and priors: runs, saved folders, shipped or published names, owner/name; none named: all shipped.

    The tokenizer of a prior is there too. Raises what `load` raises.
    """
    names = list(dict.fromkeys(names)) or [*list_models("shipped"), *prior.models.list_models("shipped")]
    of_priors = [name for name in names if names_prior(name)]
    given = [name for name in names if name not in of_priors]
    tokenizers: dict[str, TokenizerCodec] = {}
    for short, name in zip(short_names(given), given, strict=True):
        encoder = open_encoder(name, device, precision)
        tokenizers[short] = TokenizerCodec(encoder.tokenizer, short, encoder.autocast)
    priors = _open_priors(of_priors, device)
    known = {codec.tokenizer.fingerprint for codec in tokenizers.values()}
    for opened in priors.values():
        fingerprint = opened.settings["fingerprint"]
        if fingerprint not in known:
            known.add(fingerprint)
            name = short_names([*tokenizers, str(opened.settings["tokenizer"])])[-1]
            tokenizers[name] = TokenizerCodec(opened.tokenizer, name)
    return Models(tokenizers, priors)


def names_prior(name: str) -> bool:
    """Whether a name is a prior's: a folder, a shipped or published one, or one of the Hub, which is downloaded.

    Raises `FileNotFoundError` or `ValueError` for what is neither a prior nor a tokenizer.
    """
    folder, priors = folders.local(name), [*prior.models.list_models("shipped"), *prior.models.list_models("published")]
    if folder is None:
        if name in priors:
            return True
        if name in list_models("shipped") or name in list_models("published"):
            return False
        if "did you mean" in (hint := nearest(name, priors)):
            raise FileNotFoundError(f"no model is called '{name}'{hint}")
        folder = find(name)
    try:
        folders.read_config(folder, "prior")
    except ValueError:
        folders.read_config(folder)  # damaged, it is neither
        return False
    return True


def _open_priors(names: Sequence[str], device: str) -> dict[str, Opened]:
    groups: dict[str, list[str]] = {}
    for short, name in zip(short_names(names), names, strict=True):
        config = folders.read_config(prior.models.find_model(name), "prior")
        chain = None if config.get("grids") is None else f"chain {config.get('fingerprint')}"
        groups.setdefault(chain or short, []).append(name)
    opened = {}
    for short, group in groups.items():
        opened[" + ".join(short_names(group)) if len(group) > 1 else short] = open_priors(group, None, device)
    return opened
