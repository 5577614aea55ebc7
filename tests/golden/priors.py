"""How each recorded family of priors is asked for what was recorded: one entry a source of `prior.convert`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file
from torch import Tensor

import tokenizers_vq
from prior.conversion import Book
from tokenizers_vq.quantizers.residual import ResidualQuantizerConfig
from tokenizers_vq.quantizers.vector import VectorQuantizerConfig

Meta = Mapping[str, Any]


class How(NamedTuple):
    """What the recordings of a family leave unsaid."""

    sampler: Callable[[Meta], dict[str, Any]] = lambda meta: {}
    """fields of the sampler by which codes were drawn greedily, beside temperature 0"""
    guidance: Callable[[Meta], dict[str, Any]] = lambda meta: {"guidance": meta["guidance_scale"]}
    """fields of the sampler for the guided ones: ours is uncond + guidance (cond - uncond)"""
    also: Callable[[Meta], dict[str, dict[str, Any]]] = lambda meta: {}
    """further recordings of greedy codes -> their fields of the sampler"""
    condition: Callable[[Tensor], Any] = lambda recorded: recorded
    """the recorded condition as `Prior.logits` takes it"""
    book: Callable[[Path], Book | None] = lambda folder: None
    """the tokenizer's quantizer, of a folder of recordings, for networks that are fed its vectors"""
    config: Callable[[Path], dict[str, Any] | None] = lambda folder: None
    """the config in place of the recorded one, where that lacks what a user's has"""
    unused: int = 0
    """logits beyond the codes, such as that of the mask, which are left out here"""
    parameters: Callable[[Any, Meta], int] | None = lambda prior, meta: sum(p.numel() for p in prior.parameters())
    """our parameters as the reference counts them; None where that says nothing"""


def trainable(prior: Any, meta: Meta) -> int:
    """Parameters, without those of the tokenizer's quantizer."""
    return sum(p.numel() for p in prior.parameters() if p.requires_grad)


def scales_book(folder: Path) -> Book | None:
    """VAR's quantizer, where it is a file of its own."""
    file = folder / "vae.safetensors"
    if not file.exists():
        return None
    config = json.loads((folder / "config.json").read_text())
    tokenizer = tokenizers_vq.convert("var", file, {"v_patch_nums": config["patch_nums"]})
    return Book(tokenizer.config.quantizer, tokenizer.quantizer.state_dict())


def levels_book(folder: Path) -> Book:
    """RQ-VAE's quantizer: the last row of each table is padding."""
    tensors = load_file(folder / "stage1_quantizer.safetensors")
    tables = [tensors[key][:-1] for key in sorted(tensors) if key.endswith(".weight")]
    books = [VectorQuantizerConfig(num_codes=len(table), dim=table.shape[1]) for table in tables]
    state = {f"codebooks.{level}.weight": table for level, table in enumerate(tables)}
    return Book(ResidualQuantizerConfig(levels=len(tables), book=tuple(books)), state)


def levels_parameters(prior: Any, meta: Meta) -> int:
    """Ours, and the head that predicts the text, where there is one. The null class stands for their place."""
    text = prior.config.condition.kind == "tokens"
    dim = prior.config.network.dim
    return trainable(prior, meta) + (2 * dim + (dim + 1) * prior.config.condition.vocabulary if text else 0)


def plane_config(folder: Path) -> dict[str, Any]:
    """With the grid, which a gated PixelCNN runs without."""
    config = json.loads((folder / "config.json").read_text())
    codes = load_file(folder / "io.safetensors")["input_codes"]
    return {"shape": list(codes.shape[1:]), **config}


def plane_parameters(prior: Any, meta: Meta) -> int:
    """Ours without what stands for no class, which the reference lacks, or for no condition."""
    config = prior.config
    unread = {"class": config.network.told_dim, "none": config.network.told_dim, "grids": 0}
    return sum(p.numel() for p in prior.parameters()) - unread[config.condition.kind]


HOW: dict[str, How] = {
    "halton-maskgit": How(
        sampler=lambda meta: {
            "steps": meta["num_sample_steps"],
            "schedule": "arccos",
            "rounding": "up",
            "order": "halton",
            "choice_temperature": 0,
        },
        guidance=lambda meta: {"guidance": 1 + meta["guidance_scale"]},
        unused=1,
        # Without the bias of the mask, and with the last norm's weights and biases folded in.
        parameters=lambda prior, meta: sum(p.numel() for p in prior.parameters()) + 1 + 2 * prior.config.network.dim,
    ),
    "llamagen-gpt": How(),
    "maskgit-transformer": How(
        sampler=lambda meta: {
            "steps": meta["num_sample_steps"],
            "schedule": "arccos",
            "confidence": "logit",
            "choice_temperature": 0,
        },
        guidance=lambda meta: {"guidance": 1 + meta["guidance_scale"]},
        also=lambda meta: {
            "greedy_codes_guided_linear": {
                "guidance": 1 + meta["guidance_scale_linear"],
                "guidance_schedule": "linear",
            },
            "greedy_codes_guided_power_cosine": {
                "guidance": meta["guidance_scale_power_cosine"],
                "guidance_schedule": "cosine",
                "guidance_power": meta["guidance_scale_pow"],
            },
        },
        # Its positions count the class, its types of tokens are folded into them, and one of two is never used.
        parameters=None,
    ),
    "pixelcnn": How(config=plane_config, parameters=plane_parameters),
    "rar": How(
        guidance=lambda meta: {
            "guidance": meta["guidance_scale"],
            "guidance_schedule": "cosine",
            "guidance_power": meta["guidance_scale_pow"],
        },
        # Its tables have rows beyond the places, and for a mask, that are never read: tests/prior/test_presets.py.
        parameters=lambda prior, meta: sum(p.numel() for p in prior.parameters()) + 2148 * prior.config.network.dim,
    ),
    "rq-transformer": How(book=levels_book, parameters=levels_parameters),
    # Its classes are rows of the table of codes.
    "taming-gpt": How(parameters=lambda prior, meta: sum(p.numel() for p in prior.network.parameters())),
    "var-transformer": How(
        guidance=lambda meta: {"guidance": 1 + meta["guidance_scale"]}, book=scales_book, parameters=trainable
    ),
}
