"""VAR: a transformer that predicts the codes of a scale at once, from those of all coarser ones (arXiv 2404.02905)."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from functools import partial
from itertools import accumulate, pairwise
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from prior import sampling
from prior.conditions.base import Context
from prior.networks.base import BaseNetworkConfig, Exact, Noise
from prior.networks.blocks import Store, pool
from prior.networks.cache import Cache
from prior.sampling import draw, guidance_at, guide
from prior.sequences import Sequence
from tokenizers_vq.config import ConfigError
from tokenizers_vq.quantizers import Quantizer
from tokenizers_vq.quantizers.multiscale import MultiscaleQuantizer


class VarConfig(BaseNetworkConfig):
    """Next-scale prediction over the codes of a multi-scale quantizer."""

    fed_vectors: ClassVar[bool] = True
    kind: Literal["var"] = "var"
    layers: Annotated[int, Field(ge=1)]
    """number of blocks"""
    dim: Annotated[int, Field(ge=1)]
    """width"""
    heads: Annotated[int, Field(ge=1)]
    """attention heads, which divide the width"""
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    """the MLP's hidden width as a multiple of the width"""
    attn_l2_norm: bool = True
    """attention of normalised queries and keys with a learned temperature a head; otherwise of plain ones"""
    shared_aln: bool = False
    """one projection of the condition for the AdaLN of all blocks, plus vectors of each; otherwise one a block"""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """share of the images that skip the last block's branches in training; it rises linearly from 0 at the first"""
    gate_init: Annotated[float, Field(ge=0)] = 1e-5
    """size of the gates of AdaLN at the start, against that of other weights"""
    eps: float = 1e-6
    """of LayerNorm"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dim % self.heads:
            raise ConfigError(("heads",), f"{self.heads} heads do not divide the width {self.dim}")
        return self

    def build(self, sequence: Sequence, book: Quantizer | None = None) -> Var:
        """The network for a sequence. Raises `ValueError` for codes of anything but a multi-scale quantizer."""
        return Var(sequence, book, **self.arguments())


class VarSampler(sampling.Sampler):
    """How the codes of a scale are drawn: each by itself, given the coarser scales."""

    guidance_schedule: Literal["constant", "linear", "cosine"] = "linear"
    """guidance over the scales: the same, or rising from 1 at the coarsest to `guidance` at the finest"""


class Attention(nn.Module):
    """Attention of heads; queries and values have a bias, keys none."""

    def __init__(self, config: VarConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.dim // config.heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(config.dim)) for _ in range(2))
        self.log_scale = nn.Parameter(torch.full((config.heads, 1, 1), math.log(4))) if config.attn_l2_norm else None
        self.out = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor, mask: Tensor | None, store: Store | None) -> Tensor:
        """As `Block.forward`."""
        b, n, d = x.shape
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        q, k, v = F.linear(x, self.qkv.weight, bias).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scale = 0.25 / math.sqrt(self.head_dim)  # not 1 / sqrt: so the reference has it
        if self.log_scale is not None:
            temperature = self.log_scale.float().clamp(max=math.log(100)).exp()
            q = (F.normalize(q.float(), dim=-1) * temperature).to(v.dtype)
            k, scale = F.normalize(k.float(), dim=-1).to(v.dtype), 1.0
        if store is not None:
            k, v = store(k, v)
        mixed = F.scaled_dot_product_attention(q, k, v, mask, scale=scale)
        return self.out(mixed.transpose(1, 2).reshape(b, n, d))


class Block(nn.Module):
    """Attention and MLP on gated residual branches, whose norms the condition shifts and scales (AdaLN).

    The six vectors of AdaLN are, in this order: both gates, both scales, both shifts.
    """

    def __init__(self, config: VarConfig, drop_path: float) -> None:
        super().__init__()
        dim, hidden = config.dim, round(config.dim * config.mlp_ratio)
        self.drop_path = drop_path
        if config.shared_aln:
            self.vectors = nn.Parameter(torch.randn(6, dim) / dim**0.5)
        else:
            self.condition = nn.Linear(dim, 6 * dim)
        self.norm = nn.LayerNorm(dim, config.eps, elementwise_affine=False)
        self.attention = Attention(config)
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def modulation(self, told: Tensor, shared: Tensor | None) -> Tensor:
        """The condition `(B, D)` behind its SiLU, or what all blocks share `(B, 6, D)` -> `(B, 6, D)`."""
        return self.condition(told).unflatten(1, (6, -1)) if shared is None else self.vectors + shared

    def forward(self, x: Tensor, modulation: Tensor, mask: Tensor | None = None, store: Store | None = None) -> Tensor:
        """`(B, n, D)`, modulated by `(B, 6, D)` -> `(B, n, D)`.

        `mask`: bool `(n, n)`, True where a place (row) sees another (column). `store` takes keys and values
        `(B, heads, n, head_dim)` and gives all those that the places see.
        """
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation.unsqueeze(2).unbind(1)
        x = x + self._kept(self.attention(self.norm(x) * (scale1 + 1) + shift1, mask, store) * gate1)
        hidden = F.gelu(self.up(self.norm(x) * (scale2 + 1) + shift2), approximate="tanh")
        return x + self._kept(self.down(hidden) * gate2)

    def _kept(self, branch: Tensor) -> Tensor:
        """A branch, left out for some images in training (stochastic depth, arXiv 1603.09382)."""
        if not self.training or not self.drop_path:
            return branch
        return branch * F.dropout(branch.new_ones(branch.shape[0], 1, 1), self.drop_path)


class Var(Exact):
    """Codes of all scales, each predicted from the coarser scales alone, all places of a scale at once.

    Scale 0 is fed the condition, scale k the sum of the vectors of all coarser scales, shrunk to its grid; every scale
    sees itself and the coarser ones. The codes of a scale are independent given the coarser ones, so the likelihood is
    exact. A context of several vectors is pooled: their mean, without padding, is the condition.
    """

    sees = "scale by scale, each code given those of coarser scales alone"
    Sampler: ClassVar[type[VarSampler]] = VarSampler
    of_codes = ("enter", "head")
    of_places = ("positions",)
    book: MultiscaleQuantizer

    def __init__(self, sequence: Sequence, book: Quantizer | None = None, **fields: Any) -> None:
        super().__init__(sequence, _checked(sequence, book))
        self.config = config = VarConfig(**fields)
        grids, dim = sequence.layout.grids, config.dim
        ends = [0, *accumulate(math.prod(grid) for grid in grids)]
        self.places = [slice(first, last) for first, last in pairwise(ends)]
        self.enter = nn.Linear(self.book.dim, dim)
        self.begin = nn.Parameter(torch.empty(ends[1], dim))
        self.positions = nn.Parameter(torch.empty(ends[-1], dim))
        self.scales = nn.Embedding(len(grids), dim)
        drops = [config.drop_path * layer / max(config.layers - 1, 1) for layer in range(config.layers)]
        self.shared = nn.Linear(dim, 6 * dim) if config.shared_aln else None
        self.blocks = nn.ModuleList(Block(config, drop) for drop in drops)
        self.norm = nn.LayerNorm(dim, config.eps, elementwise_affine=False)
        self.condition = nn.Linear(dim, 2 * dim)
        self.head = nn.Linear(dim, sequence.vocabulary)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """As the reference: small gates, small head, residual branches by depth."""
        config = self.config
        std = (3 * config.dim) ** -0.5
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Embedding)) and not name.startswith("book."):
                nn.init.trunc_normal_(module.weight, std=std)
                if getattr(module, "bias", None) is not None:
                    nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        for vectors in (self.begin, self.positions):
            nn.init.trunc_normal_(vectors, std=std)
        self.head.weight.mul_(0.02)
        self.condition.weight.mul_(0.5)
        gates = 2 * config.dim
        for block in self.stack:
            for branch in (block.attention.out, block.down):
                branch.weight.div_(math.sqrt(2 * config.layers))
            if config.shared_aln:
                block.vectors[:2].mul_(config.gate_init)
                block.vectors[2:].mul_(0.5)
            else:
                block.condition.weight[:gates].mul_(config.gate_init)
                block.condition.weight[gates:].mul_(0.5)

    @property
    def stack(self) -> list[Block]:
        """The blocks, typed."""
        return list(self.blocks)  # type: ignore[arg-type]

    def trunk_blocks(self) -> list[nn.Module]:
        """The transformer's blocks."""
        return list(self.blocks)

    def parts(self, tokens: Tensor) -> Iterator[Tensor]:
        """Codes `(B, N)` -> those of each scale, `(B, h_k, w_k)`."""
        for places, grid in zip(self.places, self.sequence.layout.grids, strict=True):
            yield tokens[:, places].unflatten(1, grid)

    def shrink(self, features: Tensor, scale: int) -> Tensor:
        """The vectors' sum `(B, D', h, w)` -> what a scale is fed of it, `(B, n, D')`."""
        grid = self.sequence.layout.grids[scale]
        if tuple(features.shape[2:]) != grid:
            features = F.interpolate(features, size=grid, mode="area")
        return features.flatten(2).transpose(1, 2)

    def inputs(self, tokens: Tensor) -> Tensor:
        """Codes `(B, N)` -> vectors float32 `(B, N - n_0, D')` that scales 1 and up are fed."""
        found, total = [], torch.zeros((), device=tokens.device)
        for scale, codes in enumerate(list(self.parts(tokens))[:-1]):
            total = total + self.book.addend(codes, scale)
            found.append(self.shrink(total, scale + 1))
        return torch.cat(found, dim=1)

    def embed(self, x: Tensor, places: slice) -> Tensor:
        """`(B, n, D)` at these places, with their positions and scales."""
        return x + self.positions[places] + self.scales(self.sequence.positions[places, 0])

    def told(self, context: Context) -> Tensor:
        """The condition `(B, D)`: the mean of the context's vectors, without padding."""
        return pool(context).to(self.positions.dtype)

    def modulations(self, told: Tensor) -> list[Tensor]:
        """AdaLN's vectors `(B, 6, D)` of each block."""
        bent = F.silu(told)
        shared = None if self.shared is None else self.shared(bent).unflatten(1, (6, -1))
        return [block.modulation(bent, shared) for block in self.stack]

    def leave(self, x: Tensor, told: Tensor) -> Tensor:
        """`(B, n, D)` -> logits `(B, n, K)`."""
        scale, shift = self.condition(F.silu(told))[:, None].chunk(2, dim=-1)
        return self.head(self.norm(x) * (scale + 1) + shift)

    def forward(self, tokens: Tensor, context: Context) -> Tensor:
        """Codes `(B, N)` -> logits `(B, N, K)`, each scale from the coarser ones."""
        told = self.told(context)
        first, whole = told[:, None] + self.begin, self.inputs(tokens).to(self.positions.dtype)
        x = self.embed(torch.cat((first, self.enter(whole)), dim=1), slice(None))
        scale = self.sequence.positions[:, 0]
        mask = scale[:, None] >= scale
        for block, modulation in zip(self.stack, self.modulations(told), strict=True):
            x = block(x, modulation, mask)
        return self.leave(x, told)

    def walk(self, context: Context) -> Generator[Tensor, Tensor, None]:
        """Scale by scale."""
        state = VarState(self, context)
        for scale, places in enumerate(self.places):
            codes = yield self.sequence.mask(state.logits, places.start)
            if scale + 1 < len(self.places):
                state.step(codes)

    def generate(self, known: Tensor, context: Context, sampler: sampling.Sampler, noise: Noise) -> Tensor:
        """Scale by scale, all codes of a scale at once."""
        assert isinstance(sampler, VarSampler)
        copies = 1
        if guided := sampler.guidance != 1:
            context, copies = context.guided(), 2
        codes, uniforms = known.clone(), noise(0, known.shape[1])
        state, last = VarState(self, context), len(self.places) - 1
        for scale, places in enumerate(self.places):
            if scale:
                state.step(codes[:, self.places[scale - 1]].repeat(copies, 1))
            logits = self.sequence.mask(state.logits, places.start).float()
            logits = guide(logits, guidance_at(sampler, scale / last)) if guided else logits
            drawn = draw(logits.flatten(0, 1), sampler, uniforms[:, places].flatten()).view(known.shape[0], -1)
            codes[:, places] = torch.where(known[:, places] >= 0, known[:, places], drawn)
        return codes


