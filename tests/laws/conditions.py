"""The conditions that law 11 is tried on: a new one gets all of it by one line in CASES, under GPT and MaskGIT."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prior.conditions import (
    ClassConfig,
    GridsConfig,
    ImageConfig,
    NoneConfig,
    SeveralConfig,
    TextConfig,
    TextEncoderConfig,
)
from prior.encoders import open_encoder
from prior.model import Prior, PriorConfig
from prior.networks.gpt import GptConfig
from prior.networks.maskgit import MaskGitConfig
from prior.networks.pixelcnn import PixelCnnConfig
from prior.sequences import LayoutConfig
from tests.laws.law import Role
from tests.prior.tiny_encoders import save_encoder
from tokenizers_vq.codes import CodeLayout

LAWS = {
    "alone": "a row is told the same alone as among others, whatever pads it",
    "cache": "place by place gives the logits of all places at once, with the null too",
    "seeds": "same seed, same codes, whatever the batch",
    "guidance": "guidance 1 is no guidance; more of it draws other codes; refused where nothing was ever left out",
    "null": "told nothing in any form is the null, and what is left out in training is it",
    "dropout": "rows are left out in training at the config's rate, and never in eval mode",
    "learns": "eight rows are learnt by what they are told, and drawn; told another's, another is drawn",
    "likelihood": "exp(log-likelihood) sums to 1 over all rows where it is exact, to no more where it is a bound",
    "resume": "training that stopped and went on is bitwise that which never stopped",
    "saved": "saved and loaded, the config, the weights and what is drawn are the same",
}
LAYOUT = CodeLayout(((2, 3),), 1, (7,))
TINY = CodeLayout(((2, 2),), 1, (3,))
TEXTS = ("a cat", "a dog", "one fox", "red foxes", "a red cat", "two foxes at night", "photo of a dog", "night")
PICTURES = torch.tensor([[a, b, c, 0] for a in (0, 4) for b in (1, 3) for c in (0, 2)])
NETWORKS = {
    "gpt": GptConfig(layers=2, dim=32, heads=2, multiple=16),
    "maskgit": MaskGitConfig(layers=2, dim=32, heads=2, dropout=0.0, label_smoothing=0.0),
    "pixelcnn": PixelCnnConfig(layers=2, dim=32, head_dim=32),
}


@dataclass(frozen=True)
class Case:
    """A condition under a network."""

    kind: str
    network: str
    config: Callable[[float], Any]
    """its config, small, by the rate at which it is left out"""
    told: Callable[[Sequence[int]], Any]
    """the value of the rows of these numbers, 0 to 7"""
    nothing: tuple[Any, ...]
    """what stands for nothing, for two rows"""
    exempt: dict[str, str] = field(default_factory=dict)
    steps: int = 160

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.network}"

    def build(self, dropout: float = 0.1, layout: CodeLayout = LAYOUT) -> Prior:
        """A prior in eval mode, untrained."""
        condition = self.config(dropout)
        made = PriorConfig(network=NETWORKS[self.network], condition=condition, layout=LayoutConfig.of(layout))
        return Prior(made).eval()

    def spread(self, layout: CodeLayout = LAYOUT) -> Prior:
        """As `build`, with weights large enough for logits to differ."""
        made = self.build(layout=layout)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return made


@cache
def encoder(kind: str) -> TextEncoderConfig:
    """A text encoder of a few random weights."""
    folder = str(save_encoder(Path(tempfile.mkdtemp()), kind))
    opened = open_encoder(folder)
    return TextEncoderConfig(encoder=folder, length=8, width=opened.width, fingerprint=opened.fingerprint)


def text(dropout: float) -> TextConfig:
    return TextConfig(length=20, layers=1, heads=2, dropout=dropout)


def texts(numbers: Sequence[int]) -> list[str]:
    return [TEXTS[number] for number in numbers]


def picture(dropout: float) -> ImageConfig:
    return ImageConfig(layout=LayoutConfig(grids=((2, 2),), levels=1, sizes=(5,)), dropout=dropout)


def pictures(numbers: Sequence[int]) -> Tensor:
    return PICTURES[list(numbers)]


def coarser(dropout: float) -> GridsConfig:
    whole = LayoutConfig(grids=((2, 2), *LAYOUT.grids), sizes=(5, *LAYOUT.sizes))
    return GridsConfig(grids=(0,), blocks=1, inner_dropout=0.0, layout=whole, dropout=dropout)


def several(dropout: float) -> SeveralConfig:
    style = ClassConfig(name="style", num_classes=2, dropout=0.0)
    return SeveralConfig(conditions=(text(0.0), style, picture(0.0)), dropout=dropout)


def all_three(numbers: Sequence[int]) -> dict[str, Any]:
    """None of them alone tells the rows apart."""
    return {
        "text": [TEXTS[number % 2] for number in numbers],
        "style": [number // 2 % 2 for number in numbers],
        "image": PICTURES[[number // 4 for number in numbers]],
    }


_EXEMPT: dict[str, dict[str, str]] = {
    "gpt": {},
    "maskgit": {
        "cache": "nothing is kept between steps: each reads all places",
        "learns": "that a MaskGIT learns by a text is tried in tests/prior, by a class in law 11 of priors",
    },
}


def cases(kind: str, *arguments: Any, **fields: Any) -> list[Case]:
    """A condition under every transformer."""
    exempt = fields.pop("exempt", {})
    return [Case(kind, network, *arguments, exempt | _EXEMPT[network], **fields) for network in _EXEMPT]


_LOCAL = {"learns": "a place is told the picture where it stands: the first cannot tell pictures apart below it"}
_POOLED = {"learns": "that a PixelCNN learns by vectors of no place is tried in law 11 of priors, by a class"}
_NOTHING_TOLD = dict.fromkeys(("guidance", "null", "dropout"), "it is told nothing, so that nothing can be left out")
_NOTHING_LEARNT = {"learns": "it is told nothing, so that rows cannot be told apart"}

CASES = [
    *cases("none", lambda dropout: NoneConfig(), lambda numbers: None, (), exempt=_NOTHING_TOLD | _NOTHING_LEARNT),
    *cases("class", lambda dropout: ClassConfig(num_classes=8, dropout=dropout), list, (None, [None, None])),
    *cases("text", text, texts, (None, "", ["", None])),
    *cases("text_encoder, T5", lambda dropout: encoder("t5").replace(dropout=dropout), texts, (None, "", ["", None])),
    *cases("text_encoder, CLIP", lambda dropout: encoder("clip").replace(dropout=dropout), texts, (None, "")),
    *cases("image", picture, pictures, (None, torch.full((2, 4), -1), [None, None])),
    *cases("grids", coarser, pictures, (None, torch.full((2, 4), -1), [torch.full((4,), -1)] * 2)),
    Case("grids", "pixelcnn", coarser, pictures, (None, torch.full((2, 4), -1))),
    Case("image", "pixelcnn", picture, pictures, (None, torch.full((2, 4), -1)), _LOCAL),
    Case("text", "pixelcnn", text, texts, (None, "", ["", None]), _POOLED),
    *cases("several", several, all_three, (None, {"text": None, "style": None}, [{}, {"image": None}]), steps=320),
]

CONDITIONS = Role("condition, network", CASES, LAWS, "test_conditions.py")
