"""Recipes: everything that makes a tokenizer's training run, as one typed file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn
from typing_extensions import Self

from tokenizers_vq import folders
from tokenizers_vq.config import Config, ConfigError, Rate, Schedule, Step, apply_overrides, nearest, parse, read_yaml
from tokenizers_vq.data import DataConfig
from tokenizers_vq.discriminators import DiscriminatorConfig
from tokenizers_vq.hierarchical import AnyTokenizerConfig
from tokenizers_vq.losses import ObjectiveConfig, RegulariserConfig, TermConfig
from tokenizers_vq.losses.objectives import Hinge
from tokenizers_vq.models import PRESETS as MODELS
from tokenizers_vq.models import list_models
from tokenizers_vq.training import modes
from tokenizers_vq.training.loop import LoopConfig

RECIPES = Path(__file__).parents[1] / "presets" / "recipes"


Share = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Config):
    """AdamW (weight_decay 0 makes it Adam) or plain SGD."""

    kind: Literal["adamw", "sgd"] = "adamw"
    lr: Rate = 1e-4
    """learning rate, or a schedule of it"""
    betas: tuple[Share, Share] = (0.9, 0.99)
    """decay of AdamW's two averages"""
    eps: float = Field(default=1e-8, ge=0, allow_inf_nan=False)
    """added to AdamW's denominator"""
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """decoupled weight decay"""
    clip: float | None = Field(default=None, gt=0)
    """largest norm of the whole gradient; null = not clipped"""

    def build(self, *modules: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of the modules' parameters; its learning rate is set anew every step."""
        parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        if self.kind == "sgd":
            return torch.optim.SGD(parameters, lr=1.0, weight_decay=self.weight_decay)
        fused = parameters[0].device.type in ("cpu", "cuda")
        return torch.optim.AdamW(
            parameters, lr=1.0, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=fused
        )


class AdversaryConfig(Config):
    """The discriminator's side of a recipe."""

    discriminator: DiscriminatorConfig
    """network that tells images from reconstructions"""
    objective: ObjectiveConfig = Hinge()
    """what generator and discriminator minimise"""
    regularisers: tuple[RegulariserConfig, ...] = ()
    """terms of the discriminator's loss"""
    optimizer: OptimizerConfig | None = None
    """the discriminator's; null = the tokenizer's"""
    weight: Rate = 0.8
    """weight of the adversarial loss, after the adaptive weight"""
    adaptive: bool = True
    """balance the adversarial gradient against the reconstruction's at the decoder's last layer"""
    max_adaptive: float = 1e4
    """clamp of the adaptive weight"""
    start: Literal["auto"] | Step = 0
    """step from which the discriminator trains, or share of the run; auto: once the reconstruction loss is flat"""
    warmup: Step = 0
    """steps, or share of the run, that the discriminator trains alone before the tokenizer sees it"""
    window: int = Field(default=500, ge=1)
    """auto: steps whose mean loss is compared with the mean of as many before"""
    threshold: float = 0.01
    """auto: starts where the mean fell by less than this share"""


class EmaConfig(Config):
    """A running average of the tokenizer's weights, which becomes the saved model."""

    decay: float = Field(default=0.999, gt=0, lt=1)
    """share that the average keeps at a step"""
    warmup: bool = True
    """a lower decay in the first steps, so that the average forgets the random start"""


class Recipe(LoopConfig):
    """A tokenizer's training run."""

    model: AnyTokenizerConfig
    """the tokenizer; in a recipe file also a preset's name, or the folder of a saved model"""
    train: modes.Mode = "all"
    """all; frozen_codebook: encoder and decoder learn around the codes; decoder: the codes of every image stay too"""
    data: DataConfig
    """the training images; in a recipe file also a path"""
    losses: Annotated[tuple[TermConfig, ...], Field(min_length=1)]
    """terms between image and reconstruction"""
    quantizer_losses: dict[str, Schedule] = Field(default_factory=dict)
    """factors of the quantizer's own losses, by name; 1 where not named"""
    anneal: dict[str, Schedule] = Field(default_factory=dict)
    """scalar buffers of the tokenizer that a schedule sets at every step, by name: `quantizer.temperature`"""
    adversary: AdversaryConfig | None = None
    """a discriminator and how it is met; null = none"""
    optimizer: OptimizerConfig = OptimizerConfig()
    """the tokenizer's"""
    ema: EmaConfig | None = EmaConfig()
    """average of the weights; null = none"""
    warn_usage: float = Field(default=0.5, ge=0, le=1)
    """warn when a smaller share of the codes was used in the last 256 updates; 0 = never"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        modes.check(self.train, self.model.quantizer_paths.values(), self.quantizer_losses, self.anneal)
        kinds = [term.kind for term in self.losses]
        for kind in kinds:
            if kinds.count(kind) > 1:
                raise ConfigError(("losses",), f"'{kind}' appears twice: give it one weight")
        if "logit_laplace" in kinds and self.model.decoder.output != "logit_laplace":
            raise ConfigError(
                ("model", "decoder", "output"),
                "the logit_laplace loss needs a decoder of 2C channels: give model.decoder.output=logit_laplace "
                "with model.pixels.low=0.1 and model.pixels.high=0.9, or take the loss out of `losses`",
            )
        if "feature_matching" in kinds and self.adversary is None:
            raise ConfigError(("adversary",), "the feature_matching loss needs a discriminator: give one")
        for kind in ("feature_alignment", "attribute_reversal"):
            if kind in kinds and self.train == "decoder":
                raise ConfigError(
                    ("losses",),
                    f"'{kind}' trains the encoder, which train=decoder freezes: take it out, or give train=all",
                )
        if self.batch_size % self.accumulate:
            raise ConfigError(("accumulate",), f"{self.accumulate} does not divide batch_size {self.batch_size}")
        return self


def list_recipes() -> list[str]:
    """Sorted names that `load_recipe` takes."""
    return names_in(RECIPES)


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by name or from a YAML file, with `path=value` overrides. Raises one-line errors with near names."""
    path = RECIPES / f"{name}.yaml"
    if str(name) not in list_recipes():
        path = Path(name)
        if path.suffix not in (".yaml", ".yml"):
            hint = "; did you mean the model? `tvq recipes` lists recipes" if str(name) in list_models() else ""
            raise ValueError(f"no recipe '{name}'{nearest(str(name), list_recipes()) or hint}")
    return _made(read_recipe(path, RECIPES), overrides, f"recipe {name}")


def make_recipe(recipe: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by name, from a YAML file, from its fields, or as it is; with `path=value` overrides.

    Fields may name a shipped recipe as their `base`, as files do. Raises one-line errors with near names.
    """
    if isinstance(recipe, (str, Path)):
        return load_recipe(recipe, overrides)
    if isinstance(recipe, Recipe):
        return _made(recipe.to_dict(), overrides, "recipe") if overrides else recipe
    if not isinstance(recipe, Mapping):
        raise ValueError(f"a recipe is a name, a path, a dict or a Recipe, got {type(recipe).__name__}")
    fields = dict(recipe)
    base = fields.pop("base", None)
    if base is not None:
        if base not in list_recipes():
            raise ConfigError(("base",), f"no recipe '{base}'{nearest(str(base), list_recipes())}")
        fields = {**read_recipe(RECIPES / f"{base}.yaml", RECIPES), **fields}
    return _made(fields, overrides, "recipe")


def _made(data: Mapping[str, Any], overrides: Sequence[str], source: str) -> Recipe:
    written = dict(override.partition("=")[::2] for override in overrides if _is_path(override))
    overrides = [override for override in overrides if not _is_path(override)]
    first = [override for override in overrides if override.partition("=")[0] in ("model", "data")]
    rest = [override for override in overrides if override not in first]
    fields = _expand({**apply_overrides(data, first), **({"data": written["data"]} if "data" in written else {})})
    if "data.path" in written:
        fields["data"] = {**(fields.get("data") or {}), "path": written["data.path"]}
    return parse(Recipe, apply_overrides(fields, rest), source)


def _is_path(override: str) -> bool:
    """Whether an override is a path, taken as it is written: as YAML `2012` is a number, `a #1` ends at the blank."""
    key, _, text = override.partition("=")
    return bool(text) and (key == "data.path" or (key == "data" and not text.lstrip().startswith("{")))


def read_recipe(path: Path, shipped: Path) -> dict[str, Any]:
    """The fields of a recipe file; those that it leaves out are its `base`'s, a name in `shipped` or a file beside it.

    A field that it gives replaces the base's whole. Raises `ConfigError` for a base that is not there, or that begins
    with itself.
    """
    layers: list[dict[str, Any]] = []
    seen = [path]
    while True:
        layers.append(read_yaml(path))
        base = layers[-1].pop("base", None)
        if base is None:
            return {name: value for layer in reversed(layers) for name, value in layer.items()}
        named = shipped / f"{base}.yaml"
        path = named if isinstance(base, str) and named.is_file() else path.parent / str(base)
        if not path.is_file():
            raise ConfigError((), f"{seen[-1]}: base: no recipe '{base}'{nearest(str(base), names_in(shipped))}")
        if path in seen:
            raise ConfigError((), f"{seen[-1]}: base: '{base}' begins with itself: name a recipe that does not")
        seen.append(path)


def names_in(folder: Path) -> list[str]:
    """Sorted names of the YAML files of a folder."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _expand(data: dict[str, Any]) -> dict[str, Any]:
    if isinstance(data.get("model"), str):
        preset = data["model"]
        folder = None if preset in list_models("preset") else folders.local(preset)
        if folder is None and preset not in list_models("preset"):
            raise ConfigError(("model",), f"no model preset '{preset}'{nearest(preset, list_models('preset'))}")
        data["model"] = folders.read_config(folder) if folder else read_yaml(MODELS / f"{preset}.yaml")
    if isinstance(data.get("data"), str):
        data["data"] = {"path": data["data"]}
    return data
