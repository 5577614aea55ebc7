"""Batches for training and evaluation: decoded, cut and stacked by loader processes ahead of the network."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import cache, partial
from itertools import chain, count, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from tokenizers_vq.data.ahead import ahead
from tokenizers_vq.data.batches import Batch, Batches, decode, nothing_readable, stack
from tokenizers_vq.data.columns import Item
from tokenizers_vq.data.order import MicroBatches, micro_batch_size
from tokenizers_vq.data.sources import Chosen, DataConfig, Source, Stream, open_source, open_stream
from tokenizers_vq.data.transforms import augment
from tokenizers_vq.resizing import resize_center_crop

Size = int | tuple[int, int] | None


class TrainingSet(Dataset):
    """`[(epoch, index), ...]` to a batch; an unreadable image gives its place to the next index that decodes."""

    def __init__(
        self, source: Source, config: DataConfig, size: int | tuple[int, int], channels: int, seed: int, raw: bool
    ) -> None:
        self.source, self.config, self.size, self.channels, self.seed = source, config, size, channels, seed
        self.raw = raw

    def __getitem__(self, places: list[tuple[int, int]]) -> Batch:
        try:
            return self._batch(places)
        except (ValueError, OSError) as error:
            return {"error": error}

    def _batch(self, places: list[tuple[int, int]]) -> Batch:
        items = self.source.items([index for _, index in places])
        views: list[Tensor] = []
        broken: dict[str, str] = {}
        for slot, (epoch, index) in enumerate(places):
            image: Tensor | str = ""
            for tried in range(len(self.source)):
                item = self.source.items([(index + tried) % len(self.source)])[0] if tried else items[slot]
                image = decode(item, self.channels, self.config)
                if isinstance(image, Tensor):
                    break
                broken[item.key] = image
                if self.config.on_broken == "stop":
                    return stack([], [], broken, False)
            if not isinstance(image, Tensor):
                raise nothing_readable(self.config, broken)
            items[slot] = item
            views.append(augment(image, self.config, self.size, f"{self.seed}/{epoch}/{index}"))
        return stack(views, items, broken, self.source.has_captions, self.raw)


class TrainingStream(IterableDataset):
    """Micro-batches of one process of a stream without index.

    Every consumer (loader process of a process) reads its own part, shuffled in a buffer, epoch after epoch. Loader
    processes take turns, so after a resume at micro-batch `skip` the first to speak plays the part that was next, and
    what came before is read again but not decoded. An unreadable image is replaced by a readable one of its batch: then
    the items that a batch consumes do not depend on decoding.
    """

    def __init__(
        self, config: DataConfig, size: int | tuple[int, int], channels: int, batch: int, seed: int, skip: int,
        world: int, rank: int, raw: bool,
    ) -> None:  # fmt: skip
        self.raw = raw
        self.config, self.size, self.channels, self.batch, self.seed = config, size, channels, batch, seed
        self.skip, self.world, self.rank = skip, world, rank
        self.opened = open_stream(config)
        self.stream, self.columns = self.opened.dataset, self.opened.columns
        if config.limit is not None:
            self.stream = self.stream.take(config.limit)
        self.workers = min(config.loaders, max(1, self.stream.n_shards // world))

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        workers = info.num_workers if info else 1
        turn = ((info.id if info else 0) + self.skip) % workers
        done = self.skip // workers + (turn < self.skip % workers)
        consumer = self.rank * workers + turn
        try:
            numbered = enumerate(_endless(self.stream, self.config, self.seed, consumer, self.world * workers))
            rows = islice(numbered, done * self.batch, None)
            while True:
                yield self._batch(list(islice(rows, self.batch)), consumer)
        except (ValueError, OSError) as error:
            yield {"error": error}

    def _batch(self, rows: list[tuple[int, Any]], consumer: int) -> Batch:
        items = [self.columns.item(row, number) for number, row in rows]
        keys = [f"{self.seed}/{consumer}/{number}/{slot}" for slot, (number, _) in enumerate(rows)]
        broken: dict[str, str] = {}
        views: list[Tensor] = []
        good: list[Item] = []
        for item in items:  # one at a time: a batch of large images would not fit into memory
            image = decode(item, self.channels, self.config)
            if isinstance(image, Tensor):
                views.append(augment(image, self.config, self.size, keys[len(good)]))
                good.append(item)
            else:
                broken[item.key] = image
        if broken and self.config.on_broken == "stop":
            return stack([], [], broken, False)
        if not good:
            name, reason = next(iter(broken.items()))
            raise ValueError(f"{self.config.path}: a whole batch cannot be read; its first, {name}: {reason}")
        for slot in range(len(good), self.batch):
            image = decode(good[slot % len(good)], self.channels, self.config)
            assert isinstance(image, Tensor)
            views.append(augment(image, self.config, self.size, keys[slot]))
        filled = [good[slot % len(good)] for slot in range(self.batch)]
        return stack(views, filled, broken, self.columns.captions is not None, self.raw)


def _endless(stream: Any, config: DataConfig, seed: int, consumer: int, consumers: int) -> Iterator[Any]:
    """One consumer's rows, epoch after epoch: its files where there are enough, else every so-manieth row."""
    by_file = stream.n_shards >= consumers and config.limit is None
    if by_file and consumers > 1:
        stream = stream.shard(num_shards=consumers, index=consumer)
    stream = stream.shuffle(seed=seed, buffer_size=config.shuffle_buffer)
    for epoch in count():
        stream.set_epoch(epoch)
        empty = True
        for number, row in enumerate(_rows(stream)):
            if by_file or number % consumers == consumer:
                empty = False
                yield row
        if empty:
            raise ValueError(f"{config.path}: fewer images than the {consumers} loader processes; lower workers")


