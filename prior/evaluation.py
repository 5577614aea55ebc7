"""How well codes are predicted: bits per token of a prior, and of the unigram distribution that it has to beat."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from prior.conditions import ClassCondition
from prior.data import Data, check_layout, frequencies, part, read_rows
from prior.decoding import short
from prior.model import Prior
from prior.models import load
from prior.recipe import PriorRecipe
from tokenizers_vq import distributed
from tokenizers_vq.config import parse, read_yaml
from tokenizers_vq.data.shards import CodeShards, read_codes
from tokenizers_vq.devices import resolve_device


class Measured(NamedTuple):
    """A prior on held-out codes."""

    bits_per_token: float
    """cross-entropy in bits"""
    unigram: float | None
    """bits per token under the frequencies of the training codes; None where those are not at hand"""
    entropies: tuple[float, ...]
    """entropy in bits of the held-out codes of each stream, from their own frequencies"""
    images: int
    tokens: int
    exact: bool = True
    """whether `bits_per_token` is the prior's cross-entropy; otherwise it is no smaller than that"""

    def words(self) -> str:
        """The comparison as a sentence."""
        most = "" if self.exact else "at most "
        text = f"held-out codes of {self.images} images: {most}{self.bits_per_token:.3f} bits per token"
        if self.unigram is None:
            return text
        gain = self.unigram - self.bits_per_token
        verdict = (
            f"the prior beats it by {gain:.3f} bits ({gain / self.unigram:.1%})"
            if gain > 0
            else f"the prior is {-gain:.3f} bits worse: it needs more steps, or it learnt the training codes by heart"
        )
        return f"{text}; knowing only how frequent each code is takes {self.unigram:.3f} (unigram): {verdict}"


def unigram(training: list[np.ndarray], held_out: list[np.ndarray]) -> float:
    """Bits per token of held-out codes under the Laplace-smoothed frequencies of training codes; both by stream."""
    bits = 0.0
    for train, held in zip(training, held_out, strict=True):
        bits -= float((held * np.log2((train + 1) / (train.sum() + len(train)))).sum())
    return bits / sum(int(held.sum()) for held in held_out)


def entropies(counts: list[np.ndarray]) -> tuple[float, ...]:
    """Entropy in bits of each stream, from its counts."""
    shares = [count[count > 0] / count.sum() for count in counts]
    return tuple(-float((share * np.log2(share)).sum()) for share in shares)


@torch.no_grad()
def bits_per_token(prior: Prior, shards: CodeShards, rows: np.ndarray, batch_size: int, bf16: bool = False) -> float:
    """Mean bits of the codes in `rows` under the prior in eval mode; processes share the rows.

    Raises `ValueError` for codes or labels that are not the prior's.
    """
    device, mine = prior.device, rows[distributed.rank() :: distributed.world_size()]
    was_training = prior.training
    prior.eval()
    nats = torch.zeros((), dtype=torch.float64)
    for first in range(0, len(mine), batch_size):
        batch = read_rows(shards, mine[first : first + batch_size])
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            told = prior.condition.take(batch)
            nats -= prior.log_likelihood(batch["tokens"].to(device), told).sum().cpu().double()
    prior.train(was_training)
    total = distributed.sum(nats.float().to(device))
    return float(total) / (len(rows) * prior.layout.length * math.log(2))


def evaluate(model: str, codes: str | None = None, *, device: str = "auto", batch_size: int = 32) -> Measured:
    """Measure a run or saved prior in float32 on a folder of codes; unset, or the run's own: what it held out.

    Classes are found by their names. Raises `ValueError` for codes of another tokenizer or layout or other classes, or
    none named, and what `load` and `read_codes` raise.
    """
    prior = load(model).to(resolve_device(device))
    path = Path(model) / "recipe.yaml"
    recipe = parse(PriorRecipe, read_yaml(path), str(path)) if path.is_file() else None
    if codes is None and recipe is None:
        raise ValueError(f"{model} is no run that would know its codes: name a folder of codes")
    own = recipe is not None and (codes is None or Path(codes).resolve() == Path(recipe.codes).resolve())
    data = None
    try:
        data = Data(recipe) if recipe is not None else None
    except FileNotFoundError:
        if own:
            raise
    if own and data is not None:
        shards, rows = data.held, data.held_rows
    else:
        shards = read_codes(str(codes))
        shards = shards if prior.config.grids is None else part(shards, prior.config.grids)
        rows = np.arange(len(shards))
    if shards.fingerprint != prior.config.fingerprint:
        raise ValueError(
            f"{shards.folder} holds codes of another tokenizer ({short(shards.fingerprint)}) than {model} was trained "
            f"on ({short(prior.config.fingerprint)})"
        )
    check_layout(shards, prior.layout, f"{model} is for")
    for told in prior.condition.parts.values():
        if isinstance(told, ClassCondition) and told.label_names:
            shards = shards.renumbered(told.label_names, model, told.column)
    if not len(rows):
        raise ValueError(f"{shards.folder} holds no codes: encode some images")
    prior.condition.prepare({str(shards.folder): shards})
    counts = frequencies(shards, rows)
    return Measured(
        bits_per_token(prior, shards, rows, batch_size),
        None if data is None else unigram(frequencies(data.shards, data.rows), counts),
        entropies(counts),
        len(rows),
        len(rows) * prior.layout.length,
        prior.exact,
    )