class VarState:
    """Scale by scale, without gradient; equals `Var.forward`. Keeps keys, values and the sum of the vectors."""

    logits: Tensor
    """`(B, n_k, K)` of the scale that comes next, impossible codes included"""

    def __init__(self, network: Var, context: Context) -> None:
        self.network, self.scale, self.features = network, 0, torch.zeros((), device=context.vectors.device)
        self.told = network.told(context)
        self.modulations = network.modulations(self.told)
        config, (rows, dim), like = network.config, self.told.shape, network.head.weight
        self.cache = Cache(
            config.layers, rows, config.heads, network.sequence.length, dim // config.heads, like.dtype, like.device
        )
        self.cache.reserve(network.sequence.length)
        self._read(self.told[:, None] + network.begin)

    def step(self, codes: Tensor) -> Tensor:
        """Codes `(B, n_k)` of the scale that `logits` were of -> logits `(B, n_k+1, K)` of the next one."""
        network = self.network
        grid = network.sequence.layout.grids[self.scale]
        self.features = self.features + network.book.addend(codes.unflatten(1, grid), self.scale)
        self.scale += 1
        vectors = network.shrink(self.features, self.scale)
        self._read(network.enter(vectors.to(network.positions.dtype)))
        return self.logits

    def _read(self, x: Tensor) -> None:
        network = self.network
        x = network.embed(x, network.places[self.scale])
        for layer, (block, modulation) in enumerate(zip(network.stack, self.modulations, strict=True)):
            x = block(x, modulation, None, partial(self.cache.extend, layer))
        self.cache.advance(x.shape[1])
        self.logits = network.leave(x, self.told)


def _checked(sequence: Sequence, book: Quantizer | None) -> MultiscaleQuantizer:
    """The book. Raises `ValueError` for codes that are not those of a multi-scale quantizer, of this one."""
    layout = sequence.layout
    if len(layout.grids) < 2 or layout.levels > 1 or not isinstance(book, MultiscaleQuantizer):
        grids = " + ".join("x".join(map(str, grid)) for grid in layout.grids)
        raise ValueError(
            f"a var network predicts the codes of a multi-scale quantizer, scale by scale; these stand on {grids}, "
            f"{layout.levels} at a position: take another kind of network"
        )
    if book.layout(layout.grids[-1]) != layout:
        raise ValueError(f"the quantizer's codes have layout {book.layout(layout.grids[-1]).to_dict()}, not this one")
    return book
