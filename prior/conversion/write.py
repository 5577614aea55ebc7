"""A published prior as a folder of ours, with where it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prior.conversion import catalogue, convert
from prior.conversion.classes import class_names
from prior.model import Prior
from tokenizers_vq.conversion.catalogue import card
from tokenizers_vq.conversion.write import check_replaceable, checksums, keep_record, listening, written_card
from tokenizers_vq.writing import replacing


class Written(NamedTuple):
    """What `convert_to_folder` wrote."""

    prior: Prior
    skipped: tuple[str, ...]
    """what the checkpoint holds and the prior does not use"""
    files: dict[str, str]
    """sha256 of every file of weights that was read, by name"""


def convert_to_folder(
    source: str,
    weights: str | Path,
    config: str | Path | Mapping[str, Any] | None,
    out: Path,
    *,
    tokenizer: str | Path | None = None,
    label_names: Sequence[str] | None = None,
    name: str | None = None,
) -> Written:
    """Convert into the folder `out`, which appears at once and whole; an earlier conversion there is replaced.

    The prior's three files, and `conversion.json` with source, files, their sha256 and what was skipped. `name`: title
    of the model card. What is not given, the catalogue's entry says, if it knows these files, `name`, or what `load`
    looks for in `out`: config, tokenizer, names of classes, licences. Raises what `convert` raises, and `ValueError`
    where `out` holds anything but an earlier conversion.
    """
    with replacing(out) as new:
        check_replaceable(out)
        files = checksums(Path(weights)) if Path(weights).exists() else {}
        known = _published(source, files, name, out)
        if known is not None:
            name = known.name
            config = known.to_dict()["config"] if config is None else config
            tokenizer = known.tokenizer if tokenizer is None else tokenizer
            if label_names is None and known.classes is not None:
                label_names = class_names(known.classes)
        with listening() as said:
            prior = convert(source, weights, config, tokenizer=tokenizer, label_names=label_names)
        skipped = tuple(dict.fromkeys(said))
        origin = written_card(source, files, name or out.name, "tvq-prior convert")
        prior.save_pretrained(new, card={**origin, **({} if known is None else card(known))})
        keep_record(new, source, files, config, skipped)
    return Written(prior, skipped, files)


def _published(source: str, files: Mapping[str, str], name: str | None, out: Path) -> catalogue.Published | None:
    """The catalogue's entry of the files: by checksum, or by name where no checksum says otherwise."""
    for published in catalogue.entries().values():
        sums = {file.sha256 for file in published.files} - {None}
        meant = published.name == name or catalogue.converted(published.name).absolute() == out.absolute()
        if published.source == source and (sums & set(files.values()) or (meant and not sums)):
            return published
    return None
