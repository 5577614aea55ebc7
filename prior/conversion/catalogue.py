"""The published priors: of which tokenizer's codes, where they lie, under which licences, how well they generate.

The facts are data, `catalogue/FAMILY.yaml`, as those of tokenizers. What no source says is left out, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from tokenizers_vq.config import nearest
from tokenizers_vq.conversion import catalogue as tokenizers
from tokenizers_vq.conversion.catalogue import Entry, Score, read_entries

DATA = Path(__file__).with_suffix("")
REVISION = "1"
"""part of the cache's path: raised when a converter's result changes, so that no older copy is taken for a new one"""


class Published(Entry):
    """One published prior."""

    tokenizer: str | None = None
    """the published tokenizer whose codes it models; unset: each has its own"""
    told: str
    """what it is told: classes, a text, codes of another picture, nothing"""
    classes: Literal["imagenet-1k"] | None = None
    """whose names its classes have"""
    trained: bool = True
    """false: the repository gives code alone, no weights"""
    sampling: str | None = None
    """the settings of its sampler, in its publisher's terms"""
    sampler: dict[str, Any] | None = None
    """the same as fields of our sampler, as far as it has them"""
    gfid: tuple[Score, ...] = ()
    """FIDs of generated images"""

    @property
    def figures(self) -> dict[str, float]:
        """FIDs of generated images by their protocol."""
        return {score.words("gFID"): score.value for score in self.gfid}


@lru_cache
def entries() -> Mapping[str, Published]:
    """Every published prior by name, sorted. Raises `ValueError` naming the file and field of a wrong entry."""
    return read_entries(Published, DATA)


def entry(name: str) -> Published:
    """The entry of a name. Raises `ValueError` with near names."""
    if name not in entries():
        raise ValueError(f"no published prior '{name}'{nearest(name, entries())}")
    return entries()[name]


def converted(name: str) -> Path:
    """The folder of the converted copy of a published prior, there or not."""
    return tokenizers.cache() / f"converted-priors-{REVISION}" / name


def by_hand(published: Published) -> str:
    """One line: what to fetch, or to train, and the command that converts it to where `load` finds it."""
    options = f" --tokenizer {published.tokenizer}" if published.tokenizer else " --tokenizer TOKENIZER"
    if published.trained:
        return tokenizers.by_hand(published, converted(published.name), "tvq-prior convert", options)
    config = f" --config {published.config_file}" if published.config_file else ""
    return (
        f"nobody published weights of '{published.name}': train it with {published.page}, then `tvq-prior convert "
        f"{published.source} CHECKPOINT{config}{options} --out {converted(published.name)}`, and "
        f"load('{published.name}') finds it"
    )
