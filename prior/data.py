"""Codes to train on, codes held out, and the order of training, however many there are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from prior.conditions import ClassConfig, SeveralConfig
from prior.decoding import short
from prior.recipe import PriorRecipe
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.data.order import Blocks, MicroBatches, evenly
from tokenizers_vq.data.shards import CodeShards, read_codes
from tokenizers_vq.data.shards.reading import row_numbers
from tokenizers_vq.data.shards.stored import KEPT
from tokenizers_vq.data.transforms import VIEWS

_CODES = 2**18  # counted at a time
_TOGETHER = 64  # blocks that are shuffled as one, and neighbours that are held out together
_COUNTED = 2**14


class AllBut:
    """The numbers 0 to `count` - 1 without some, which rise; indexed as an array of them, of which it holds none."""

    def __init__(self, count: int, without: Sequence[int] | np.ndarray = ()) -> None:
        self.count, self.without = count, np.asarray(without, dtype=np.int64)
        self._before = self.without - np.arange(len(self.without))

    def __len__(self) -> int:
        return self.count - len(self.without)

    def __getitem__(self, index: Any) -> np.ndarray:
        """int64, of a slice or of numbers."""
        places = row_numbers(index, len(self))
        found: np.ndarray = places + np.searchsorted(self._before, places, side="right")
        return found


Numbers = np.ndarray | AllBut


class Part(NamedTuple):
    """A folder that is trained on."""

    shards: CodeShards
    rows: Numbers
    drawn: int
    """rows of it an epoch"""


class Data:
    """`rows` of `shards` to train on and `held_rows` of `held` to measure on, as a recipe says; `parts` are all folders
    that are trained on.

    An epoch of `length` rows has every row of a folder of weight 1 once. As many as fit into memory (32 MiB of codes,
    131,072 rows) are shuffled all together, and split by the images' names; of more, 64 blocks of neighbours from all
    over are shuffled together, and evenly spread runs of 64 images are held out: nothing but a few rows is ever in
    memory. Classes have the numbers of `shards` in all: those of others are found by their names.

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
        self.rows: Numbers
        self.held_rows: np.ndarray
        more = [self._beside(recipe, folder.codes) for folder in recipe.more_codes]
        # Where a folder of its own is measured on, nothing is kept out of the others.
        share = recipe.held_out if recipe.held_out_codes is None else 0.0
        together = self.shards.small and all(shards.small for shards in more)
        if share and more and not together:
            raise ValueError(
                "more_codes: so many codes cannot be compared by their names, so that an image that is held out of one "
                "folder may be in another: give held_out_codes"
            )
        if together or not share:
            keys = self.shards.keys if share else ()
            count = len(self.shards)
            self.rows, self.held_rows = split(keys, share, recipe.max_held_out) if share else (AllBut(count), _NONE)
            held = {keys[row] for row in self.held_rows}
            rows = [_without(shards, held) for shards in more]
        else:
            self.held_rows = spread(self.shards, share, recipe.max_held_out)
            self.rows, rows = AllBut(len(self.shards), self.held_rows), []
        if recipe.held_out_codes is not None:
            self.held = self._beside(recipe, recipe.held_out_codes)
            self.held_rows = np.arange(len(self.held))
        if (grids := recipe.model.grids) is not None:
            self.shards, self.held = part(self.shards, grids), part(self.held, grids)
            more = [part(shards, grids) for shards in more]
        self.parts = [Part(self.shards, self.rows, len(self.rows))]
        for folder, shards, numbers in zip(recipe.more_codes, more, rows, strict=True):
            self.parts.append(Part(shards, numbers, max(1, round(folder.weight * len(numbers)))))
        for name, some in (
            (recipe.codes, self.rows),
            (recipe.held_out_codes, self.held_rows),
            *((of.codes, numbers) for of, numbers in zip(recipe.more_codes, rows, strict=True)),
        ):
            if not len(some):
                raise ValueError(f"{name} holds no codes: encode some images")
        self.length = sum(one.drawn for one in self.parts)
        fits = together and sum(shards.size for shards in (self.shards, *more)) <= KEPT
        self.blocks = None if fits else Blocks(self.shards.block, _TOGETHER)

    def _beside(self, recipe: PriorRecipe, folder: str) -> CodeShards:
        """Another folder, of the same tokenizer and layout, with the classes of the first one."""
        found = read_codes(folder)
        if found.fingerprint != self.shards.fingerprint:
            raise ValueError(
                f"{folder} holds codes of another tokenizer ({short(found.fingerprint)}) than "
                f"{recipe.codes} ({short(self.shards.fingerprint)})"
            )
        check_layout(found, self.shards.layout, f"{recipe.codes} has")
        for column in _told_classes(recipe, self.shards, found):
            found = found.renumbered(self.shards.class_names(column), recipe.codes, column)
        found.keep_with(self.shards)
        return found

    def folders(self, recipe: PriorRecipe) -> dict[str, CodeShards]:
        """The folders by name: the one that is trained on, the one that is measured on, then further ones."""
        more = {folder.codes: one.shards for folder, one in zip(recipe.more_codes, self.parts[1:], strict=True)}
        return {recipe.codes: self.shards, recipe.held_out_codes or recipe.codes: self.held, **more}

    def batches(self, recipe: PriorRecipe, start: int, rank: int, world: int) -> Iterator[dict[str, Any]]:
        """This process's micro-batches, as `read_rows` gives them, from optimizer step `start` on, endlessly."""
        order = MicroBatches(
            self.length,
            batch_size=recipe.batch_size,
            accumulate=recipe.accumulate,
            seed=recipe.seed,
            start=start,
            world=world,
            rank=rank,
            blocks=self.blocks,
        )
        ends = np.cumsum([one.drawn for one in self.parts])
        for places in order:
            epochs, indices = np.array(places).T
            owners = np.searchsorted(ends, indices, side="right")
            found = []
            for number, one in enumerate(self.parts):
                mine = np.nonzero(owners == number)[0]
                if len(mine):
                    # A weight that is no whole number goes on in the next epoch where it left off in this one.
                    drawn = indices[mine] - (ends[number] - one.drawn) + epochs[mine] * one.drawn
                    found.append((mine, read_rows(one.shards, one.rows[drawn % len(one.rows)])))
            yield found[0][1] if len(found) == 1 else _merged(found)

    def frequencies(self) -> list[np.ndarray]:
        """How often each code occurs in what is trained on, as `frequencies`; of more than are in memory, in a part."""
        found = None
        for one in self.parts:
            rows = one.rows if self.blocks is None else one.rows[evenly(len(one.rows), _COUNTED, one.shards.block)]
            counts = frequencies(one.shards, rows)
            found = counts if found is None else [a + b for a, b in zip(found, counts, strict=True)]
        assert found is not None
        return found


