"""Tokenizers beside each other and beside image codecs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from tokenizers_vq import evaluation
from tokenizers_vq.config import nearest
from tokenizers_vq.data.loading import evaluation_batches
from tokenizers_vq.encoding import check_keep
from tokenizers_vq.evaluation import Comparison
from tokenizers_vq.evaluation.codecs import QUALITIES, TokenizerCodec, pillow_codecs
from tokenizers_vq.evaluation.kept import Kept
from tokenizers_vq.verbs.opening import (
    Data,
    Model,
    choose_data,
    counted,
    describe,
    model_name,
    name_broken,
    open_encoder,
)
from tokenizers_vq.verbs.options import Computing, Judging, Measuring, Progress, Reading, choose_judges, split_options

Codecs = Sequence[str] | Mapping[str, Sequence[int] | None]
"""names of image codecs (jpeg, webp, avif), or each with its qualities (None: a range from its fewest bits on)"""


def compare(
    models: Sequence[Model] | Mapping[str, Model],
    data: Data,
    out: Path | str | None = None,
    *,
    size: int = 256,
    codecs: Codecs = ("jpeg", "webp", "avif"),
    keep: Sequence[int] = (),
    examples: int = 8,
    batch_size: int = 8,
    progress: Progress | None = None,
    **options: Unpack[Measuring],
) -> Comparison:
    """Set tokenizers beside each other and beside image codecs, on the same images of `size` pixels a side.

    `models`: as `load` takes them, or tokenizers; a mapping gives them names. `out`: folder for `compare.html`,
    `compare.json`, `table.md` and the plot; None writes nothing. `codecs`: `Codecs`; () leaves them out. `keep`: rows
    of each tokenizer with only so many first codes kept, as `CodeLayout.prefix` counts them, which make a curve; those
    that decode no prefix have none. `examples`: images on the page. `progress` is called with (images done, of how
    many); `options` as of `evaluate`.

    Raises `ValueError` for no image, an unknown codec, tokenizers that take other channels or sizes, and `keep` that
    none of them takes.

    ```python
    result = tvq.compare({"mine": tok, "old": "runs/old"}, "photos-test/", "compare/", codecs={"jpeg": [5, 20, 50]})
    ```
    """
    reading, judging, computing = split_options(options, Reading, Judging, Computing)
    judges = choose_judges(**judging)
    qualities = _qualities(codecs)
    named = dict(models) if isinstance(models, Mapping) else dict(zip(short_names(models), models, strict=True))
    if not named:
        raise ValueError("nothing to compare: name a tokenizer")
    config = choose_data(data, next(iter(named.values())), **reading)
    tokenizers = _with_kept(_open(named, size, computing), keep)
    channels = tokenizers[0].channels
    pillow, left_out = pillow_codecs(qualities, channels)
    batches = evaluation_batches(config, image_size=size, channels=channels, batch_size=batch_size)
    result = evaluation.compare(
        [*tokenizers, *pillow],
        counted(batches, progress),
        data=describe(config, batches),
        count=None if batches.source is None else len(batches.source),
        left_out=left_out,
        examples=examples,
        **judges,
    )
    name_broken(batches.broken)
    if out is not None:
        evaluation.write_comparison(result, Path(out), title=" · ".join(codec.name for codec in tokenizers))
    return result


def short_names(models: Sequence[Model]) -> list[str]:
    """A short name for each model, no two alike: its folder's, else as much of the path as tells it apart."""
    paths = [Path(model_name(model)).parts for model in models]
    parts = [path[:-1] if len(path) > 1 and path[-1] == "model" else path for path in paths]
    found: list[str] = []
    for index, path in enumerate(parts):
        others = [other for number, other in enumerate(parts) if number != index and other != path]
        depth = next((n for n in range(1, len(path)) if all(other[-n:] != path[-n:] for other in others)), len(path))
        name, number = "/".join(path[-depth:]), 1
        while name in found:
            number += 1
            name = f"{'/'.join(path[-depth:])} ({number})"
        found.append(name)
    return found


def _open(named: Mapping[str, Model], size: int, computing: Mapping[str, Any]) -> list[TokenizerCodec]:
    tokenizers = []
    for name, model in named.items():
        encoder = open_encoder(model, **computing)
        tokenizers.append(TokenizerCodec(encoder.tokenizer, name, encoder.autocast))
        tokenizers[-1].layout(size, size)  # said now, not after an hour
    channels = tokenizers[0].channels
    if other := next((codec for codec in tokenizers if codec.channels != channels), None):
        raise ValueError(
            f"{tokenizers[0].name} takes images of {channels} channels, {other.name} of {other.channels}: "
            "compare them one by one"
        )
    return tokenizers


def _with_kept(tokenizers: list[TokenizerCodec], keep: Sequence[int]) -> list[TokenizerCodec]:
    """Each, behind its rows of fewer codes."""
    if not keep:
        return tokenizers
    found = []
    for codec in tokenizers:
        most = codec.tokenizer.prefixes
        for kept in sorted({kept for kept in keep if most}):
            name = f"{codec.name}, first {kept}"
            found.append(TokenizerCodec(Kept(codec.tokenizer, kept), name, codec.autocast, family=codec.name))
        found.append(TokenizerCodec(codec.tokenizer, codec.name, codec.autocast, codec.name) if most else codec)
    if len(found) == len(tokenizers):
        check_keep(tokenizers[0].tokenizer, keep[0])
    return found


def _qualities(codecs: Codecs) -> dict[str, Sequence[int]]:
    given = codecs if isinstance(codecs, Mapping) else dict.fromkeys([codecs] if isinstance(codecs, str) else codecs)
    found: dict[str, Sequence[int]] = {}
    for name, chosen in given.items():
        if name not in QUALITIES:
            raise ValueError(f"codecs: no codec '{name}'{nearest(name, QUALITIES)}")
        if chosen is not None and not all(isinstance(one, int) and 0 <= one <= 100 for one in chosen):
            raise ValueError(f"codecs: {name} takes qualities from 0 to 100, got {list(chosen)}")
        found[name] = QUALITIES[name] if chosen is None else chosen
    return found
