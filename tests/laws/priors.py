"""The priors that law 11 is tried on: a new network gets all of it, on every layout, by one line in CASES.

A law that cannot apply is named in `exempt` with its reason; a layout that a network cannot take, in `refused` with a
part of the error. `python -m tests.laws.table` prints both.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prior.conditions import ClassConfig, NoneConfig
from prior.model import Prior, PriorConfig
from prior.networks.autoregressive import Autoregressive
from prior.networks.gpt import GptConfig
from prior.networks.maskbit import MaskBitConfig
from prior.networks.maskgit import MaskGitConfig
from prior.networks.pixelcnn import PixelCnnConfig
from prior.networks.pixelsnail import PixelSnailConfig
from prior.networks.rq import RqConfig
from prior.networks.uvit import UvitConfig
from prior.networks.var import Var, VarConfig, VarState
from prior.sequences import LayoutConfig
from tests.laws.law import Role
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.quantizers.lfq import LfqQuantizerConfig
from tokenizers_vq.quantizers.multiscale import MultiscaleQuantizerConfig
from tokenizers_vq.quantizers.residual import ResidualQuantizerConfig
from tokenizers_vq.quantizers.vector import VectorQuantizerConfig

LAWS = {
    "layouts": "a layout is taken, and only possible codes are predicted and drawn; or it is refused in one line",
    "causality": "logits depend on the codes that they may see, all of them, and on no other",
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
    "bits": CodeLayout(((3, 4),), 1, (16,)),
    "levels of bits": CodeLayout(((2, 3),), 2, (16, 16)),
}
KINDS = ("grid", "row", "levels", "scales")
"""kinds of layout that every network is tried on"""
TINY = {
    "grid": CodeLayout(((2, 2),), 1, (3,)),
    "row": CodeLayout(((4,),), 1, (3,)),
    "levels": CodeLayout(((1, 2),), 2, (3, 2)),
    "scales": CodeLayout(((1, 1), (1, 2)), 1, (4, 3)),
    "bits": CodeLayout(((1, 2),), 1, (16,)),
    "levels of bits": CodeLayout(((1, 1),), 2, (16, 16)),
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


@torch.no_grad()
def dependence(prior: Prior, condition: Any = None) -> Tensor:
    """Bool `(N, N)`: the logits of a place (row) change with a code (column)."""
    layout, tokens = prior.layout, rows(prior.layout, 1)
    sizes = torch.tensor(layout.sizes)[layout.streams()]
    logits, found = prior.logits(tokens, condition), torch.zeros(layout.length, layout.length, dtype=torch.bool)
    for place in range(layout.length):
        other = tokens.clone()
        other[0, place] = (tokens[0, place] + 1) % sizes[place]
        found[:, place] = (prior.logits(other, condition) != logits)[0].any(dim=-1)
    return found


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
    embedded: Callable[[Prior], nn.Module] | None = lambda prior: prior.network.tokens  # type: ignore[return-value]
    """the module that gives vectors `(B, n, D)` of the first n codes; None where those are the tokenizer's own"""
    book: Callable[[CodeLayout], Any] = lambda layout: None
    """the quantizer's config of a layout, where the network is fed its vectors"""
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
        layout = layout or self.layout
        described = LayoutConfig.of(layout)
        made = PriorConfig(network=self.network, condition=condition, layout=described, book=self.book(layout))
        return Prior(made).eval()

    def spread(self, layout: CodeLayout | None = None, classes: int | None = None) -> Prior:
        """As `build`, with weights large enough for logits to differ."""
        made = self.build(layout, classes)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return made


def scale_by_scale(prior: Prior, tokens: Tensor, condition: Any, start: int) -> Tensor:
    """As `step_by_step`, of a network that draws a whole scale at once."""
    network = prior.network
    assert isinstance(network, Var)
    state = VarState(network, prior.context(condition, len(tokens)))
    logits = [state.logits]
    logits += [state.step(tokens[:, places]) for places in network.places[:-1]]
    return prior.sequence.mask(torch.cat(logits, dim=1)[:, start:], start)


