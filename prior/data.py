"""Codes to train on, codes held out, and the order of training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from prior.conditions import ClassConfig, SeveralConfig
from prior.decoding import short
from prior.recipe import PriorRecipe
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.data.order import MicroBatches
from tokenizers_vq.data.shards import CodeShards, read_codes
from tokenizers_vq.data.transforms import VIEWS

_BLOCK = 65536


class Data:
    """`rows` of `shards` to train on and `held_rows` of `held` to measure on, as a recipe says.

    Classes have the numbers of `shards` in both: those of `held` are found by their names.

    Raises `ValueError` where the codes are of several tokenizers or another one than the recipe's, where classes that
    the prior is told cannot be compared, and what `read_codes` raises.
    """

    def __init__(self, recipe: PriorRecipe) -> None:
        self.shards = read_codes(recipe.codes)
        if recipe.fingerprint not in (None, self.shards.fingerprint):
            raise ValueError(
                f"{recipe.codes} holds codes of another tokenizer ({short(self.shards.fingerprint)}) than the recipe "
                f"asks for ({short(recipe.fingerprint)})"
            )
        self.held: CodeShards = self.shards
        # Where a folder of its own is measured on, nothing is kept out of the other.
        share = recipe.held_out if recipe.held_out_codes is None else 0.0
        self.rows, self.held_rows = split(self.shards.keys, share, recipe.max_held_out)
        if recipe.held_out_codes is not None:
            self.held = read_codes(recipe.held_out_codes)
            if self.held.fingerprint != self.shards.fingerprint:
                raise ValueError(
                    f"{recipe.held_out_codes} holds codes of another tokenizer ({short(self.held.fingerprint)}) than "
                    f"{recipe.codes} ({short(self.shards.fingerprint)})"
                )
            check_layout(self.held, self.shards.layout, f"{recipe.codes} has")
            for column in _told_classes(recipe, self.shards, self.held):
                self.held = self.held.renumbered(self.shards.classes(column).names, recipe.codes, column)
            self.held_rows = np.arange(len(self.held))
        if (grids := recipe.model.grids) is not None:
            self.shards, self.held = part(self.shards, grids), part(self.held, grids)
        for folder, rows in ((recipe.codes, self.rows), (recipe.held_out_codes, self.held_rows)):
            if not len(rows):
                raise ValueError(f"{folder} holds no codes: encode some images")

    def folders(self, recipe: PriorRecipe) -> dict[str, CodeShards]:
        """The folders by name: the one that is trained on, then the one that is measured on."""
        return {recipe.codes: self.shards, recipe.held_out_codes or recipe.codes: self.held}

    def batches(self, recipe: PriorRecipe, start: int, rank: int, world: int) -> Iterator[dict[str, Any]]:
        """This process's micro-batches, as `read_rows` gives them, from optimizer step `start` on, endlessly."""
        order = MicroBatches(
            len(self.rows),
            batch_size=recipe.batch_size,
            accumulate=recipe.accumulate,
            seed=recipe.seed,
            start=start,
            world=world,
            rank=rank,
        )
        for places in order:
            yield read_rows(self.shards, self.rows[[index for _, index in places]])


def read_rows(shards: CodeShards, rows: np.ndarray) -> dict[str, Any]:
    """Rows as a batch: `tokens` int64 `(B, N)`, `labels` int64 `(B,)`, -1 for none, and all `captions` of each image.

    `whole`: of some grids alone, the codes of all. `captions`: B tuples of strings, None where the codes have none.
    `classes`: the labels of every column of them, by its name. `label_names`: the names of `labels`, where they have
    any. `keys`, `views`: names of the images, and which view of it each row is.
    """
    return {
        "tokens": shards[rows],
        **({} if shards.whole is None else {"whole": shards.whole[rows]}),
        "labels": shards.labels_of(rows),
        "keys": shards.keys_of(rows),
        "views": rows % VIEWS[shards.info["views"]].rows,
        "label_names": shards.label_names,
        "classes": {name: shards.labels_of(rows, name) for name in shards.label_columns},
        "captions": shards.captions_of(rows),
    }


def part(shards: CodeShards, grids: Sequence[int]) -> CodeShards:
    """The codes of some grids alone. Raises `ValueError` where there are no such grids."""
    try:
        return shards.part(grids)
    except ValueError as error:
        raise ValueError(f"model.grids: {shards.folder}: {error}") from None


def _told_classes(recipe: PriorRecipe, *shards: CodeShards) -> list[str | None]:
    """Columns of the classes that the prior is told: those asked for, or the first where all images have one."""
    told = recipe.model.told(all(bool((part.labels >= 0).all()) for part in shards))
    parts = told.conditions if isinstance(told, SeveralConfig) else (told,)
    return [part.name for part in parts if isinstance(part, ClassConfig)]


def split(keys: Sequence[str], share: float, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers, int64 rising: to train on, and held out. The split depends on the keys alone, not on their order.

    Rows of one key, the views of an image, stay together; `most` rows, but one key at least. Raises `ValueError` where
    fewer than two images are there to be split.
    """
    if not share:
        return np.arange(len(keys)), np.arange(0)
    rows: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    if len(rows) < 2:
        raise ValueError(f"{len(rows)} images cannot be split into training and held-out ones: encode more")
    order = sorted(rows, key=lambda key: hashlib.blake2b(key.encode(), digest_size=8).digest())
    count = min(max(round(share * len(rows)), 1), max(1, most * len(rows) // len(keys)), len(rows) - 1)
    train, held = ([row for key in part for row in rows[key]] for part in (order[count:], order[:count]))
    return np.sort(np.array(train)), np.sort(np.array(held))


def frequencies(shards: CodeShards, rows: np.ndarray) -> list[np.ndarray]:
    """int64 `(K,)` for each stream: how often each code occurs in the rows."""
    layout = shards.layout
    streams = layout.streams().numpy()
    found = [np.zeros(size, dtype=np.int64) for size in layout.sizes]
    for first in range(0, len(rows), _BLOCK):
        block = np.asarray(shards.array[rows[first : first + _BLOCK]])
        for stream, count in enumerate(found):
            count += np.bincount(block[:, streams == stream].ravel(), minlength=len(count))
    return found


def check_layout(shards: CodeShards, layout: CodeLayout, whose: str) -> None:
    """Raises `ValueError` where codes have another layout than `whose`."""
    if shards.layout != layout:
        raise ValueError(f"{shards.folder} holds codes of layout {shards.layout.to_dict()}, {whose} {layout.to_dict()}")
