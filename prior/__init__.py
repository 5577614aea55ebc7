"""Priors: the distribution of a tokenizer's codes, for generating new images."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prior.chain import Chain
    from prior.conditions import ClassConfig, NoneConfig, TextConfig
    from prior.conversion import convert
    from prior.model import Prior, PriorConfig
    from prior.models import create, list_models, load
    from prior.sampling import Sampler

_HOMES = {
    "Chain": "prior.chain",
    "Prior": "prior.model",
    "PriorConfig": "prior.model",
    "convert": "prior.conversion",
    "create": "prior.models",
    "load": "prior.models",
    "list_models": "prior.models",
    "Sampler": "prior.sampling",
    "ClassConfig": "prior.conditions",
    "NoneConfig": "prior.conditions",
    "TextConfig": "prior.conditions",
}

__all__ = [
    "Chain",
    "ClassConfig",
    "NoneConfig",
    "Prior",
    "PriorConfig",
    "Sampler",
    "TextConfig",
    "convert",
    "create",
    "list_models",
    "load",
]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; it is paid for by what needs it.
    if name not in _HOMES:
        raise AttributeError(f"module 'prior' has no attribute '{name}'")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