def coarser(layout: CodeLayout) -> Tensor:
    """Bool `(N, N)`: place i sees the codes of coarser grids."""
    grid = layout.positions()[:, 0]
    return grid[:, None] > grid


def within(side: int) -> Callable[[CodeLayout], Tensor]:
    """Bool `(N, N)` of PixelSNAIL: as `before`, but the end of the row above is known from where it is in reach."""

    def sees(layout: CodeLayout) -> Tensor:
        width, found = layout.grids[0][1], before(layout)
        for place in range(width, layout.length):
            row, column = divmod(place, width)
            found[place, row * width - 1] = column + side >= width - 1
        return found

    return sees


def multiscale(layout: CodeLayout) -> Any:
    """A multi-scale quantizer of the layout's sizes; of other layouts the nearest there is."""
    books = tuple(VectorQuantizerConfig(num_codes=size, dim=5) for size in layout.sizes[:: layout.levels])
    scales = tuple(grid if len(grid) == 2 else (1, *grid) for grid in layout.grids)
    return MultiscaleQuantizerConfig(scales=scales, book=books, phis=2)


def residual(layout: CodeLayout) -> Any:
    """A residual quantizer of the layout's sizes; of other layouts the nearest there is."""
    books = tuple(VectorQuantizerConfig(num_codes=size, dim=5) for size in layout.sizes[: layout.levels])
    return ResidualQuantizerConfig(levels=layout.levels, book=books)


def signs(layout: CodeLayout) -> Any:
    """A quantizer of sign bits of the layout's sizes; of codes that are no bits the nearest there is."""
    book = LfqQuantizerConfig(bits=max(1, (layout.sizes[0] - 1).bit_length()))
    return book if layout.levels == 1 else ResidualQuantizerConfig(levels=layout.levels, book=book)


def rows(layout: CodeLayout, count: int) -> Tensor:
    """Random possible codes int64 `(count, N)`."""
    return (torch.rand(count, layout.length) * torch.tensor(layout.sizes)[layout.streams()]).long()


def stopped_and_resumed(
    models: Sequence[Prior], told: Callable[[int], Any], half: int, steps: int
) -> tuple[Tensor, Tensor]:
    """Losses of the first model, trained at once, and of the second up to `half`, saved and gone on with in the third.

    `told`: what four rows are told at a step.
    """
    whole, first, again = models
    first.load_state_dict(whole.state_dict())
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3) for model in models]

    def train(model: Prior, optimizer: torch.optim.Optimizer, steps: range) -> list[Tensor]:
        losses = []
        for step in steps:
            torch.manual_seed(step)  # as the loop does
            optimizer.zero_grad()
            loss = model.train()(rows(model.layout, 4), told(step))
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return losses

    expected = train(whole, optimizers[0], range(steps))
    found = train(first, optimizers[1], range(half))
    file = io.BytesIO()
    torch.save([first.state_dict(), optimizers[1].state_dict()], file)
    file.seek(0)
    kept = torch.load(file, weights_only=True)
    again.load_state_dict(kept[0])
    optimizers[2].load_state_dict(kept[1])
    found += train(again, optimizers[2], range(half, steps))
    return torch.stack(expected), torch.stack(found)


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
    for layout in KINDS:
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

_GPT = GptConfig(layers=2, dim=32, heads=2, multiple=16)
_LEARNED = _GPT.replace(norm="layer", mlp="gelu", bias=True, head_bias=True, positions="learned")
_RAR = _LEARNED.replace(
    order="random", begin=True, qk_norm=True, entry=("prefix", "adaln"), adaln_places=True, eps=1e-6
)

