"""TiTok's first stage (Yu et al., arXiv 2406.07550, section 3.3): predict the codes of a trained tokenizer."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_vq.config import Config, Rate
from tokenizers_vq.losses.record import Record
from tokenizers_vq.losses.terms import Term
from tokenizers_vq.models import load
from tokenizers_vq.networks.frozen import Frozen
from tokenizers_vq.tokenizer import Tokenizer


class ProxyCodesConfig(Config):
    """Cross-entropy of the decoder's output against another tokenizer's codes; needs `decoder.kind: titok_proxy`."""

    kind: Literal["proxy_codes"] = "proxy_codes"
    tokenizer: str
    """the tokenizer that gives the codes: a folder or name, as `load` takes it (maskgit/imagenet-f16-256)"""
    weight: Rate = 1.0
    """weight, or a schedule of it"""

    def build(self, tokenizer: Tokenizer | None = None) -> ProxyCodes:
        return ProxyCodes(**self.arguments())


class ProxyCodes(Term):
    """`mean -ln softmax(output)[code]` over the positions of the other tokenizer, which stays as it is."""

    name = "proxy_codes"

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        config = ProxyCodesConfig(**fields)
        self.weight, self.source = config.weight, config.tokenizer
        self.target = Frozen(load(config.tokenizer))
        layout = self.target.model.code_layout()
        if len(layout.grids) > 1 or layout.levels > 1 or len(layout.grids[0]) != 2:
            raise ValueError(
                f"losses.proxy_codes.tokenizer: {config.tokenizer} has no single grid of codes to predict: "
                "give a tokenizer with one code at each position of an image, such as maskgit/imagenet-f16-256"
            )
        self.num_codes = layout.sizes[0]

    def forward(self, record: Record) -> Tensor:
        """Raises `ValueError` where the decoder gives pixels, or logits of other codes or another grid."""
        codes = record.once(("proxy_codes", self.source), lambda: self.codes(record.images))
        wanted = (self.num_codes, *codes.shape[1:])
        if record.output.shape[1:] != wanted:
            height, width = record.images.shape[-2:]
            raise ValueError(
                f"proxy_codes predicts {self.source}, {wanted[0]} codes on {wanted[1]}x{wanted[2]}, but the decoder's "
                f"output is {tuple(record.output.shape[1:])}: give model.decoder.kind=titok_proxy with stage=codes, "
                f"proxy_codes={wanted[0]} and patch={height // wanted[1]} (images of {height}x{width})"
            )
        return F.cross_entropy(record.output.float(), codes)

    def codes(self, images: Tensor) -> Tensor:
        """int64 `(B, h, w)`, in float32 whatever the autocast: rounding moves codes."""
        with torch.autocast(images.device.type, enabled=False):
            codes = self.target.model.encode(images.float())
        assert isinstance(codes, Tensor)  # one grid
        return codes
