"""A published prior as a folder of ours, with where it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prior.conversion import convert
from prior.model import Prior
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
    of the model card. Raises what `convert` raises, and `ValueError` where `out` holds anything but an earlier
    conversion.
    """
    with replacing(out) as new:
        check_replaceable(out)
        with listening() as said:
            prior = convert(source, weights, config, tokenizer=tokenizer, label_names=label_names)
        files, skipped = checksums(Path(weights)), tuple(dict.fromkeys(said))
        prior.save_pretrained(new, card=written_card(source, files, name or out.name, "tvq-prior convert"))
        keep_record(new, source, files, config, skipped)
    return Written(prior, skipped, files)
