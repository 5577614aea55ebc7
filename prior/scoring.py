"""How well codes are predicted: bits and top-1 accuracy of a prior, by level, scale or bit, and the unigram's bits."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from prior.conditions import ClassCondition
from prior.data import AllBut, Data, Numbers, check_layout, frequencies, part, read_rows
from prior.decoding import short
from prior.identity import check_order
from prior.model import Prior
from prior.models import load
from prior.networks.masked import Masked
from prior.recipe import PriorRecipe
from tokenizers_vq import distributed
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.config import parse, read_yaml
from tokenizers_vq.data import DataConfig
from tokenizers_vq.data.shards import INFO, CodeShards, read_codes, write_codes
from tokenizers_vq.devices import resolve_device
from tokenizers_vq.encoding import BatchEncoder
from tokenizers_vq.folders import CONFIG


class Row(NamedTuple):
    """How well some of the codes are predicted, or one bit of them."""

    name: str
    """such as `level 2`, `scale 3 (4x4)`, `bit 0`"""
    bits: float
    """cross-entropy of one of these codes, or of this bit of a code, in bits"""
    accuracy: float
    """share of these whose likeliest value is the right one"""
    codes: int
    """how many there are in an image"""


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
    bits_per_pixel: float | None = None
    """cross-entropy in bits of an image's pixel; None where the codes do not say how many there are"""
    accuracy: float | None = None
    """share of the codes (of their parts, where the prior predicts parts) whose likeliest value is the right one; of a
    bound: as far as codes were told when they were predicted"""
    rows: tuple[Row, ...] = ()
    """the same by level, scale, part or bit, where there are several"""

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

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        per_image = self.tokens // self.images
        rows = [row._asdict() for row in self.rows]
        return {**self._asdict(), "bits_per_image": self.bits_per_token * per_image, "rows": rows}


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
def bits_per_token(prior: Prior, shards: CodeShards, rows: Numbers, batch_size: int, bf16: bool = False) -> float:
    """Mean bits of the codes in `rows` under the prior in eval mode; processes share the rows.

    Raises `ValueError` for codes or labels that are not the prior's.
    """
    device, mine = prior.device, rows[distributed.rank() :: distributed.world_size()]
    was_training = prior.training
    prior.eval()
    nats = torch.zeros((), dtype=torch.float64)
    most = -(-len(rows) // distributed.world_size())
    for first in range(0, most, batch_size):
        part = mine[first : first + batch_size]
        # Of a sharded prior all processes compute, also one that has no row left.
        batch = read_rows(shards, part if len(part) else rows[:1])
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            told = prior.condition.take(batch)
            found = prior.log_likelihood(batch["tokens"].to(device), told)
            nats -= found[: len(part)].sum().cpu().double()
    prior.train(was_training)
    total = distributed.sum(nats.float().to(device))
    return float(total) / (len(rows) * prior.layout.length * math.log(2))


class Tally:
    """Nats and hits of every part of a row, or of every bit of it, summed over rows."""

    def __init__(self, prior: Prior, by_bit: bool = False) -> None:
        """Raises `ValueError` where bits are asked for of codes that are none."""
        self.prior = prior
        self.parts = prior.network.parts if isinstance(prior.network, Masked) else 1
        sizes = set(prior.layout.sizes)
        self.bits = 1
        if by_bit:
            bits = min(sizes).bit_length() - 1
            if sizes != {2**bits} or not bits:
                raise ValueError(
                    f"--bits: codes of {' / '.join(map(str, prior.layout.sizes))} are not bits; leave it out"
                )
            self.bits = bits // self.parts
        shape = (prior.layout.length * self.parts, self.bits)
        self.nats, self.hits = (torch.zeros(shape, dtype=torch.float64) for _ in range(2))
        self.rows = 0

    @torch.no_grad()
    def update(self, tokens: Tensor, told: Any) -> None:
        """Adds codes `(B, N)`, of which the prior in eval mode was told `told`. Raises as `Prior.log_likelihood`."""
        prior = self.prior
        prior.sequence.check(tokens)
        for group in prior.network.judged(tokens, prior.context(told, len(tokens))):
            logp, places = group.logits.log_softmax(dim=-1), group.places.cpu()
            if self.bits > 1:
                nats, hits = _by_bit(logp, group.parts, self.bits)
            else:
                nats = -logp.gather(-1, group.parts[..., None])
                hits = logp.argmax(dim=-1, keepdim=True) == group.parts[..., None]
            self.nats[places] += nats.sum(dim=0).cpu().double()
            self.hits[places] += hits.sum(dim=0).cpu().double()
        self.rows += len(tokens)

    def total(self) -> Row:
        """All codes together."""
        length, layout = self.nats.numel(), self.prior.layout
        bits = float(self.nats.sum()) / (self.rows * layout.length * math.log(2))
        return Row("all", bits, float(self.hits.sum()) / (self.rows * length), layout.length)

    def by_kind(self) -> tuple[Row, ...]:
        """By scale and level, then by part or bit of a code; none of what there is one alone."""
        layout, places = self.prior.layout, torch.arange(len(self.nats))
        streams, part = layout.streams()[places // self.parts], places % self.parts
        rows = []
        if len(layout.sizes) > 1:
            for stream in range(len(layout.sizes)):
                chosen = streams == stream
                rows.append(self._row(stream_name(layout, stream), self.nats[chosen], self.hits[chosen], self.parts))
        for index in range(self.parts * self.bits if self.parts * self.bits > 1 else 0):
            group, bit = divmod(index, self.bits)
            name = f"bit {index}" if self.bits > 1 else f"bits {self._span(group)}"
            chosen = part == group
            rows.append(self._row(name, self.nats[chosen, bit], self.hits[chosen, bit], 1))
        return tuple(rows)

    def _span(self, group: int) -> str:
        width = (self.prior.layout.sizes[0].bit_length() - 1) // self.parts
        return f"{group * width}" if width == 1 else f"{group * width}-{(group + 1) * width - 1}"

    def _row(self, name: str, nats: Tensor, hits: Tensor, parts: int) -> Row:
        """Of these places, `parts` of which are one code."""
        codes = len(nats) // parts
        bits = float(nats.sum()) / (self.rows * codes * math.log(2))
        return Row(name, bits, float(hits.sum()) / (self.rows * hits.numel()), codes)


def stream_name(layout: CodeLayout, stream: int) -> str:
    """A stream in words: its scale, its level, or both."""
    scale, level = divmod(stream, layout.levels)
    grid = f"scale {scale} ({'x'.join(map(str, layout.grids[scale]))})" if len(layout.grids) > 1 else ""
    return f"{grid}{', ' if grid and layout.levels > 1 else ''}{f'level {level}' if layout.levels > 1 else ''}"


def _by_bit(logp: Tensor, parts: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities `(B, n, 2^bits)` -> nats and hits `(B, n, bits)`, each bit given the lower ones of its code."""
    nats, hits = [], []
    for bit in range(bits):
        # The last axis holds the codes that agree with the lower bits; the lowest bit left runs fastest.
        two = logp.unflatten(-1, (-1, 2)).logsumexp(dim=-2).log_softmax(dim=-1)
        chosen = (parts >> bit & 1)[..., None]
        nats.append(-two.gather(-1, chosen))
        hits.append(two.argmax(dim=-1, keepdim=True) == chosen)
        index = chosen[..., None].expand(*logp.shape[:-1], logp.shape[-1] // 2, 1)
        logp = logp.unflatten(-1, (-1, 2)).gather(-1, index)[..., 0]
    return torch.cat(nats, dim=-1), torch.cat(hits, dim=-1)


def score(
    model: str,
    source: str | None = None,
    *,
    by_bit: bool = False,
    limit: int | None = None,
    device: str = "auto",
    batch_size: int = 32,
) -> Measured:
    """Measure a run or saved prior in float32 on a folder of codes, or on images; unset: what the run held out.

    Classes are found by their names. Images are encoded by the prior's tokenizer; of these, `limit`
    evenly spread. Raises `ValueError` for codes of
    another tokenizer or layout or other classes, or none named, and what `load` and `read_codes` raise.
    """
    prior = load(model).to(resolve_device(device))
    tally = Tally(prior, by_bit)
    recipe = own_recipe(model)
    if source is None and recipe is None:
        raise ValueError(f"{model} is not a run, so its codes are not known: name a folder of codes")
    own = recipe is not None and (source is None or Path(source).resolve() == Path(recipe.codes).resolve())
    data = None
    try:
        data = Data(recipe) if recipe is not None else None
    except FileNotFoundError:
        if own:
            raise
    with tempfile.TemporaryDirectory() as scratch:
        rows: Numbers
        if own and data is not None:
            shards, rows = data.held, data.held_rows
            check_order(Path(model), data)
        else:
            shards = open_codes(prior, str(source), Path(scratch), model, (device, batch_size, limit))
            rows = AllBut(len(shards))
        if not len(rows):
            raise ValueError(f"{shards.folder} holds no codes: encode some images")
        prior.condition.prepare({str(shards.folder): shards})
        for first in range(0, len(rows), batch_size):
            batch = read_rows(shards, rows[first : first + batch_size])
            tally.update(batch["tokens"].to(prior.device), prior.condition.take(batch))
        counts, pixels = frequencies(shards, rows), _pixels(shards)
    total, length = tally.total(), prior.layout.length
    return Measured(
        total.bits,
        None if data is None else unigram(data.frequencies(), counts),
        entropies(counts),
        len(rows),
        len(rows) * length,
        prior.exact,
        None if pixels is None else total.bits * length / pixels,
        total.accuracy,
        tally.by_kind(),
    )


def own_recipe(model: str) -> PriorRecipe | None:
    """The recipe of a run; None for a saved folder."""
    path = Path(model) / "recipe.yaml"
    return parse(PriorRecipe, read_yaml(path), str(path)) if path.is_file() else None


def open_codes(
    prior: Prior, source: str, scratch: Path, model: str, how: tuple[str, int, int | None] = ("auto", 32, None)
) -> CodeShards:
    """A folder of codes, or codes of images made in the folder `scratch`, with the classes that the prior knows.

    `how` they are made: device, batch size, number of images. Raises `ValueError` for codes of another tokenizer or
    layout or other classes.
    """
    folder = Path(source)
    if not (folder / INFO).is_file() and any((folder / name).is_file() for name in ("recipe.yaml", CONFIG)):
        raise ValueError(
            f"{source} holds a model, not codes or images: one prior is measured at a time (over the priors of a "
            "chain the bits of an image add up)"
        )
    if prior.config.tokenizer is not None and _holds_images(folder):
        device, batch_size, limit = how
        encoder = BatchEncoder(prior.config.tokenizer, device=device, precision="fp32")
        _check_fingerprint(prior, encoder.fingerprint, f"the tokenizer {prior.config.tokenizer} makes", model)
        write_codes(encoder, DataConfig(path=source, limit=limit), scratch, batch_size=batch_size)
        source = str(scratch)
    shards = read_codes(source)
    _check_fingerprint(prior, shards.fingerprint, f"{shards.folder} holds", model)
    shards = shards if prior.config.grids is None else part(shards, prior.config.grids)
    check_layout(shards, prior.layout, f"{model} is for")
    for told in prior.condition.parts.values():
        if isinstance(told, ClassCondition) and told.label_names:
            shards = shards.renumbered(told.label_names, model, told.column)
    return shards


def _holds_images(source: Path) -> bool:
    return source.is_dir() and not (source / INFO).is_file() and any(source.iterdir())


def _check_fingerprint(prior: Prior, found: str, whose: str, model: str) -> None:
    if found != prior.config.fingerprint:
        raise ValueError(
            f"{whose} codes of another tokenizer ({short(found)}) than {model} was trained on "
            f"({short(prior.config.fingerprint)})"
        )


def _pixels(shards: CodeShards) -> int | None:
    """Pixels of an image whose codes these are."""
    size = shards.info["image_size"]
    return None if size is None else int(np.prod(np.broadcast_to(size, 2)))
