"""Entropy of soft assignments to a codebook: low for each vector, high for the batch (arXiv 2310.05737, section 3)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tokenizers_vq import distributed

Score = Literal["euclidean", "dot"]

_BLOCK = 1 << 21  # probabilities held at once: 8 MiB in float32


def entropy_loss(x: Tensor, codebook: Tensor, temperature: float, score: Score = "euclidean") -> Tensor:
    """Mean entropy of p(k | x) less the entropy of the mean of p, in nats: `(N, D)`, `(K, D)` -> scalar.

    p(k | x) = softmax_k(-|x - e_k|^2 / temperature), or of x . e_k / temperature (`dot`), the means taken over all
    processes. The entropy of the mean has 1e-5 inside its logarithm, as LlamaGen's (arXiv 2406.06525). Gradients flow
    to both arguments. Memory beyond the arguments stays under 50 MB (to K = 2^21), since the backward computes the
    probabilities again, block by block; time is that of six products `(N, D) x (D, K)` and two exponentials for each of
    N x K pairs.
    """
    sample, mean = _SoftAssignment.apply(x, codebook, temperature, score)
    joined = distributed.mean(torch.cat([sample[None], mean]))
    sample, mean = joined[0], joined[1:]
    return sample + (mean * torch.log(mean + 1e-5)).sum()


class _SoftAssignment(torch.autograd.Function):
    """Mean entropy of the rows' p(k | x), and the mean of p."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codebook: Tensor, temperature: float, score: Score) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, codebook)
        ctx.temperature, ctx.score = temperature, score
        entropy, mean = x.new_zeros(()), x.new_zeros(len(codebook))
        for rows in _blocks(x, codebook):
            log = _log_probabilities(rows, codebook, temperature, score)
            probabilities = log.exp()
            mean += probabilities.sum(0)
            entropy -= probabilities.mul_(log).sum()
        return entropy / len(x), mean / len(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_entropy: Tensor, to_mean: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, codebook = ctx.saved_tensors
        to_x = []
        steepness = (2 if ctx.score == "euclidean" else 1) / (ctx.temperature * len(x))
        to_codebook = torch.zeros_like(codebook) if ctx.needs_input_grad[1] else None
        with torch.autocast(x.device.type, enabled=False):
            for rows in _blocks(x, codebook):
                log = _log_probabilities(rows, codebook, ctx.temperature, ctx.score)
                probabilities = log.exp()
                slope = log.mul_(-to_entropy).add_(to_mean)  # d / dp, up to a constant a row
                slope -= (probabilities * slope).sum(1, keepdim=True)
                slope = probabilities.mul_(slope).mul_(steepness)  # d / d logit: rows sum to 0
                to_x.append(slope @ codebook)
                if to_codebook is not None:
                    to_codebook += slope.T @ rows
                    if ctx.score == "euclidean":
                        to_codebook -= slope.sum(0)[:, None] * codebook
        return torch.cat(to_x), to_codebook, None, None


def _blocks(x: Tensor, codebook: Tensor) -> tuple[Tensor, ...]:
    return x.split(max(1, _BLOCK // len(codebook)))


def _log_probabilities(rows: Tensor, codebook: Tensor, temperature: float, score: Score) -> Tensor:
    # |x|^2 is one constant a row, which the softmax does not see. The best is taken off before the division, else
    # float32 rounds logits a hundred times larger. Below e^-60 nothing counts, but subnormal numbers slow a CPU down.
    if score == "dot":
        closeness = rows @ codebook.T
    else:
        closeness = torch.addmm(codebook.square().sum(1), rows, codebook.T, beta=-1, alpha=2)
    return closeness.sub_(closeness.amax(1, keepdim=True)).div_(temperature).clamp_(min=-60).log_softmax(1)
