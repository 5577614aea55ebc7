"""What loaders give: batches as dicts, and a picture or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenizers_vq import images
from tokenizers_vq.data import identity
from tokenizers_vq.data.columns import Columns, Item, Unreadable
from tokenizers_vq.data.files import readable
from tokenizers_vq.data.sources import Chosen, DataConfig, Source, Stream

Batch = dict[str, Any]


class Batches:
    """Iterable of batch dicts: `images` float32 `(b, C, H, W)` in [-1, 1], `keys` a list of b names, `labels` int64
    `(b,)` with -1 for none, `captions` a list of b tuples of texts (None where the data have none at all), `classes` a
    list of b tuples of numbers, one a further column of classes, `broken` what could not be read on the way to this
    batch, name -> reason.

    `broken` collects the same over all batches so far; `source` is what is read (None for a stream), `about` says in
    words what that is, `label_names` are the classes' names by number where they have any. A training iterator never
    ends; close it (`iter(batches).close()`) and its loader processes end. Raises `images.BrokenImage` where `on_broken`
    is stop, `ValueError` where `whole` data hold no image that can be read.
    """

    def __init__(
        self, loader: Callable[[], Iterable[Batch]], config: DataConfig, opened: Source | Stream, whole: bool = False
    ) -> None:
        self.loader, self.config, self.opened, self.whole = loader, config, opened, whole
        self.source: Source | None = None if isinstance(opened, Stream) else opened
        self.about = opened.about
        self.label_names = opened.columns.label_names if isinstance(opened, Stream) else opened.label_names
        self.broken: dict[str, str] = {}

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns, where the data is a table."""
        opened = self.opened.source if isinstance(self.opened, Chosen) else self.opened
        columns: Columns | None = getattr(opened, "columns", None)
        return () if columns is None else columns.names

    def record(self) -> dict[str, Any]:
        """What tells these data from others: size, folder, split, and `identity.record` of the files."""
        about = {"source": self.about.description, "folder": self.about.folder, "split": self.about.split}
        return {**about, **identity.record(self.files(), self.label_names)}

    def files(self) -> list[tuple[str, str]]:
        """Name and path of every file that is read, in order."""
        return self.opened.files if isinstance(self.opened, Stream) else self.opened.files()

    def __iter__(self) -> Iterator[Batch]:
        pending: dict[str, str] = {}
        anything = False
        for batch in self.loader():  # held by the loop alone: its processes end with the loop, however that is left
            if "error" in batch:  # raised here: a loader process would wrap it in its traceback
                raise batch["error"]
            pending.update(batch["broken"])
            self.broken.update(batch["broken"])
            if pending and self.config.on_broken == "stop":
                raise images.BrokenImage(*next(iter(pending.items())))
            if batch["keys"]:
                if batch["captions"] is not None:  # pinning memory makes lists of tuples
                    batch["captions"] = [tuple(texts) for texts in batch["captions"]]
                batch["broken"], pending, anything = pending, {}, True
                yield batch
        if self.whole and self.broken and not anything:
            raise nothing_readable(self.config, self.broken)


def nothing_readable(config: DataConfig, broken: dict[str, str]) -> ValueError:
    """The error for data of which no image can be read."""
    name, reason = next(iter(broken.items()))
    return ValueError(f"{readable(config.path)}: no image can be read; the first, {name}: {reason}")


def decode(item: Item, channels: int, config: DataConfig) -> Tensor | str:
    """`(C, h, w)` as `images.decode` gives it, or why it could not be read."""
    if isinstance(item.image, Unreadable):
        return item.image.reason
    try:
        return images.decode(item.image, channels, item.key, config.range, config.max_pixels or images.MAX_PIXELS)
    except images.BrokenImage as error:
        return error.reason
    except OSError as error:
        return str(error)


def stack(
    views: Sequence[Tensor], items: Sequence[Item], broken: dict[str, str], captions: bool, raw: bool = False
) -> Batch:
    """Views of some items as a batch; `raw`: uint8 as they are, where all are, to be normalised on the device."""
    stacked = torch.empty(0)
    if views and all(view.dtype == torch.uint8 for view in views):
        stacked = torch.stack(list(views))
        stacked = stacked if raw else images.from_uint8(stacked)
    elif views:
        stacked = torch.stack([view if view.is_floating_point() else images.from_uint8(view) for view in views])
    return {
        "images": stacked,
        "keys": [item.key for item in items],
        "labels": torch.tensor([item.label for item in items], dtype=torch.int64),
        "captions": [item.captions for item in items] if captions else None,
        "classes": [item.classes for item in items],
        "broken": broken,
    }
