"""Decoder-only transformers over codes: taming's (arXiv 2012.09841), ViT-VQGAN's (arXiv 2110.04627), LlamaGen's (arXiv
2406.06525) and RAR's (arXiv 2411.00776), and all between them."""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from prior.conditions.base import Context
from prior.networks.autoregressive import Autoregressive, State
from prior.networks.base import BaseNetworkConfig
from prior.networks.blocks import Block, BlockConfig, EntryFields, LastNorm, initialise, make_norm, tell
from prior.networks.cache import Cache
from prior.networks.fixed import FixedState
from prior.networks.rotary import rotary_angles, row_angles, turns_of
from prior.networks.stepping import BlocksState, Trunk
from prior.sequences import Sequence
from tokenizers_vq.config import ConfigError
from tokenizers_vq.quantizers import Quantizer

Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class GptConfig(EntryFields, BaseNetworkConfig):
    """Decoder-only transformer."""

    kind: Literal["gpt"] = "gpt"
    layers: Annotated[int, Field(ge=1)]
    """number of blocks"""
    dim: Annotated[int, Field(ge=4)]
    """width"""
    heads: Annotated[int, Field(ge=1)]
    """attention heads; dim / heads must be a multiple of 4 for rotary positions"""
    multiple: Annotated[int, Field(ge=1)] = 256
    """the SwiGLU's hidden width is 8/3 dim, rounded up to a multiple of this"""
    hidden: Annotated[int, Field(ge=1)] | None = None
    """width inside the MLP; null: 4 dim for GELU, as `multiple` says for SwiGLU"""
    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm or LayerNorm"""
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    """SwiGLU, or two layers around a GELU"""
    bias: bool = False
    """biases of the blocks' linear layers"""
    head_bias: bool = False
    """bias of the last layer"""
    qk_norm: bool = False
    """norms of queries and keys, a head at a time"""
    positions: Literal["rope", "rope_1d", "llamagen", "learned"] = "rope"
    """rotary by row and column; rope_1d: rotary by the place in the sequence, whose first vector is 0, as Llama has it;
    llamagen: as rope, but queries and keys of what stands before the codes vanish, as in LlamaGen's files; learned: a
    vector added at each place"""
    base: Positive = 10000.0
    """wavelength base of the rotary positions"""
    rotary_scale: tuple[Positive, Positive] = (1.0, 1.0)
    """factors of row and column (rope_1d: their product): old grid / new grid lets a trained network read a larger
    one"""
    order: Literal["raster", "random"] = "raster"
    """of the codes in training; random: each place is told the position of the code that comes next (RAR), and the
    buffer `network.random_order` is the share of rows in random order, which a recipe's `anneal` moves. Codes are drawn
    in raster order"""
    begin: bool = False
    """a learnt vector before the condition; it is always there where no prefix is"""
    open_prefix: bool = False
    """whether the vectors of the condition see each other, later ones too"""
    adaln_places: bool = False
    """a learnt vector for each place is added to the pooled condition of adaln (RAR)"""
    token_dropout: Share = 0.0
    """dropout of the embedded tokens"""
    token_noise: Share = 0.0
    """share of the codes that are read in training as random ones (taming's 1 - pkeep)"""
    residual_dropout: Share = 0.0
    """dropout of each branch's output"""
    attention_dropout: Share = 0.0
    """dropout of the attention's weights"""
    eps: float = 1e-5
    """of the norms"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.positions != "learned" and self.dim % (4 * self.heads):
            raise ConfigError(("heads",), f"dim / heads must be a multiple of 4, got {self.dim} / {self.heads}")
        if self.dim % self.heads:
            raise ConfigError(("heads",), f"{self.heads} heads do not divide the width {self.dim}")
        if self.adaln_places and "adaln" not in self.entry:
            raise ConfigError(("adaln_places",), "needs adaln among the ways in: entry=[prefix, adaln]")
        if self.open_prefix and "prefix" not in self.entry:
            raise ConfigError(("open_prefix",), "needs prefix among the ways in: entry=[prefix]")
        self.check_entry(self.layers)
        return self

    @property
    def mlp_width(self) -> int:
        """Width inside the MLP."""
        plain = 4 * self.dim if self.mlp == "gelu" else -(-(8 * self.dim // 3) // self.multiple) * self.multiple
        return self.hidden or plain

    def block(self, layer: int) -> BlockConfig:
        """Of block number `layer`."""
        return BlockConfig(
            dim=self.dim,
            heads=self.heads,
            hidden=self.mlp_width,
            norm=self.norm,
            mlp=self.mlp,
            bias=self.bias,
            qk_norm=self.qk_norm,
            causal=True,
            cross=self.crosses(layer),
            adaln="adaln" in self.entry,
            dropout=self.residual_dropout,
            attention_dropout=self.attention_dropout,
            eps=self.eps,
        )

    def build(self, sequence: Sequence, book: Quantizer | None = None) -> Gpt:
        """The network for a sequence."""
        return Gpt(sequence, **self.arguments())


class Gpt(Autoregressive):
    """Tokens and what comes before them -> logits of the next tokens.

    Place `p` of the input holds the lead (P places: a begin vector, the condition's prefix), then codes 0, 1, ...; its
    output predicts code `p - P + 1`. Places of the lead have no position. Where there are several grids or levels, an
    embedding of a token's stream is added.
    """

    of_codes = ("tokens", "streams", "head")
    of_places = ("positions", "targets", "places")
    random_order: Tensor

    def __init__(self, sequence: Sequence, **fields: Any) -> None:
        super().__init__(sequence)
        config = GptConfig(**fields)
        self.config = config
        streams, dim, length = len(sequence.layout.sizes), config.dim, sequence.length
        self.tokens = nn.Embedding(sequence.vocabulary, dim)
        self.streams = nn.Embedding(streams, dim) if streams > 1 else None
        self.blocks = nn.ModuleList(Block(config.block(layer)) for layer in range(config.layers))
        modulated = "adaln" in config.entry
        self.norm = LastNorm(config.norm, dim, config.eps) if modulated else make_norm(config.norm, dim, config.eps)
        self.head = nn.Linear(dim, sequence.vocabulary, bias=config.head_bias)
        initialise(self, self.stack)

        def vectors(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape).normal_(std=0.02))

        self.positions = vectors(length, dim) if config.positions == "learned" else None
        self.targets = vectors(length, dim) if config.order == "random" else None
        # Row k + 1 is of the place that predicts code k, row 0 of those before.
        self.places = vectors(length + 1, dim) if config.adaln_places else None
        self.begin = vectors(dim) if config.begin or "prefix" not in config.entry else None
        if config.order == "random":
            self.register_buffer("random_order", torch.tensor(1.0))

    @property
    def stack(self) -> list[Block]:
        """The blocks, typed."""
        return list(self.blocks)  # type: ignore[arg-type]

    def trunk_blocks(self) -> list[nn.Module]:
        """The transformer's blocks."""
        return list(self.blocks)

    def angles(self, lead: int, order: Tensor | None = None) -> Tensor:
        """float32 `(P + N, head_dim / 2)`, of an order `(B, 1, P + N, head_dim / 2)`: no rotation for the lead.

        With `rope_1d` the lead is rotated too, and an order changes nothing.
        """
        config, positions = self.config, self.sequence.positions
        if config.positions == "rope_1d":
            places = torch.arange(lead + len(positions), device=positions.device) * math.prod(config.rotary_scale)
            return row_angles(places, config.dim // config.heads, config.base)
        positions = positions if order is None else positions[order][:, None]
        angles = rotary_angles(positions, config.dim // config.heads, config.base, config.rotary_scale)
        return F.pad(angles, (0, 0, lead, 0))

    def embed(self, tokens: Tensor, first: int | Tensor = 0, order: Tensor | None = None) -> Tensor:
        """Codes `(B, n)` at places `first, ...` of the row -> `(B, n, D)`.

        `first` may be int64 `(1,)`, for a host that does not know it; then the last code is none of these. `order`:
        int64 `(B, N)`, the position of each place; None: raster order.
        """
        if isinstance(first, Tensor):
            return self._embed_at(tokens, first + torch.arange(tokens.shape[1], device=tokens.device))
        x, last = self.tokens(tokens), first + tokens.shape[1]
        here = slice(first, last) if order is None else order[:, first:last]
        if self.streams is not None:
            x = x + self.streams(self.sequence.streams[here])
        if self.positions is not None:
            x = x + self.positions[here]
        if self.targets is not None:
            after = self.targets[slice(first + 1, last + 1) if order is None else order[:, first + 1 : last + 1]]
            x = x + F.pad(after, (0, 0, 0, x.shape[1] - after.shape[-2]))  # nothing comes after the last code
        return x

    def _embed_at(self, tokens: Tensor, here: Tensor) -> Tensor:
        x = self.tokens(tokens)
        if self.streams is not None:
            x = x + self.streams(self.sequence.streams[here])
        if self.positions is not None:
            x = x + self.positions[here]
        return x if self.targets is None else x + self.targets[here + 1]

    def lead(self, context: Context, order: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """What stands before the codes `(B, P, D)`, and where it is no padding: bool `(B, P)`, None for everywhere."""
        vectors, real = context.vectors.to(self.tokens.weight.dtype), context.mask
        if "prefix" not in self.config.entry:
            vectors, real = vectors[:, :0], None
        if self.begin is not None:
            vectors = torch.cat((self.begin.expand(len(vectors), 1, -1), vectors), dim=1)
            real = None if real is None else F.pad(real, (1, 0), value=True)
        if self.targets is not None:
            target = self.targets[:1].expand(len(vectors), 1, -1) if order is None else self.targets[order[:, :1]]
            vectors = torch.cat((vectors[:, :-1], vectors[:, -1:] + target), dim=1)
        return vectors, real

    def forward(self, tokens: Tensor, context: Context) -> Tensor:
        """Codes `(B, N)` -> logits `(B, N, K)`, place i from the codes before it."""
        return self.read(tokens[:, :-1], context)

    def read(self, tokens: Tensor, context: Context, cache: Cache | None = None, order: Tensor | None = None) -> Tensor:
        """The first codes `(B, n)` -> logits `(B, n + 1, K)` of codes 0 to n; fills an empty `cache`.

        In an order `(B, N)` the codes are those at its first positions.
        """
        config = self.config
        lead, real = self.lead(context, order)
        first, count = lead.shape[1], lead.shape[1] + tokens.shape[1]
        x = torch.cat((lead, self.embed(self._noised(tokens, order), 0, order)), dim=1)
        x = F.dropout(x, config.token_dropout, self.training)
        turns = None
        if config.positions != "learned":
            turns = turns_of(self.angles(first, order)[..., :count, :], first, config.positions == "llamagen")
        mask = _visible(real, first, count, config.open_prefix, x.device)
        told = tell(context, config.entry, x.dtype, self._places(first, count))
        if cache is not None:
            cache.reserve(count)
        for layer, block in enumerate(self.stack):
            x = block(x, turns, mask, told, None if cache is None else partial(cache.write, layer))
        if cache is not None:
            cache.advance(count)
        x = x[:, first - 1 :]
        if isinstance(self.norm, LastNorm):
            assert told.pooled is not None
            return self.head(self.norm(x, told.pooled if self.places is None else told.pooled[:, first - 1 :]))
        return self.head(self.norm(x))

    def _places(self, first: int, count: int) -> Tensor | None:
        """Vectors `(count, D)` that AdaLN is told of each place, `first` of which stand before the codes."""
        if self.places is None:
            return None
        rows = torch.arange(count, device=self.places.device) - first + 2
        return self.places[rows.clamp(0, self.sequence.length)]

    def _noised(self, tokens: Tensor, order: Tensor | None) -> Tensor:
        """The codes as training reads them."""
        if not self.training or not self.config.token_noise:
            return tokens
        bounds = self.sequence.bounds if order is None else self.sequence.bounds[order]
        others = (torch.rand(tokens.shape, device=tokens.device) * bounds[..., : tokens.shape[1]]).long()
        return torch.where(torch.rand(tokens.shape, device=tokens.device) < self.config.token_noise, others, tokens)

    def logits_in(self, tokens: Tensor, context: Context, order: Tensor) -> Tensor:
        """Codes `(B, N)` and an order int64 `(B, N)` of their positions -> logits `(B, N, K)`.

        Logits i are of the code at position `order[:, i]`, from those at the positions before it in that order. Raises
        `ValueError` where the network was not made for orders.
        """
        if self.targets is None:
            raise ValueError("this prior knows raster order alone: it needs order=random")
        logits = self.read(tokens.gather(1, order)[:, :-1], context, order=order)
        if not self.sequence.mixed:
            return logits
        return logits.masked_fill(self.sequence.impossible[self.sequence.streams[order]], float("-inf"))

    def loss(self, tokens: Tensor, context: Context) -> Tensor:
        """Mean cross-entropy, nats a code; in train mode of rows in random order, as many as `random_order` says."""
        if self.targets is None or not self.training:
            return super().loss(tokens, context)
        shuffled = torch.rand(len(tokens), 1, device=tokens.device) < self.random_order
        order = torch.rand(tokens.shape, device=tokens.device).argsort(dim=1)
        order = torch.where(shuffled, order, torch.arange(tokens.shape[1], device=tokens.device))
        logits = self.logits_in(tokens, context, order).float()
        return F.cross_entropy(logits.flatten(0, 1), tokens.gather(1, order).flatten())

    def start(self, tokens: Tensor, context: Context) -> BlocksState:
        """Keys and values of the context and of codes `(B, n)`, and a fast path for those that follow."""
        config, weight = self.config, self.head.weight
        lead, real = self.lead(context)
        rows, first = lead.shape[:2]
        places, head_dim = first + self.sequence.length - 1, config.dim // config.heads
        cache = Cache(config.layers, rows, config.heads, places, head_dim, weight.dtype, weight.device)
        alone = first == 1 and real is None and not tokens.shape[1]  # a step like the others
        logits = None if alone else self.read(tokens, context, cache)[:, -1]
        turn = None
        if config.positions != "learned":
            angles = self.angles(first)
            lengths = torch.ones_like(angles)
            if config.positions == "llamagen":
                lengths[:first] = 0
            turn = torch.polar(lengths, angles)
        told = tell(context, config.entry, weight.dtype, self._places(first, places))
        padding = None if real is None else ~real
        state = BlocksState(Trunk(self.stack, self.norm, self.head, self.embed, turn, first, padding, told), cache)
        if logits is None:
            state.feed(lead[:, 0])
        else:
            state.logits = logits
        return state

    def fixed(self, state: State) -> FixedState:
        """As `Autoregressive.fixed`."""
        assert isinstance(state, BlocksState)
        return FixedState(state)

    def look(self, state: State, codes: Tensor, context: Context, first: Tensor, count: int) -> Tensor:
        """As `Autoregressive.look`, from the keys and values of the state."""
        assert isinstance(state, BlocksState)
        return state.look(codes, first, count)


def _visible(real: Tensor | None, first: int, count: int, opened: bool, device: torch.device) -> Tensor | None:
    """Bool `(B or 1, 1, count, count)` of a lead of `first` places and the codes after it; None: the causal one.

    `real`: bool `(B, first)`, where the lead is no padding. `opened`: whether its places see each other.
    """
    if real is None and not (opened and first > 1):
        return None
    square = torch.ones(count, count, dtype=torch.bool, device=device).tril()
    if opened:
        square[:first, :first] = True
    if real is None:
        return square[None, None]
    real = F.pad(real, (0, count - first), value=True)
    # Padding sees itself, for a softmax over nothing is NaN.
    return ((square & real[:, None]) | torch.eye(count, dtype=torch.bool, device=device))[:, None]
