"""The priors that law 11 is tried on: a new network gets all of it, on every layout, by one line in CASES.

A law that cannot apply is named in `exempt` with its reason; a layout that a network cannot take, in `refused` with a
part of the error. `python -m tests.laws.table` prints both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prior.conditions import ClassConfig, NoneConfig
from prior.model import Prior, PriorConfig
from prior.networks.autoregressive import Autoregressive
from prior.networks.gpt import GptConfig
from prior.networks.maskgit import MaskGitConfig
from prior.networks.uvit import UvitConfig
from prior.sequences import LayoutConfig
from tests.laws.law import Role
from tokenizers_vq.codes import CodeLayout

LAWS = {
    "layouts": "a layout is taken, and only possible codes are predicted and drawn; or it is refused in one line",
    "causality": "logits have a gradient to the codes that they may see, all of them, and to no other",
    "cache": "place by place gives the logits of all places at once",
    "seeds": "same seed, same codes, whatever the batch; another seed, other codes",
    "guidance": "guidance 1 is no guidance; more of it draws other codes",
    "known": "known codes are kept wherever they stand; the others are drawn",
    "learns": "eight rows, one a class, are learnt to a loss near zero, and drawn",
    "likelihood": "exp(log-likelihood) sums to 1 over all rows, to no more where it is a bound; alone or in a batch",
    "draws": "rows are drawn as often as their likelihood says",
    "processes": "two processes' gradients are those of one",
    "resume": "training that stopped and went on is bitwise that which never stopped",
}

LAYOUTS = {
    "grid": CodeLayout(((3, 4),), 1, (11,)),
    "row": CodeLayout(((9,),), 1, (7,)),
    "levels": CodeLayout(((2, 3),), 2, (7, 5)),
    "scales": CodeLayout(((1, 1), (2, 2), (3, 4)), 1, (4, 9, 6)),
}
TINY = {
    "grid": CodeLayout(((2, 2),), 1, (3,)),
    "row": CodeLayout(((4,),), 1, (3,)),
    "levels": CodeLayout(((1, 2),), 2, (3, 2)),
    "scales": CodeLayout(((1, 1), (1, 2)), 1, (4, 3)),
}
"""layouts of the same kinds with few enough rows to name them all"""


def before(layout: CodeLayout) -> Tensor:
    """Bool `(N, N)`: place i sees the codes before it."""
    return torch.ones(layout.length, layout.length, dtype=torch.bool).tril(-1)


def step_by_step(prior: Prior, tokens: Tensor, condition: Any, start: int) -> Tensor:
    """Logits `(B, N, K)` of the places after `start` codes that are read at once, then one by one."""
    network = prior.network
    assert isinstance(network, Autoregressive)
    state = network.start(tokens[:, :start], prior.context(condition, len(tokens)))
    logits = [state.logits]
    logits += [state.step(tokens[:, place]).clone() for place in range(start, tokens.shape[1] - 1)]
    return prior.sequence.mask(torch.stack(logits, dim=1), start)


@dataclass(frozen=True)
class Case:
    """A network on a kind of layout."""

    kind: str
    network: Any
    """its config, small"""
    layout_name: str
    exempt: dict[str, str] = field(default_factory=dict)
    refusal: str | None = None
    """where it cannot take the layout: a part of the error"""
    sees: Callable[[CodeLayout], Tensor] = before
    """bool `(N, N)`: the codes (columns) that a place (row) may depend on"""
    embedded: Callable[[Prior], nn.Module] = lambda prior: prior.network.tokens  # type: ignore[return-value]
    """the module that gives vectors `(B, n, D)` of the first n codes"""
    steps: int = 150
    """of learning eight rows"""
    stepwise: Callable[[Prior, Tensor, Any, int], Tensor] = step_by_step
    """logits as drawing sees them, from a number of codes on"""

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.layout_name}"

    @property
    def layout(self) -> CodeLayout:
        return LAYOUTS[self.layout_name]

    def build(self, layout: CodeLayout | None = None, classes: int | None = None, dropout: float = 0.1) -> Prior:
        """A prior in eval mode, untrained, of the case's layout or another; with classes, or without a condition."""
        condition = NoneConfig() if classes is None else ClassConfig(num_classes=classes, dropout=dropout)
        config = LayoutConfig.of(layout or self.layout)
        return Prior(PriorConfig(network=self.network, condition=condition, layout=config)).eval()

    def spread(self, layout: CodeLayout | None = None, classes: int | None = None) -> Prior:
        """As `build`, with weights large enough for logits to differ."""
        made = self.build(layout, classes)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return made


def rows(layout: CodeLayout, count: int) -> Tensor:
    """Random possible codes int64 `(count, N)`."""
    return (torch.rand(count, layout.length) * torch.tensor(layout.sizes)[layout.streams()]).long()


def all_rows(layout: CodeLayout) -> Tensor:
    """Every row of possible codes."""
    sizes = torch.tensor(layout.sizes)[layout.streams()].tolist()
    return torch.cartesian_prod(*[torch.arange(size) for size in sizes])


def cases(
    kind: str,
    network: Any,
    exempt: Mapping[str, str] | None = None,
    refused: Mapping[str, str] | None = None,
    **fields: Any,
) -> list[Case]:
    """A network on every kind of layout; `refused`: kind of layout -> a part of the error."""
    found = []
    for layout in LAYOUTS:
        refusal = (refused or {}).get(layout)
        reasons = dict(exempt or {})
        if refusal is not None:
            reasons = {law: f"{kind} takes no such layout: {refusal}" for law in LAWS if law != "layouts"}
        found.append(Case(kind, network, layout, reasons, refusal, **fields))
    return found


def everything(layout: CodeLayout) -> Tensor:
    """Bool `(N, N)`: every place sees every code that is shown."""
    return torch.ones(layout.length, layout.length, dtype=torch.bool)


_MASKED = {
    "cache": "nothing is kept between steps: each reads all places",
    "draws": "how likely a row is to be drawn in these steps is not known; the bound is another way's likelihood",
    "processes": "each process draws which codes it masks",
}

CASES = [
    *cases("gpt", GptConfig(layers=2, dim=32, heads=2, multiple=16)),
    *cases(
        "maskgit",
        MaskGitConfig(layers=2, dim=32, heads=2, dropout=0.0, label_smoothing=0.0),
        _MASKED,
        sees=everything,
        steps=400,
    ),
    *cases(
        "uvit",
        UvitConfig(layers=3, dim=32, heads=2, dropout=0.0, label_smoothing=0.0),
        _MASKED,
        sees=everything,
        steps=400,
    ),
]

PRIORS = Role("prior, layout", CASES, LAWS, "test_priors.py")


def by_name(name: str) -> Case:
    """The case of that name."""
    return next(case for case in CASES if case.name == name)
