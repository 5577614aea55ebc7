"""Images to train a prior on as they are: stored views of each, and augmented ones, encoded as it trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prior.conditions import ImageConfig, SeveralConfig
from prior.conditions.image import changed
from prior.data import Data, read_rows
from prior.recipe import PriorRecipe
from tokenizers_vq.data.loading import training_batches
from tokenizers_vq.data.order import MicroBatches
from tokenizers_vq.data.shards import write_codes
from tokenizers_vq.data.sources import Source, open_source
from tokenizers_vq.devices import processes
from tokenizers_vq.encoding import BatchEncoder
from tokenizers_vq.resizing import pair, resize

_READ = 256


class _Told(BatchEncoder):
    """Encodes what a prior is told of an image: itself, or its grey."""

    def __init__(self, tokenizer: str, config: ImageConfig, device: str) -> None:
        super().__init__(tokenizer, device=device, precision="fp32", image_size=config.image_size)
        self.change = config.change

    def encode(self, images: Tensor) -> Tensor:
        """As `BatchEncoder.encode`, of images changed as the condition says."""
        wide = changed(images, "grey" if self.channels == 1 else self.change)
        return super().encode(wide[:, : self.channels])


def _parts(recipe: PriorRecipe) -> list[Any]:
    told = recipe.model.condition
    return list(told.conditions) if isinstance(told, SeveralConfig) else [told]


def with_folders(recipe: PriorRecipe, out: Path) -> PriorRecipe:
    """The recipe of a run on images, with the folders inside `out` where the codes of their centres are kept.

    Raises `ValueError` without a tokenizer.
    """
    if recipe.tokenizer is None:
        raise ValueError("images are trained on by a tokenizer: give one with --tokenizer")
    told, kept = recipe.model.condition, str(out / "told")
    if isinstance(told, ImageConfig) and not told.codes:
        told = told.replace(codes=(kept,), tokenizer=told.tokenizer or recipe.tokenizer)
    elif isinstance(told, SeveralConfig):
        parts = [
            part.replace(codes=(kept,), tokenizer=part.tokenizer or recipe.tokenizer)
            if isinstance(part, ImageConfig) and not part.codes
            else part
            for part in told.conditions
        ]
        told = told.replace(conditions=tuple(parts))
    return recipe.replace(codes=str(out / "codes"), model=recipe.model.replace(condition=told))


class Views:
    """The images of a run: `store` keeps the codes of their centres, `batches` gives augmented ones in training."""

    def __init__(self, recipe: PriorRecipe, out: Path, device: str) -> None:
        """`recipe`: of `with_folders`. Raises `ValueError` for data that have no index, and what `load` raises."""
        assert recipe.data is not None and recipe.tokenizer is not None
        self.data, self.out = recipe.data, out
        self.encoder = BatchEncoder(recipe.tokenizer, device=device, precision="fp32")
        own = [part for part in _parts(recipe) if isinstance(part, ImageConfig) and part.codes == (str(out / "told"),)]
        self.told = _Told(str(own[0].tokenizer), own[0], device) if own else None

    def store(self, batch_size: int) -> None:
        """Encode the centre of every image, as far as that is not done; processes share the work."""
        rank, world = processes()
        for name, encoder in (("codes", self.encoder), ("told", self.told)):
            if encoder is not None:
                write_codes(encoder, self.data, self.out / name, batch_size=batch_size, rank=rank, world=world)

    def batches(self, recipe: PriorRecipe, data: Data, start: int, rank: int, world: int) -> Iterator[dict[str, Any]]:
        """As `Data.batches`, of augmented views: a pure function of images, recipe, seed and step."""
        config = self.data.replace(split=self.data.split or data.shards.info["split"], on_broken="stop")
        numbers = image_numbers(open_source(config), data.shards.keys, data.shards.info["broken"] or {})[data.rows[:]]
        of_run: dict[str, Any] = {
            "batch_size": recipe.batch_size,
            "accumulate": recipe.accumulate,
            "seed": recipe.seed,
            "start": start,
            "world": world,
            "rank": rank,
        }
        size = self._size()
        loaded = training_batches(config, image_size=size, channels=self.encoder.channels, images=numbers, **of_run)
        order = MicroBatches(len(numbers), **of_run)
        with closing(iter(loaded)) as stream:  # type: ignore[type-var]
            for places, batch in zip(order, stream, strict=False):
                found = read_rows(data.shards, data.rows[[index for _, index in places]])
                if batch["keys"] != found["keys"]:
                    raise ValueError(f"{config.path} holds other images than {data.shards.folder} was made of")
                made = {**found, **self._encoded(batch["images"])}
                if data.shards.whole is not None and recipe.model.grids is not None:
                    made["whole"] = made["tokens"]
                    made["tokens"] = made["whole"][:, data.shards.whole.layout.places_of(recipe.model.grids)]
                yield made

    def _size(self) -> tuple[int, int]:
        """Of a training view: the larger of what is modelled and what is told."""
        sizes = [pair(one.image_size) for one in (self.encoder, self.told) if one is not None]
        return max(size[0] for size in sizes), max(size[1] for size in sizes)

    def _encoded(self, images: Tensor) -> dict[str, Tensor]:
        found = {"tokens": self.encoder.encode(_resized(images, self.encoder))}
        if self.told is not None:
            found["image_codes"] = self.told.encode(_resized(images, self.told))
        return found


def _resized(images: Tensor, encoder: BatchEncoder) -> Tensor:
    height, width = pair(encoder.image_size)
    if images.shape[-2:] == (height, width):
        return images
    return torch.stack([resize(one, height, width) for one in images])


def image_numbers(source: Source, keys: list[str], broken: dict[str, str]) -> np.ndarray:
    """int64 `(n,)`: numbers in `source` of the images that have these `keys`, in order; `broken` ones have none.

    Raises `ValueError` where they do not belong together.
    """
    if len(source) == len(keys):
        return np.arange(len(keys))
    found = []
    for first in range(0, len(source), _READ):
        items = source.items(range(first, min(first + _READ, len(source))))
        found += [first + place for place, item in enumerate(items) if item.key not in broken]
    if len(found) != len(keys):
        raise ValueError(f"{source.description} holds {len(found)} images that can be read, {len(keys)} have codes")
    return np.array(found)
