"""How the gradients of a step are taken, mixed and carried into the tokenizer: pure functions.

The losses of a step are differentiated at the leaves x_i of its record: the decoder's output, and the features where a
loss speaks of them. What a loss does not look at has the gradient None.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, ...]


def at(loss: Tensor, places: Sequence[Tensor], *, last: bool = False) -> Gradients:
    """dL/dx at each of `places`. The graph stays, since losses share parts of it, unless the loss is the `last`."""
    return torch.autograd.grad(loss, list(places), retain_graph=not last, allow_unused=True)


def added(first: Gradients, second: Gradients) -> Gradients:
    """The sum, place by place."""
    pairs = zip(first, second, strict=True)
    return tuple(a if b is None else b if a is None else a + b for a, b in pairs)


def mixed(reconstruction: Gradients, adversarial: Gradients, weight: Tensor | float) -> Gradients:
    """`g_i = sum_t w_t dL_t/dx_i + w lambda dL_G/dx_i`, what the tokenizer is given at each leaf x_i.

    `reconstruction`: the first sum, over terms t of weight w_t. `adversarial`: dL_G/dx_i of the generator's loss.
    `weight`: w lambda, the recipe's weight times the adaptive one; lambda (arXiv 2012.09841, eq. 7; 1 where it is off)
    is read at the output alone, from the gradients that its two sums have at the decoder's last weight.
    """
    return added(reconstruction, tuple(None if g is None else weight * g for g in adversarial))


def carried(values: Sequence[Tensor], gradients: Gradients) -> Tensor:
    """`sum_i <x_i, g_i>`: its gradient at the values x_i is g_i, so that one backward carries all of them on."""
    products = [(value * g).sum() for value, g in zip(values, gradients, strict=True) if g is not None]
    return sum(products, torch.zeros((), device=values[0].device))