def _rows(stream: Any) -> Iterator[dict[str, Any]]:
    """Rows of a stream as it stands: its own `__iter__` would split it once more among loader processes."""
    for table in stream.iter(batch_size=16):
        columns = list(table)
        for values in zip(*table.values(), strict=True):
            yield dict(zip(columns, values, strict=True))


def training_batches(
    config: DataConfig,
    *,
    image_size: int | tuple[int, int],
    channels: int,
    batch_size: int,
    accumulate: int = 1,
    seed: int = 0,
    start: int = 0,
    world: int = 1,
    rank: int = 0,
    images: Sequence[int] | np.ndarray | None = None,
    raw: bool = False,
) -> Batches:
    """Endless micro-batches of process `rank` from optimizer step `start` on, `accumulate` of them a step.

    `batch_size` is the global one, `images` the numbers of those to train on, unset all. `raw`: images of 8 bits stay
    uint8, a quarter of the bytes to carry; `images.from_uint8` makes of them, on any device, what comes otherwise.
    What comes is a pure function of data, config, seed, step and micro-batch: any number of workers, and the processes'
    batches in turn are one process's. Streams: the same only for equal processes and workers. Raises as `open_source`
    does, and `ValueError` where `batch_size` does not divide.
    """
    size = micro_batch_size(batch_size, accumulate, world)
    if config.streaming:
        stream = TrainingStream(config, image_size, channels, size, seed, start * accumulate, world, rank, raw)
        return Batches(lambda: _loader(stream, stream.workers), config, stream.opened)
    source = open_source(config) if images is None else Chosen(open_source(config), images)
    sampler = MicroBatches(
        len(source), batch_size=batch_size, accumulate=accumulate, seed=seed, start=start, world=world, rank=rank
    )
    dataset = TrainingSet(source, config, image_size, channels, seed, raw)
    return Batches(lambda: _loader(dataset, config.loaders, sampler), config, source)


def _loader(dataset: Any, workers: int, sampler: Any = None) -> DataLoader:
    return DataLoader(
        dataset,
        batch_size=None,  # the data set makes whole batches
        sampler=sampler,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=partial(_leave_signals_to_the_run, leaving=_leaving()),
        generator=torch.Generator(),  # the loader draws a seed, which must not move the caller's generator
    )


def _as_it_is(batch: Any) -> Any:
    return batch


@cache
def _leaving() -> Any:
    """A flag that loader processes see: this process is at its end, so that a SIGTERM is meant for them."""
    flag = multiprocessing.RawValue("b", 0)
    # Functions of atexit run last come, first served: this one before multiprocessing's, which sends SIGTERM and waits.
    atexit.register(setattr, flag, "value", 1)
    return flag


def _leave_signals_to_the_run(worker: int, leaving: Any) -> None:
    """A scheduler signals the whole process group; the run saves and ends its loaders, they must not end it."""

    def end(number: int, frame: Any) -> None:
        if leaving.value:
            os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)


