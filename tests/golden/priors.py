"""How each recorded family of priors is asked for what was recorded: one entry a source of `prior.convert`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from prior.conversion import Book

Meta = Mapping[str, Any]


class How(NamedTuple):
    """What the recordings of a family leave unsaid."""

    sampler: Callable[[Meta], dict[str, Any]] = lambda meta: {}
    """fields of the sampler by which codes were drawn greedily, beside temperature 0"""
    guidance: Callable[[Meta], dict[str, Any]] = lambda meta: {"guidance": meta["guidance_scale"]}
    """fields of the sampler for the guided ones: ours is uncond + guidance (cond - uncond)"""
    condition: Callable[[Tensor], Any] = lambda recorded: recorded
    """the recorded condition as `Prior.logits` takes it"""
    book: Callable[[Path], Book | None] = lambda folder: None
    """the tokenizer's quantizer, of a folder of recordings, for networks that are fed its vectors"""
    unused: int = 0
    """logits beyond the codes, such as that of the mask, which are left out here"""
    parameters: Callable[[Any, Meta], int] | None = lambda prior, meta: sum(p.numel() for p in prior.parameters())
    """our parameters as the reference counts them; None where that says nothing"""


HOW: dict[str, How] = {
    "maskgit-transformer": How(
        sampler=lambda meta: {
            "steps": meta["num_sample_steps"],
            "schedule": "arccos",
            "confidence": "logit",
            "choice_temperature": 0,
        },
        guidance=lambda meta: {"guidance": 1 + meta["guidance_scale"]},
        # Its positions count the class, its types of tokens are folded into them, and one of two is never used.
        parameters=None,
    ),
}
