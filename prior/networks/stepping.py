"""Blocks that go on place by place, in few operations and without gradient, with keys and values kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prior.networks.autoregressive import State
from prior.networks.blocks import Block, CrossAttention, LastNorm, RMSNorm, Told, modulate
from prior.networks.cache import Cache
from prior.networks.packing import Product, product, product_add


class Trunk(NamedTuple):
    """What a network hands over to go on place by place. Places before the codes are the lead: prefix, begin vector."""

    blocks: list[Block]
    """causal, with norms first"""
    norm: nn.Module
    """RMSNorm, LayerNorm or `LastNorm`"""
    head: nn.Linear
    embed: Callable[[Tensor, int | Tensor], Tensor]
    """codes `(B, n)`, the number of the first (int64 `(1,)`: not known to the host) -> vectors `(B, n, D)`"""
    turn: Tensor | None
    """complex `(P + N, head_dim / 2)`, of rotary positions; None: there are none"""
    lead: int
    """places before the codes"""
    padding: Tensor | None
    """bool `(B, lead)`, True where a place is padding"""
    told: Told
    """`pooled`, where it has places, has those of lead and codes"""


class BlocksState(State):
    """One token at a time, without gradient or dropout; equals the blocks on all places. Keeps copies of weights."""

    def __init__(self, trunk: Trunk, cache: Cache) -> None:
        self.trunk, self.cache = trunk, cache
        rows, heads = cache.layers[0].shape[1:3]
        scale = cache.layers[0].shape[-1] ** -0.5
        self.scale, self.turns = scale, None
        if trunk.turn is not None:
            # Queries, keys and values are turned in one product: queries scaled too, values as they are.
            turns = (trunk.turn * scale, trunk.turn, torch.ones_like(trunk.turn))
            self.turns = torch.stack(turns, dim=1).unsqueeze(2)
        self.shape = (rows, 3, heads, -1)
        self.stores = [layer.flatten(1, 2) for layer in cache.layers]
        self.padding = None if trunk.padding is None else trunk.padding.repeat_interleave(heads, 0)[:, None]
        # MKL's float32 products take slices of the cache as they are.
        self.slices = cache.layers[0].dtype == torch.float32
        self.blocks = [_BlockStep(block, trunk.told, rows) for block in trunk.blocks]
        self.norm = _last_norm(trunk.norm, trunk.told, rows)
        self.head = _affine(trunk.head, rows)

    def step(self, tokens: Tensor) -> Tensor:
        """The code `(B,)` after those seen so far -> logits `(B, K)` of the one that follows."""
        return self.feed(self.trunk.embed(tokens[:, None], self.cache.used - self.trunk.lead)[:, 0])

    def feed(self, x: Tensor) -> Tensor:
        """As `step`, for the vectors `(B, D)` at the next place: those of the lead, or embedded codes."""
        if self.cache.reserve(1):
            self.stores = [layer.flatten(1, 2) for layer in self.cache.layers]
        pooled = self.trunk.told.pooled
        if pooled is not None:  # of one place alone, blocks know what it changes
            pooled = pooled[:, self.cache.used] if pooled.shape[1] > 1 else pooled[:, 0]
        for layer, block in enumerate(self.blocks):
            x = block(x, pooled, partial(self._attend, layer, block))
        self.cache.advance(1)
        self.logits = self.head(self.norm(x, pooled))
        return self.logits

    def look(self, codes: Tensor, first: Tensor, count: int) -> Tensor:
        """Codes `(B, N)` -> logits `(B, count, K)` of places `first, first + 1, ...` of each row, `first` >= 1.

        The codes before those of a row were read or looked at before; keys and values of the others are written anew.
        Places after the last are the last.
        """
        trunk, length = self.trunk, codes.shape[1]
        ahead = torch.arange(count, device=codes.device)
        inputs = (first[:, None] - 1 + ahead).clamp(max=length - 2)  # the last code is read by nobody
        places = inputs + trunk.lead
        self.cache.reserve(max(0, int(places.max()) + 1 - self.cache.used))
        x = trunk.embed(codes, 0)
        x = x.gather(1, inputs[..., None].expand(-1, -1, x.shape[-1]))
        turns = None
        if trunk.turn is not None:
            turn = trunk.turn[places][:, None]
            turns = torch.stack((turn.real, turn.imag))
        mask = torch.arange(self.cache.capacity, device=codes.device) <= places[..., None]
        if trunk.padding is not None:
            mask[:, :, : trunk.lead] &= ~trunk.padding[:, None]
        told = trunk.told
        if told.pooled is not None and told.pooled.shape[1] > 1:
            told = told._replace(pooled=told.pooled.gather(1, places[..., None].expand(-1, -1, told.pooled.shape[-1])))
        for layer, block in enumerate(trunk.blocks):
            x = block(x, turns, mask[:, None], told, partial(self.cache.overwrite, layer, places))
        if isinstance(trunk.norm, LastNorm):
            assert told.pooled is not None
            return trunk.head(trunk.norm(x, told.pooled))
        return trunk.head(trunk.norm(x))

    def turned(self, block: _BlockStep, qkv: Tensor, turn: Tensor | None) -> tuple[Tensor, Tensor]:
        """`(B, 3 D)` of one place -> scaled queries `(B, heads, d)`, keys and values `(2, B, heads, d)`, all turned."""
        parts = qkv.view(self.shape)
        if block.qk_norm is not None:
            parts = block.qk_norm(parts)
        if turn is None:
            turned = parts.transpose(0, 1)
            return turned[0] * self.scale, turned[1:]
        turned = torch.view_as_complex(parts.float().unflatten(-1, (-1, 2))) * turn
        turned = torch.view_as_real(turned).flatten(-2).transpose(0, 1)
        return turned[0], turned[1:]

    def _attend(self, layer: int, block: _BlockStep, qkv: Tensor) -> Tensor:
        """Queries, keys and values `(B, 3 D)` of the next place -> what it sees, `(B, D)`; keeps keys and values."""
        place, store = self.cache.used, self.stores[layer]
        queries, kept = self.turned(block, qkv, None if self.turns is None else self.turns[place])
        self.cache.layers[layer][:, :, :, place] = kept
        queries = queries.reshape(store.shape[1], 1, -1).to(qkv.dtype)
        keys, values = (store[:, :, : place + 1] if self.slices else store).unbind()
        scores = torch.bmm(queries, keys.transpose(1, 2))
        if not self.slices:
            scores[:, :, place + 1 :] = float("-inf")
        if self.padding is not None:
            scores[:, :, : self.trunk.lead].masked_fill_(self.padding, float("-inf"))
        return torch.bmm(scores.softmax(dim=-1), values).view(qkv.shape[0], -1)


class _BlockStep:
    """A block at one place: `(B, D)` -> `(B, D)`."""

    def __init__(self, block: Block, told: Told, rows: int) -> None:
        self.norm1, self.norm2 = _fast_norm(block.attention_norm), _fast_norm(block.mlp_norm)
        self.qkv = _affine(block.qkv, rows)
        self.modulation = None if block.modulation is None else _modulation(block.modulation, told, rows)
        gated = self.modulation is not None
        self.out, self.down = _added(block.out, rows, gated), _added(block.down, rows, gated)
        self.gelu = block.config.mlp == "gelu"
        self.up = _affine(block.up if self.gelu else block.gate_up, rows)
        self.cross = None
        if block.cross is not None and told.vectors is not None:
            self.cross = _cross(block.cross, told)
        self.qk_norm = None if block.query_norm is None else _qk_norm(block)

    def __call__(self, x: Tensor, pooled: Tensor | None, attend: Callable[[Tensor], Tensor]) -> Tensor:
        changes: tuple[Tensor, ...] | None = None
        if self.modulation is not None and pooled is not None:
            changes = self.modulation(pooled).chunk(6, dim=-1)
        y = self.norm1(x)
        y = y if changes is None else modulate(y, *changes[:2])
        x = self.out(attend(self.qkv(y)), x, None if changes is None else changes[2])
        if self.cross is not None:
            x = x + self.cross(x)
        y = self.norm2(x)
        y = y if changes is None else modulate(y, *changes[3:5])
        if self.gelu:
            inner = F.gelu(self.up(y))
        else:
            gate, up = self.up(y).chunk(2, dim=-1)
            inner = F.silu(gate).mul_(up)
        return self.down(inner, x, None if changes is None else changes[5])


def _affine(linear: nn.Linear, rows: int) -> Product:
    """`nn.Linear` of a few rows, without gradient."""
    apply = product(linear.weight, rows)
    if linear.bias is None:
        return apply
    bias = linear.bias.detach()
    return lambda x: apply(x).add_(bias)


def _added(linear: nn.Linear, rows: int, gated: bool) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """`x (B, in), y (B, out), gate (B, out) -> y + gate * linear(x)`, a gate of None being 1."""
    if gated:
        alone = _affine(linear, rows)
        return lambda x, y, gate: torch.addcmul(y, alone(x), gate) if gate is not None else y + alone(x)
    apply = product_add(linear.weight, rows)
    if linear.bias is None:
        return lambda x, y, gate: apply(x, y)
    bias = linear.bias.detach()
    return lambda x, y, gate: apply(x, y).add_(bias)


def _fast_norm(norm: nn.Module) -> Product:
    """`RMSNorm.forward` in fewer operations, without gradient: x sqrt(D) / hypot(|x|, sqrt(D eps)); others stay."""
    if not isinstance(norm, RMSNorm):
        return norm
    weight = 1.0 if norm.weight is None else norm.weight.detach().float()
    scaled = weight * norm.dim**0.5
    floor = torch.tensor((norm.dim * norm.eps) ** 0.5)
    if norm.weight is not None:
        floor = floor.to(norm.weight.device)

    def apply(x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        return (x * scaled).div_(length.hypot_(floor)).to(x.dtype)

    return apply


def _modulation(linear: nn.Linear, told: Told, rows: int) -> Product:
    """The pooled condition `(B, D)` of a place -> shifts, scales, gates; made once, where all places have the same."""
    if told.pooled is None or told.pooled.shape[1] > 1:
        return _affine(linear, rows)
    made = linear(told.pooled[:, 0])
    return lambda pooled: made


def _last_norm(norm: nn.Module, told: Told, rows: int) -> Callable[[Tensor, Tensor | None], Tensor]:
    """`x (B, D), pooled (B, D)` -> what the head is given."""
    if not isinstance(norm, LastNorm):
        plain = _fast_norm(norm)
        return lambda x, pooled: plain(x)
    inner, change = norm.norm, _modulation(norm.modulation, told, rows)

    def modulated(x: Tensor, pooled: Tensor | None) -> Tensor:
        assert pooled is not None
        shift, scale = change(pooled).chunk(2, dim=-1)
        return modulate(inner(x), shift, scale)

    return modulated


def _qk_norm(block: Block) -> Callable[[Tensor], Tensor]:
    """`(B, 3, heads, head_dim)` of queries, keys and values -> the same, the first two normed."""
    assert block.query_norm is not None and block.key_norm is not None
    query, key = block.query_norm, block.key_norm
    return lambda qkv: torch.stack((query(qkv[:, 0]), key(qkv[:, 1]), qkv[:, 2]), dim=1)


def _cross(cross: CrossAttention, told: Told) -> Product:
    """`(B, D)` -> what it sees of the condition, whose keys and values are made once."""
    assert told.vectors is not None
    keys, values = cross.read(told.vectors)
    return lambda x: cross(x[:, None], keys, values, told.mask)[:, 0]
