"""A published checkpoint as a folder of ours: tokenizer, discriminator where there is one, and where both came from."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers_vq.conversion import catalogue, convert, convert_discriminator
from tokenizers_vq.discriminators import saved
from tokenizers_vq.tokenizer import Tokenizer
from tokenizers_vq.writing import replacing, write_atomically

RECORD = "conversion.json"
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".tar", ".jit"}


class Converted(NamedTuple):
    """What `convert_to_folder` wrote."""

    tokenizer: Tokenizer
    discriminator: str | None
    """kind of the discriminator beside it; None where the file holds none"""
    left_out: str | None
    """why a discriminator in the file was not kept"""
    skipped: tuple[str, ...]
    """what the checkpoint holds and the tokenizer does not use"""
    files: dict[str, str]
    """sha256 of every file of weights that was read, by name"""


def convert_to_folder(
    source: str,
    weights: str | Path,
    config: str | Path | Mapping[str, Any] | None,
    out: Path,
    *,
    name: str | None = None,
    card: Mapping[str, Any] | None = None,
) -> Converted:
    """Convert into the folder `out`, which appears at once and whole; an earlier conversion there is replaced.

    The tokenizer's own three files; `discriminator/`; and `conversion.json` with source, files, their sha256 and what
    was skipped. `name`: title of the model card, and what it says to load; `card`: what else is known, as
    `save_pretrained` takes it; without it what the catalogue knows of these files, of `name`, or of what `load` looks
    for in `out`. Raises what `convert` raises, and `ValueError` where `out` holds anything but an earlier conversion.
    """
    with replacing(out) as new:
        check_replaceable(out)
        return _convert_into(new, source, weights, config, out, name, card)


def _convert_into(
    new: Path,
    source: str,
    weights: str | Path,
    config: str | Path | Mapping[str, Any] | None,
    out: Path,
    name: str | None,
    card: Mapping[str, Any] | None,
) -> Converted:
    with listening() as said:
        tokenizer = convert(source, weights, config)
        discriminator, left_out = None, None
        try:
            discriminator = convert_discriminator(source, weights, config)
        except ValueError as error:
            left_out = str(error)
    files = checksums(Path(weights))
    if card is None:
        known = _published(source, files, name, out)
        card, name = (catalogue.card(known), known.name) if known is not None else ({}, name)
    skipped = tuple(dict.fromkeys(said))
    origin = written_card(source, files, name or out.name, "tvq convert")
    tokenizer.save_pretrained(new, card={**origin, **card})
    if discriminator is not None:
        saved.save(discriminator, new / saved.FOLDER)
    keep_record(new, source, files, config, skipped)
    kind = None if discriminator is None else saved.describe(discriminator)["discriminator"]["kind"]
    return Converted(tokenizer, kind, left_out, skipped, files)


def check_replaceable(out: Path) -> None:
    """Raises `ValueError` where `out` holds anything but an earlier conversion."""
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / RECORD).is_file())):
        raise ValueError(f"{out} holds something else than an earlier conversion: give another --out")


@contextmanager
def listening() -> Iterator[list[str]]:
    """A list to which what converters warn of is added inside the block."""
    heard = _Messages()
    logger = logging.getLogger("tokenizers_vq.conversion")
    logger.addHandler(heard)
    try:
        yield heard.messages
    finally:
        logger.removeHandler(heard)


class _Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def keep_record(
    folder: Path,
    source: str,
    files: Mapping[str, str],
    config: str | Path | Mapping[str, Any] | None,
    skipped: Sequence[str],
) -> None:
    """Write `conversion.json`: source, files with their sha256, the config or its name, what was skipped."""
    record: dict[str, Any] = {
        "source": source,
        "files": dict(files),
        "config": Path(config).name if isinstance(config, (str, Path)) else None if config is None else dict(config),
        "skipped": list(skipped),
    }
    write_atomically(folder / RECORD, json.dumps(record, indent=2) + "\n")


def _published(source: str, files: dict[str, str], name: str | None, out: Path) -> catalogue.Published | None:
    """The catalogue's entry of the files: by checksum, or by name where no checksum says otherwise."""
    for published in catalogue.entries().values():
        sums = {file.sha256 for file in published.files} - {None}
        meant = published.name == name or catalogue.converted(published.name).absolute() == out.absolute()
        if published.source == source and (sums & set(files.values()) or (meant and not sums)):
            return published
    return None


def checksums(path: Path) -> dict[str, str]:
    """sha256 by name of a file, or of the files of weights in a folder."""
    files = sorted(file for file in path.iterdir() if file.suffix in _WEIGHTS) if path.is_dir() else [path]
    return {file.name: catalogue.sha256(file) for file in files}


def written_card(source: str, files: Mapping[str, str], name: str, command: str) -> dict[str, Any]:
    """What a card says of a checkpoint that nothing else is known of; `command` converted it."""
    listed = "\n".join(f"- `{file}`, sha256 `{checksum}`" for file, checksum in files.items())
    return {
        "title": name,
        "name": name,
        "data": f"that of the published checkpoint (`{source}`); not recorded in it",
        "terms": "those of the published checkpoint, which it does not record; ask its publisher before you use it",
        "notes": f"**Converted** from the layout `{source}` (`{command} {source}`):\n\n{listed}",
    }
