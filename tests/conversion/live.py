"""Helpers of the tests that build a published class at random weights and compare with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenizers_vq import Tokenizer


def randomise(model: nn.Module) -> None:
    """Weights as they were drawn, but biases, norms and running statistics away from their neutral start."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif "embedding" not in name:
                parameter.mul_(1.2)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.2)
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)


def spread(codebook: Tensor, latents: Tensor) -> None:
    """Codes scattered as `latents` `(B, D, *grid)` are, so that many of them are used."""
    rows = latents.movedim(1, -1).flatten(0, -2)
    drawn = rows[torch.randint(len(rows), (len(codebook),))]
    with torch.no_grad():
        codebook.copy_(drawn + 0.3 * rows.std(dim=0) * torch.randn_like(drawn))


def assert_same_codes(tokenizer: Tokenizer, images: Tensor, expected: Tensor, used: int) -> Tensor:
    """Codes equal the reference's, of which at least `used` differ; returns ours."""
    codes = tokenizer.encode(images)
    assert torch.equal(codes, expected.reshape(codes.shape))
    assert len(codes.unique()) >= used
    return codes


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Equal but for float32's rounding, relative to the largest value."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 2e-5 * theirs.abs().max()


def parameters(*modules: nn.Module) -> int:
    """Number of parameters, fixed ones too."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())