ADALN = MaskGitConfig(
    layers=2,
    dim=32,
    heads=3,
    head_dim=10,
    mlp="swiglu",
    multiple=16,
    norm="rms",
    norm_first=True,
    bias=False,
    qk_norm="width",
    registers=2,
    tied=True,
    entry=("adaln",),
    eps=1e-5,
    dropout=0.0,
    label_smoothing=0.0,
)
"""MaskGIT with what Halton-MaskGIT chose"""

_NO_PLANE = dict.fromkeys(("row", "levels", "scales"), "predicts one grid of rows and columns with one code at a place")
_SNAIL = PixelSnailConfig(
    layers=2, residuals=1, dim=16, hidden=16, kernel=3, heads=2, out_residuals=1, told_width=8, dropout=0.0
)

CASES = [
    *cases("gpt", _GPT),
    *cases("rar", _RAR),
    Case("gpt of taming", _LEARNED, "levels"),
    Case("gpt in a row", _GPT.replace(positions="rope_1d", begin=True), "levels"),
    Case("gpt told aside", _GPT.replace(entry=("cross", "adaln"), positions="llamagen", qk_norm=True), "scales"),
    *cases(
        "maskgit",
        MaskGitConfig(layers=2, dim=32, heads=2, dropout=0.0, label_smoothing=0.0),
        _MASKED,
        sees=everything,
        steps=400,
    ),
    Case(
        "maskgit told aside",
        MaskGitConfig(layers=2, dim=32, heads=2, dropout=0.0, label_smoothing=0.0, entry=("cross", "adaln")),
        "levels",
        dict(_MASKED),
        sees=everything,
        steps=200,
    ),
    *(
        Case("maskgit with AdaLN", ADALN, layout, dict(_MASKED), sees=everything, steps=250)
        for layout in ("grid", "scales")
    ),
    *(
        Case(
            "maskbit",
            MaskBitConfig(layers=2, dim=32, heads=2, dropout=0.0, label_smoothing=0.0),
            layout,
            dict(_MASKED),
            sees=everything,
            embedded=lambda prior: prior.network.bits,
            book=signs,
            steps=300,
        )
        for layout in ("bits", "levels of bits")
    ),
    Case(
        "maskbit",
        MaskBitConfig(layers=2, dim=32, heads=2),
        "grid",
        {law: "maskbit takes no such layout: 11 codes are no bits" for law in LAWS if law != "layouts"},
        "codes do not consist of bits",
        book=signs,
    ),
    *cases(
        "uvit",
        UvitConfig(layers=3, dim=32, heads=2, dropout=0.0, label_smoothing=0.0),
        _MASKED,
        sees=everything,
        steps=400,
    ),
    *cases(
        "var",
        VarConfig(layers=2, dim=32, heads=2),
        refused=dict.fromkeys(("grid", "row", "levels"), "predicts the codes of a multi-scale quantizer"),
        sees=coarser,
        embedded=None,
        book=multiscale,
        stepwise=scale_by_scale,
    ),
    *cases(
        "rq",
        RqConfig(layers=2, depth_layers=2, dim=32, heads=2, residual_dropout=0.0),
        refused=dict.fromkeys(("grid", "row", "scales"), "predicts codes of several levels on one grid"),
        embedded=None,
        book=residual,
    ),
    *cases("pixelcnn", PixelCnnConfig(layers=3, dim=24, head_dim=32), refused=_NO_PLANE),
    Case("pixelcnn of one kernel", PixelCnnConfig(layers=4, dim=24, first_kernel=3, entry="direct"), "grid"),
    *cases("pixelsnail", _SNAIL, refused=_NO_PLANE, sees=within(1), embedded=None, steps=400),
    Case(
        "pixelsnail without attention",
        _SNAIL.replace(attention=False, kernel=5, out_residuals=0, entry="stem", told_width=None),
        "grid",
        sees=within(2),
        embedded=None,
        steps=400,
    ),
]

PRIORS = Role("prior, layout", CASES, LAWS, "test_priors.py")


def by_name(name: str) -> Case:
    """The case of that name."""
    return next(case for case in CASES if case.name == name)
