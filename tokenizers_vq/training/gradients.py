"""How the gradients of a step are taken, mixed and carried into the tokenizer: pure functions.

The losses of a step are differentiated at the leaves x_i of its record: the decoder's output, and the features where a
loss speaks of them. What a loss does not look at has the gradient None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tokenizers_vq import distributed

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
    return added(reconstruction, scaled(adversarial, weight))


def scaled(gradients: Gradients, factor: Tensor | float) -> Gradients:
    """Each times `factor`."""
    return tuple(None if g is None else factor * g for g in gradients)


def carried(values: Sequence[Tensor], gradients: Gradients) -> Tensor:
    """`sum_i <x_i, g_i>`: its gradient at the values x_i is g_i, so that one backward carries all of them on."""
    products = [(value * g).sum() for value, g in zip(values, gradients, strict=True) if g is not None]
    return sum(products, torch.zeros((), device=values[0].device))


def pulled(values: Sequence[Tensor], gradients: Gradients, weight: Tensor) -> Tensor:
    """The gradient at `weight` of what has these gradients at values that come of it, averaged over processes."""
    given = [(value, g) for value, g in zip(values, gradients, strict=True) if g is not None]
    if not given:
        return torch.zeros_like(weight, dtype=torch.float32)
    ends, starts = zip(*given, strict=True)
    (found,) = torch.autograd.grad(ends, weight, starts, retain_graph=True)
    return distributed.mean(found.float())


def shares(output: Tensor, weight: Tensor, sides: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`|J g_t| / sum over s of |J g_s|`: each loss's share of the gradient at `weight`, scalars that sum to 1.

    `sides`: its gradient g_t at `output`, weighted as the step has it. J carries what lies at `output` to `weight`, a
    parameter of the last layer; gradients are averaged over processes first. All are 0 where none has a gradient.
    """
    norms = torch.stack([torch.linalg.vector_norm(pulled([output], (side,), weight)) for side in sides.values()])
    parts = norms / norms.sum().clamp(min=torch.finfo(norms.dtype).tiny)
    return dict(zip(sides, parts, strict=True))
