"""Code recovery, as InfoGAN asks it of a generator (Chen et al., arXiv 1606.03657, eq. 5)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tokenizers_vq.config import Config, Rate
from tokenizers_vq.losses.record import Record, levels
from tokenizers_vq.losses.terms import Term
from tokenizers_vq.tokenizer import Tokenizer


class CodeRecoveryConfig(Config):
    """The reconstruction, encoded again, against what the image was encoded to.

    The tokenizer's own encoder stands where InfoGAN trains a network to read codes: in eval mode, without gradient to
    its weights.
    """

    kind: Literal["code_recovery"] = "code_recovery"
    weight: Rate = 1.0
    """weight, or a schedule of it"""
    target: Literal["features", "codes"] = "features"
    """features before the quantizer, or the codes' vectors (gradient as the quantizer estimates it)"""

    def build(self, tokenizer: Tokenizer | None = None) -> CodeRecovery:
        return CodeRecovery(**self.arguments())


class CodeRecovery(Term):
    """`mean (e(y) - e(x))^2`, a Gaussian's likelihood: e the encoder, or quantizer after encoder; mean over grids.

    y is clamped to [-1, 1], as images are that an encoder sees.
    """

    name = "code_recovery"

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        config = CodeRecoveryConfig(**fields)
        self.weight, self.target = config.weight, config.target

    def forward(self, record: Record) -> Tensor:
        """Raises `ValueError` outside a tokenizer."""
        codes = self.target == "codes"
        wanted = record.quantized and record.quantized.features if codes else record.features
        if record.tokenizer is None or wanted is None:
            raise ValueError(
                "losses.code_recovery: it encodes reconstructions again, but there is no tokenizer: take it out"
            )
        found = _encode(record.tokenizer, record.reconstructions.clamp(-1, 1), codes)
        pairs = zip(found, levels(wanted), strict=True)
        return torch.stack([(again.float() - once.detach().float()).square().mean() for again, once in pairs]).mean()


class _Encoding(nn.Module):
    """Features of every grid, or the vectors of their codes."""

    def __init__(self, tokenizer: Tokenizer, quantize: bool) -> None:
        super().__init__()
        self.tokenizer, self.quantize = tokenizer, quantize

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = levels(self.tokenizer.encode_features(images))
        if not self.quantize:
            return features
        pairs = zip(self.tokenizer.quantizers, features, strict=True)
        return tuple(quantizer(each).features for quantizer, each in pairs)


def _encode(tokenizer: Tokenizer, images: Tensor, quantize: bool) -> tuple[Tensor, ...]:
    """In eval mode, differentiable in the images alone; the tokenizer stays as it is."""
    encoding = _Encoding(tokenizer, quantize)
    state = {name: parameter.detach() for name, parameter in encoding.named_parameters()}
    state |= {name: buffer.clone() for name, buffer in encoding.named_buffers()}
    modes = {module: module.training for module in tokenizer.modules()}
    tokenizer.eval()
    try:
        return functional_call(encoding, state, (images,))
    finally:
        for module, training in modes.items():
            module.training = training
