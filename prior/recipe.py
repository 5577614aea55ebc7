"""Recipes of priors: everything that makes a prior's training run, as one typed file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator
from typing_extensions import Self

from prior.conditions import ClassConfig, ConditionConfig, GridsConfig, NoneConfig, beside
from prior.models import PRESETS, list_models
from prior.networks import NetworkConfig
from tokenizers_vq.config import Config, ConfigError, Schedule, apply_overrides, nearest, parse, read_yaml
from tokenizers_vq.data.config import DataConfig
from tokenizers_vq.training.loop import LoopConfig
from tokenizers_vq.training.recipe import EmaConfig, OptimizerConfig

RECIPES = PRESETS / "recipes"


_WORDS = ("auto", "class", "none")


class ModelConfig(Config):
    """What a recipe says of its prior; layout, number of codes and classes come from the codes."""

    network: NetworkConfig
    """what models the codes"""
    condition: Annotated[
        Annotated[Literal["auto", "class", "none"], Tag("word")] | Annotated[ConditionConfig, Tag("config")],
        Discriminator(lambda value: "word" if value in _WORDS else "config"),
    ] = "auto"
    """what it is told; auto: the class, where every image has one; or a kind with its fields, or a list of these"""
    grids: tuple[int, ...] | None = None
    """numbers of the grids whose codes it models, coarse first; null: all"""
    given: GridsConfig | None = None
    """numbers of the grids whose codes it is told, or these and how they are told"""
    label_dropout: float = Field(default=0.1, ge=0, le=1)
    """probability in training that the class is left out, which guidance needs; a kind with fields has its own"""

    @model_validator(mode="before")
    @classmethod
    def _kinds_by_name(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and isinstance(data.get("given"), (list, tuple)):
            data = {**data, "given": {"grids": data["given"]}}
        told = data.get("condition") if isinstance(data, Mapping) else None
        if isinstance(told, (list, tuple)):
            return {**data, "condition": {"kind": "several", "conditions": told}}
        return {**data, "condition": {"kind": told}} if isinstance(told, str) and told not in _WORDS else data

    def told(self, classes: bool) -> ConditionConfig:
        """The condition, for codes of which all images have classes or not."""
        told = self._told(classes)
        if self.given is None:
            return told
        return beside(told, self.given)

    def _told(self, classes: bool) -> ConditionConfig:
        if not isinstance(self.condition, str):
            return self.condition
        if self.condition == "class" or (self.condition == "auto" and classes):
            return ClassConfig(dropout=self.label_dropout)
        return NoneConfig()


class MoreCodes(Config):
    """A further folder of codes that a prior is trained on."""

    codes: str
    """folder that `tvq encode` wrote, by the same tokenizer"""
    weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """how often each of its rows comes, where one of the first folder comes once"""


class PriorRecipe(LoopConfig):
    """A prior's training run."""

    model: ModelConfig
    """the prior; in a recipe file also a preset's name"""
    codes: str
    """folder of codes that `tvq encode` wrote; of a run on images, where it keeps those of their centres"""
    more_codes: tuple[MoreCodes, ...] = ()
    """further folders that are trained on beside `codes`, each with a weight"""
    data: DataConfig | None = None
    """images that are augmented and encoded as the prior trains; null: `codes` alone"""
    held_out_codes: str | None = None
    """another folder of codes to measure on; null = a part of `codes` is kept out of training"""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """share of `codes` kept out, chosen by the images' names; 0 = none where `held_out_codes` is given"""
    max_held_out: int = Field(default=4096, ge=1)
    """at most this many rows are kept out, and at least one image"""
    evaluate_every: int = Field(default=500, ge=1)
    """steps between measurements on the held-out codes; the last step is measured always"""
    tokenizer: str | None = None
    """the tokenizer, if it has moved; null = where the codes say that it is"""
    fingerprint: str | None = None
    """of the tokenizer; filled in from the codes"""
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, clip=1.0)
    """weight decay acts on matrices alone"""
    ema: EmaConfig | None = EmaConfig()
    """average of the weights, which is what is saved; null = none"""
    anneal: dict[str, Schedule] = Field(default_factory=dict)
    """scalar buffers of the prior that a schedule sets at every step, by name: `network.random_order`"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.batch_size % self.accumulate:
            raise ConfigError(("accumulate",), f"{self.accumulate} does not divide batch_size {self.batch_size}")
        if self.data is not None and self.data.streaming:
            raise ConfigError(("data", "streaming"), "images that a prior is trained on need an index; set it to false")
        if self.data is not None and self.more_codes:
            raise ConfigError(("more_codes",), "a run on images has the codes of these alone; leave it out")
        if not self.held_out and self.held_out_codes is None:
            raise ConfigError(("held_out",), "0 leaves nothing to measure on; give a share, or held_out_codes")
        return self


def list_recipes() -> list[str]:
    """Sorted names that `load_recipe` takes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(
    name: str | Path,
    codes: str | Path | None = None,
    overrides: Sequence[str] = (),
    images: str | None = None,
) -> PriorRecipe:
    """A recipe by name or from a YAML file, on a folder of codes or on images, with `path=value` overrides.

    Raises one-line `ValueError`s with near names, `FileNotFoundError` for a missing file.
    """
    path = RECIPES / f"{name}.yaml"
    if str(name) not in list_recipes():
        path = Path(name)
        if path.suffix not in (".yaml", ".yml"):
            raise ValueError(f"no recipe '{name}' of a prior{nearest(str(name), list_recipes())}")
    data = read_yaml(path)
    if codes is not None:
        data["codes"] = str(Path(codes))
    if images is not None:
        data["data"] = {**(data.get("data") or {}), "path": images}
    overrides = _kinds_with_fields(overrides)
    first = [override for override in overrides if override.partition("=")[0] == "model"]
    rest = [override for override in overrides if override not in first]
    return parse(PriorRecipe, apply_overrides(_expand(apply_overrides(data, first)), rest), f"recipe {name}")


def _kinds_with_fields(overrides: Sequence[str]) -> list[str]:
    """A condition that is named by a word, and whose fields are set too, becomes one of that kind with fields."""
    word = re.compile(r"model\.condition=(\w+)")
    if not any(override.startswith("model.condition.") for override in overrides):
        return list(overrides)
    return [word.sub(r"model.condition={kind: \1}", one) if word.fullmatch(one) else one for one in overrides]


def _expand(data: dict[str, Any]) -> dict[str, Any]:
    if isinstance(data.get("model"), str):
        preset = data["model"]
        if preset not in list_models():
            raise ConfigError(("model",), f"no preset '{preset}' of a prior{nearest(preset, list_models())}")
        data["model"] = read_yaml(PRESETS / f"{preset}.yaml")
    return data
