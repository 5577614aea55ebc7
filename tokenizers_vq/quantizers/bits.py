"""Codes of sign bits, and the entropy of soft bits without a table of 2^d probabilities for each vector."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_vq import distributed
from tokenizers_vq.devices import constant

MOST_BITS = 62
"""of one code, which is int64"""


def pack(positive: Tensor) -> Tensor:
    """Bits `(B, d, *grid)` -> int64 `(B, *grid)`, the first channel least significant."""
    rows = positive.long().movedim(1, -1)
    return (rows * _powers(rows.shape[-1], rows)).sum(-1)


def unpack(codes: Tensor, bits: int) -> Tensor:
    """int64 `(B, *grid)` -> float32 `(B, bits, *grid)` of -1 and 1, the inverse of `pack`."""
    powers = _powers(bits, codes)
    positive = codes[..., None] % (2 * powers) >= powers
    return positive.float().mul(2).sub(1).movedim(-1, 1)


def _powers(bits: int, like: Tensor) -> Tensor:
    # Arithmetic, since ONNX shifts no signed integers.
    return constant([2**i for i in range(bits)], like.device)


def bit_entropies(logits: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """`(N, d)` -> mean entropy of the vectors, and the entropy of their mean, in nats, over all processes.

    Bit i of a vector is 1 with probability sigmoid(logit), independent of its others, so the first is a sum over bits,
    exactly. The second is a sum over groups of `group` bits, each joint distribution exact (1e-5 inside its logarithm,
    as MAGVIT's); that is an upper bound, and equal with one group of all bits. The joint mean of a group is one matrix
    product of its two halves' probabilities: memory is N 2^(group / 2) + 2^group, never N 2^d.
    """
    # By symmetry from -|logit|: log p + (1 - p) odds without cancellation at either end.
    small = -logits.abs()
    sample = (F.softplus(small) - small * torch.sigmoid(small)).sum(1).mean()
    joints = [_joint_mean(part).flatten() for part in logits.split(group, dim=1)]
    joined = distributed.mean(torch.cat([sample[None], *joints]))
    batch = [-(joint * torch.log(joint + 1e-5)).sum() for joint in joined[1:].split([len(joint) for joint in joints])]
    return joined[0], torch.stack(batch).sum()


def _joint_mean(logits: Tensor) -> Tensor:
    """`(N, g)` -> mean over the vectors of the joint probabilities, `(2^(g - g // 2), 2^(g // 2))`."""
    low = logits.shape[1] // 2
    return _joint(logits[:, low:]).T @ _joint(logits[:, :low]) / len(logits)


def _joint(logits: Tensor) -> Tensor:
    """`(N, g)` -> `(N, 2^g)`, the first bit fastest."""
    joint = logits.new_ones(len(logits), 1)
    for logit in logits.unbind(1):
        bit = torch.stack([torch.sigmoid(-logit), torch.sigmoid(logit)], dim=1)
        joint = (bit[:, :, None] * joint[:, None, :]).flatten(1)
    return joint
