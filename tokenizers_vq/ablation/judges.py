"""Judges of a table: backbones, and which of them a row's losses resemble.

A row that was trained on a network's features is praised by that network, and by its relatives, more than it deserves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch

from tokenizers_vq.config import ConfigError, nearest
from tokenizers_vq.discriminators import VisionAidedConfig
from tokenizers_vq.losses.perceptual import LpipsConfig, LpipsNetwork, PerceptualConfig, find_trunk
from tokenizers_vq.networks.backbones import is_packaged
from tokenizers_vq.training.recipe import Recipe

NETS = {"alex": "alexnet", "vgg": "vgg", "squeeze": "squeezenet"}
"""LPIPS network -> family of its trunk"""
Resemblance = Literal["", "same", "family"]
"""no loss of the row, one on this very network, or one on a relative of it"""


class Judge(NamedTuple):
    """One network that judges."""

    kind: Literal["lpips", "features"]
    network: str
    layer: str

    @property
    def metric(self) -> str:
        """Its name among an evaluation's metrics."""
        if self.kind == "lpips":
            return f"lpips_{self.network}"
        return f"feature_distance/{self.network}/{self.layer}"


def parse_judge(text: str) -> Judge:
    """`lpips/NET` or `BACKBONE/LAYER`. Raises `ConfigError`."""
    network, _, layer = text.rpartition("/")
    if not network or not layer:
        raise ConfigError(
            ("judges",),
            f"'{text}' is neither BACKBONE/LAYER, as tf_efficientnet_lite0/head, nor lpips/NET",
        )
    if network == "lpips":
        if layer not in NETS:
            raise ConfigError(("judges",), f"no LPIPS network '{layer}'{nearest(layer, NETS)}")
        return Judge("lpips", layer, "")
    return Judge("features", network, layer)


def judge_of(metric: str) -> Judge | None:
    """The judge whose metric has this name in an evaluation; None for a metric without a network."""
    if metric.startswith("lpips_"):
        return parse_judge(f"lpips/{metric.removeprefix('lpips_')}")
    if metric.startswith("feature_distance/"):
        return parse_judge(metric.removeprefix("feature_distance/"))
    return None


def default_judges() -> tuple[Judge, ...]:
    """EfficientNet-Lite0, and LPIPS-squeeze where its trunk is at hand, else EfficientNet-Lite2 or else 1."""
    second = "lpips/squeeze" if find_trunk("squeeze") else f"tf_efficientnet_lite{2 if is_packaged(2) else 1}/head"
    return parse_judge("tf_efficientnet_lite0/head"), parse_judge(second)


def available(judges: tuple[Judge, ...], size: tuple[int, int]) -> tuple[tuple[Judge, ...], dict[str, str]]:
    """Those that can judge images of `size`, and why the others cannot: asked once, before hours of training."""
    from tokenizers_vq.networks.backbones import Backbone

    found, missing = [], {}
    for judge in judges:
        try:
            if judge.kind == "lpips":
                LpipsNetwork(judge.network).features(torch.zeros(1, 3, *size))  # type: ignore[arg-type]
            else:
                Backbone(judge.network)
        except (ValueError, FileNotFoundError) as error:
            missing[judge.metric] = str(error)
        except RuntimeError:  # a pooling that leaves nothing
            missing[judge.metric] = f"images of {size[0]}x{size[1]} are too small for its network"
        else:
            found.append(judge)
    return tuple(found), missing


def family(network: str) -> str:
    """`tf_efficientnet_lite0.in1k` -> `efficientnet`, `resnet50` -> `resnet`."""
    name = network.rsplit("/", 1)[-1].split(".")[0]
    return re.split(r"[_\d]", re.sub(r"^(tf|hf|timm)_", "", name))[0]


def resemblance(judge: Judge, recipe: Recipe) -> Resemblance:
    """How near the row's losses, and the backbones of its discriminators, are to the judge."""
    of_judge = NETS[judge.network] if judge.kind == "lpips" else family(judge.network)
    result: Resemblance = ""
    parts = [term for term in recipe.losses if term.weight != 0]
    for part in [*parts, *_discriminators(recipe.adversary and recipe.adversary.discriminator)]:
        if isinstance(part, LpipsConfig):
            same, relative = judge.kind == "lpips" and part.net == judge.network, NETS[part.net] == of_judge
        elif isinstance(part, (PerceptualConfig, VisionAidedConfig)):
            same = judge.kind == "features" and part.backbone.split(".")[0] == judge.network.split(".")[0]
            relative = family(part.backbone) == of_judge
        else:
            continue
        if same:
            return "same"
        if relative:
            result = "family"
    return result


def _discriminators(config: Any) -> Iterator[Any]:
    """The config of a discriminator and of those that it holds."""
    if config is not None:
        yield config
        inner = getattr(config, "discriminator", None)
        for each in getattr(config, "discriminators", ()) if inner is None else (inner,):
            yield from _discriminators(each)
