"""What a training run costs, told before there is one: a step on tensors that have shapes, and no memory or values.

Fake tensors of torch carry shape, dtype and device through the networks; what their forward keeps for the backward is
counted storage by storage, products and convolutions by `FlopCounterMode`. Memory beside that (workspaces, fragments)
and the share of a card's peak that a run reaches are assumptions, stated as `ROOM` and `utilisation`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

CARDS = {
    "A100": (312e12, 19.5e12),
    "H100": (989e12, 67e12),
    "H200": (989e12, 67e12),
    "L40S": (362e12, 91.6e12),
    "L4": (121e12, 30.3e12),
    "RTX 4090": (165e12, 82.6e12),
}
"""dense products a second as the makers state them: bf16, fp32 (TF32, which A100 and newer may use instead, is not)"""
ROOM = 0.9
"""share of a card's memory that a run can fill: the rest is its context, workspaces and fragments"""


class Cost(NamedTuple):
    """What one forward and backward takes."""

    kept: int = 0
    """bytes that the forward keeps for the backward, weights not among them; of it what blocks recompute, once"""
    largest: int = 0
    """bytes of the largest of these tensors: the backward holds a gradient or two of its size"""
    flops: float = 0.0
    """operations of products, convolutions and attention, a multiplication and an addition being two"""

    @property
    def peak(self) -> int:
        """Bytes at the beginning of the backward."""
        return self.kept + 2 * self.largest


class Measured(NamedTuple):
    """A step of one micro-batch."""

    memory: int
    """bytes that come and go with the micro-batch"""
    flops: float


class State(NamedTuple):
    """Bytes that stay, of one process that holds all of them."""

    weights: int
    gradients: int
    optimizer: int
    average: int


class Estimate(NamedTuple):
    """What a run takes on so many cards."""

    parameters: dict[str, int]
    state: State
    image: int
    """bytes an image of a micro-batch takes beside the state"""
    besides: int
    """bytes that a micro-batch of any size takes besides"""
    flops: float
    """operations of an image in a step"""
    steps: int
    batch: int
    """images of a step, over all cards"""
    micro: int
    """images that a card holds at once"""
    precision: str
    gpus: int
    memory: float
    """bytes of a card"""
    fsdp: bool
    utilisation: float
    left_out: tuple[str, ...]
    """what could not be counted, and why"""

    @property
    def held(self) -> int:
        """Bytes that stay on a card; FSDP shares all of them out."""
        return sum(self.state) // (self.gpus if self.fsdp else 1)

    @property
    def needed(self) -> int:
        """Bytes of the recipe's own micro-batch on a card."""
        return self.held + self.besides + self.micro * self.image

    @property
    def fits(self) -> bool:
        """Whether that is less than the part of a card's memory that can be filled."""
        return self.needed <= ROOM * self.memory

    @property
    def largest(self) -> int:
        """Images that a card could hold at once; 0 where not even one."""
        return max(0, int((ROOM * self.memory - self.held - self.besides) // max(1, self.image)))

    def days(self, card: str) -> float:
        """Days of the run on so many of these cards."""
        speed = CARDS[card][0 if self.precision == "bf16" else 1]
        return self.flops * self.steps * self.batch / (speed * self.utilisation * self.gpus) / 86400

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        found = {**self._asdict(), "state": self.state._asdict(), "left_out": list(self.left_out)}
        own = {"held": self.held, "needed": self.needed, "fits": self.fits, "largest_micro_batch": self.largest}
        return {**found, **own, "days": {card: self.days(card) for card in CARDS}}


def state_of(trained: Iterable[nn.Module], averaged: nn.Module | None, optimizer: str) -> State:
    """Bytes of modules, their gradients and optimizer; of the average of one of them."""
    modules = list(trained)
    weights = sum(tensor.nbytes for module in modules for tensor in (*module.parameters(), *module.buffers()))
    gradients = sum(one.nbytes for module in modules for one in module.parameters() if one.requires_grad)
    average = 0 if averaged is None else sum(one.nbytes for one in (*averaged.parameters(), *averaged.buffers()))
    return State(weights, gradients, 2 * gradients if optimizer == "adamw" else 0, average)


def faked(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A module of the meta device as one of fake tensors on the CPU, where autocast and attention do as they do."""
    with mode:
        return module._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu"))


def count(
    run: Callable[[], Tensor | Sequence[Tensor]], trained: Iterable[nn.Module], blocks: Sequence[nn.Module] = ()
) -> Cost:
    """The cost of a forward, and of a backward from the sum of what it gives.

    `blocks`: those that gradient checkpointing computes anew: their inputs are kept, and at a time the inside of one.
    """
    weights = {_key(parameter) for module in trained for parameter in module.parameters()}
    kept, inside = _Kept(weights), [_Kept(weights) for _ in blocks]
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter, _traced():
        for block, own in zip(blocks, inside, strict=True):
            block.forward = MethodType(_recomputed(own, kept), block)
        try:
            with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
                out = run()
        finally:
            for block in blocks:
                block.__dict__.pop("forward", None)
        forward = counter.get_total_flops()
        outputs = [one for one in ([out] if isinstance(out, Tensor) else out) if one.requires_grad]
        if outputs:
            # What losses share, the reconstruction say, stays for the next of them.
            torch.autograd.backward(outputs, [torch.ones_like(one) for one in outputs], retain_graph=True)
        flops = counter.get_total_flops() + (forward if blocks else 0)
    anew = max((own.bytes for own in inside), default=0)
    return Cost(kept.bytes + anew, max((kept.largest, *(own.largest for own in inside))), flops)


@contextmanager
def _traced() -> Iterator[None]:
    """Checks of values (are these codes in range?) are left out, as where torch traces: there are no values."""
    before = torch.compiler.is_compiling
    torch.compiler.is_compiling = lambda: True
    try:
        yield
    finally:
        torch.compiler.is_compiling = before


class _Kept:
    """Storages that are kept for a backward, without weights."""

    def __init__(self, weights: set[int]) -> None:
        self.storages: dict[int, Any] = {}
        self.weights = weights

    def pack(self, tensor: Tensor) -> Tensor:
        if (key := _key(tensor)) not in self.weights:
            self.storages[key] = tensor.untyped_storage()
        return tensor

    @property
    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self.storages.values())

    @property
    def largest(self) -> int:
        return max((storage.nbytes() for storage in self.storages.values()), default=0)


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _recomputed(inside: _Kept, outside: _Kept) -> Callable[..., Any]:
    def forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for one in (*args, *kwargs.values()):
            if isinstance(one, Tensor):
                outside.pack(one)
        with torch.autograd.graph.saved_tensors_hooks(inside.pack, lambda tensor: tensor):
            return type(block).forward(block, *args, **kwargs)

    return forward


def _attention(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(
    gradient: Any, query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kw: Any
) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def by_image(step: Callable[[int], Measured]) -> tuple[int, int, float]:
    """Bytes an image, bytes besides and operations an image, of steps of one and of two images."""
    one, two = step(1), step(2)
    image = max(1, two.memory - one.memory)
    return image, max(0, one.memory - image), two.flops / 2


def micro_batch(batch: int, gpus: int, accumulate: int) -> int:
    """Images that a card holds at once. Raises `ValueError` where the batch does not part into so many."""
    if batch % (gpus * accumulate):
        raise ValueError(
            f"batch_size {batch} does not part into {gpus} GPUs of {accumulate} micro-batches: give another --gpus, "
            "batch_size or accumulate"
        )
    return batch // (gpus * accumulate)
