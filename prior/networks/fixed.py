"""A code after another by operators whose shapes never change, and which ask the host for nothing: one graph a code.

Keys and values have room for all places from the start, the place is a tensor, and what lies behind it is masked. On
CUDA the operators of a code are captured once and replayed, without the launches that otherwise take most of the time;
elsewhere they run one by one.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from prior.networks.autoregressive import State
from prior.networks.stepping import BlocksState, _BlockStep


class FixedState(State):
    """Goes on from a `BlocksState` that has read what is known, as that would, by rounding alone otherwise."""

    def __init__(self, state: BlocksState) -> None:
        self.state, cache = state, state.cache
        cache.reserve(cache.length - cache.used)
        self.stores = [layer.flatten(1, 2) for layer in cache.layers]
        device = cache.layers[0].device
        self.place = torch.full((1,), cache.used, device=device)
        self.columns = torch.arange(cache.capacity, device=device)
        self.tokens = torch.zeros(state.shape[0], dtype=torch.int64, device=device)
        self.logits = state.logits
        self._graph: torch.cuda.CUDAGraph | None = None

    def step(self, tokens: Tensor) -> Tensor:
        """The code `(B,)` after those seen so far -> logits `(B, K)` of the next, which the next step overwrites."""
        self.tokens.copy_(tokens)
        if self.tokens.device.type != "cuda":
            self.logits = self.compute()
            return self.logits
        if self._graph is None:
            self._capture()
        assert self._graph is not None
        self._graph.replay()
        return self.logits

    def compute(self) -> Tensor:
        """The logits `(B, K)` after `tokens` at `place`, which moves on."""
        state, trunk = self.state, self.state.trunk
        x = trunk.embed(self.tokens[:, None], self.place - trunk.lead)[:, 0]
        pooled = trunk.told.pooled
        if pooled is not None:
            pooled = pooled.index_select(1, self.place)[:, 0] if pooled.shape[1] > 1 else pooled[:, 0]
        for layer, block in enumerate(state.blocks):
            x = block(x, pooled, partial(self._attend, layer, block))
        self.place.add_(1)
        return state.head(state.norm(x, pooled))

    def _attend(self, layer: int, block: _BlockStep, qkv: Tensor) -> Tensor:
        """As `BlocksState._attend`, over all places."""
        state, store = self.state, self.stores[layer]
        queries, kept = state.turned(
            block, qkv, None if state.turns is None else state.turns.index_select(0, self.place)[0]
        )
        state.cache.layers[layer].index_copy_(3, self.place, kept.to(store.dtype).unsqueeze(3))
        keys, values = store.unbind()
        scores = torch.bmm(queries.reshape(store.shape[1], 1, -1).to(qkv.dtype), keys.transpose(1, 2))
        scores = scores.masked_fill_(self.columns > self.place, float("-inf"))
        if state.padding is not None:
            scores[:, :, : state.trunk.lead].masked_fill_(state.padding, float("-inf"))
        return torch.bmm(scores.softmax(dim=-1), values).view(qkv.shape[0], -1)

    def _capture(self) -> None:
        """Twice by itself first, as libraries ask; what that writes, the first replay writes over."""
        before = self.place.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self.compute()
                self.place.copy_(before)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self.logits = self.compute()
        self.place.copy_(before)
