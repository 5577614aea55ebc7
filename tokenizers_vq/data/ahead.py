"""Work ahead of who needs its results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

T = TypeVar("T")


def ahead(tasks: Iterable[Callable[[], T]], workers: int) -> Generator[T, None, None]:
    """Results of `tasks` in order, computed by threads a few batches ahead.

    Threads, not processes: decoders and resizing release the lock, small images cost more to send than to decode, and
    a short run should not wait for processes to start.
    """
    if workers == 0:
        yield from (task() for task in tasks)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="images")
    try:
        tasks, waiting = iter(tasks), deque[Any]()
        while True:
            waiting.extend(pool.submit(task) for task in islice(tasks, 2 * workers + 1 - len(waiting)))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