def _evaluation_batch(items: Sequence[Item], size: Size, channels: int, config: DataConfig, captions: bool) -> Batch:
    kept: list[Item] = []
    views: list[Tensor] = []
    broken: dict[str, str] = {}
    for item in items:
        image = decode(item, channels, config)
        if isinstance(image, str):
            broken[item.key] = image
            continue
        kept.append(item)
        views.append(image if size is None else resize_center_crop(image, size))
    return stack(views, kept, broken, captions)


def evaluation_batches(
    config: DataConfig,
    *,
    image_size: Size,
    channels: int,
    batch_size: int,
    shard: tuple[int, int] = (0, 1),
    prefer: Sequence[str] = ("test", "validation", "val", "train"),
) -> Batches:
    """A split once, in order, nothing padded or doubled, the last batch smaller; see `transforms.resize_center_crop`.

    `shard` (i, n) is the i-th of n contiguous parts, for processes or files of output (of a stream: every n-th item).
    `image_size=None` keeps every image's own size and needs `batch_size=1`. `prefer`: the split to take where none is
    set. A batch of broken images only is passed over; iterate to the end and `broken` names them all; where no image of
    the whole split can be read, the end raises `ValueError`. `config.loaders` threads load ahead. Raises as
    `open_source` does.
    """
    if image_size is None and batch_size != 1:
        raise ValueError(f"images of different sizes cannot form a batch; use batch_size=1, got {batch_size}")
    if not 0 <= shard[0] < shard[1]:
        raise ValueError(f"shard {shard} is no (part, parts) with 0 <= part < parts")
    whole = shard[1] == 1 and config.limit is None
    if config.streaming:
        stream = open_stream(config, prefer)
        columns, captions = stream.columns, stream.columns.captions is not None

        def read() -> Iterator[Callable[[], Batch]]:
            rows = islice(enumerate(_rows(stream.dataset)), shard[0], config.limit, shard[1])
            while chunk := [columns.item(row, number) for number, row in islice(rows, batch_size)]:
                yield partial(_evaluation_batch, chunk, image_size, channels, config, captions)

        return Batches(lambda: ahead(read(), config.loaders), config, stream, whole=whole)
    source = open_source(config, prefer)
    tasks = _evaluation_tasks(source, config, image_size, channels, batch_size, shard)
    return Batches(lambda: ahead(tasks(), config.loaders), config, source, whole=whole)


def _evaluation_tasks(
    source: Source, config: DataConfig, size: Size, channels: int, batch_size: int, shard: tuple[int, int]
) -> Callable[[], Iterator[Callable[[], Batch]]]:
    """What makes the batches of a part, one after the other; they are too many to be listed."""

    def make(indices: range) -> Batch:
        return _evaluation_batch(source.items(indices), size, channels, config, source.has_captions)

    def tasks() -> Iterator[Callable[[], Batch]]:
        first, last = _bounds(source, shard)
        for at in range(first, last, batch_size):
            yield partial(make, range(at, min(at + batch_size, last)))

    return tasks


def _bounds(source: Source, shard: tuple[int, int]) -> tuple[int, int]:
    """The first image of a part, and the one behind its last."""
    first, last = (len(source) * part // shard[1] for part in (shard[0], shard[0] + 1))
    return first, last


def batches_by_part(
    config: DataConfig,
    opened: Source | Stream,
    *,
    image_size: Size,
    channels: int,
    batch_size: int,
    parts: Sequence[int],
    of: int,
    prefer: Sequence[str],
) -> Iterator[tuple[int, Batches]]:
    """`evaluation_batches` of some of `of` parts in turn, each with its number, to be read to its end before the next.

    One loader serves them all, so that it loads ahead into the next part. A stream deals its items out to the parts, so
    that each takes a pass of its own.
    """
    if isinstance(opened, Stream):
        sizes: dict[str, Any] = {"image_size": image_size, "channels": channels, "batch_size": batch_size}
        shared = {**sizes, "prefer": prefer}
        yield from ((part, evaluation_batches(config, shard=(part, of), **shared)) for part in parts)
        return
    tasks = (_evaluation_tasks(opened, config, image_size, channels, batch_size, (part, of))() for part in parts)
    with closing(ahead(chain.from_iterable(tasks), config.loaders)) as loaded:
        for part in parts:
            first, last = _bounds(opened, (part, of))
            count = -(-(last - first) // batch_size)
            yield part, Batches(partial(islice, loaded, count), config, opened, whole=of == 1)