_NONE = np.arange(0)


def _without(shards: CodeShards, held: set[str]) -> Numbers:
    """The rows of images that are not held out of another folder."""
    same = [row for row, key in enumerate(shards.keys) if key in held] if held else []
    return AllBut(len(shards), same)


def _merged(parts: Sequence[tuple[np.ndarray, dict[str, Any]]]) -> dict[str, Any]:
    """One batch of the rows of several folders, each with their places in it."""
    first = parts[0][1]
    back = np.argsort(np.concatenate([places for places, _ in parts]))
    bare = all(batch["captions"] is None for _, batch in parts)

    def join(values: list[Any]) -> Any:
        if isinstance(values[0], torch.Tensor):
            return torch.cat(values)[torch.from_numpy(back)]
        if isinstance(values[0], np.ndarray):
            return np.concatenate(values)[back]
        flat = [one for value in values for one in value]
        return [flat[place] for place in back]

    of_rows = ("tokens", "labels", "keys", "views", *(["whole"] if "whole" in first else []))
    captions = [batch["captions"] or [()] * len(places) for places, batch in parts]
    return {
        **first,
        **{name: join([batch[name] for _, batch in parts]) for name in of_rows},
        "classes": {name: join([batch["classes"][name] for _, batch in parts]) for name in first["classes"]},
        "captions": None if bare else join(captions),
    }


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
    told = recipe.model.told(all(part.labels_info().bare == 0 for part in shards))
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


def spread(shards: CodeShards, share: float, most: int) -> np.ndarray:
    """The rows that are held out of more codes than have their names in memory, int64 rising: runs of 64 images."""
    views = VIEWS[shards.info["views"]].rows
    images = len(shards) // views
    wanted = min(max(round(share * images), 1), max(1, most // views))
    chosen = evenly(images, wanted, _TOGETHER)
    rows: np.ndarray = (chosen[:, None] * views + np.arange(views)).reshape(-1)
    return rows


def frequencies(shards: CodeShards, rows: Numbers) -> list[np.ndarray]:
    """int64 `(K,)` for each stream: how often each code occurs in the rows."""
    layout = shards.layout
    streams = layout.streams().numpy()
    found = [np.zeros(size, dtype=np.int64) for size in layout.sizes]
    size = max(1, _CODES // layout.length)
    for first in range(0, len(rows), size):
        block = np.asarray(shards.array[rows[first : first + size]])
        for stream, count in enumerate(found):
            count += np.bincount(block[:, streams == stream].ravel(), minlength=len(count))
    return found


def check_layout(shards: CodeShards, layout: CodeLayout, whose: str) -> None:
    """Raises `ValueError` where codes have another layout than `whose`."""
    if shards.layout != layout:
        raise ValueError(f"{shards.folder} holds codes of layout {shards.layout.to_dict()}, {whose} {layout.to_dict()}")
