"""Dynamic batching: requests of one kind that come within a few milliseconds are computed as one batch."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple


class _Job(NamedTuple):
    key: Hashable
    item: Any
    rows: int
    result: asyncio.Future[Any]
    due: float


class Batcher:
    """Calls `compute(key, items)`, in one thread, with items of one key and of at most `rows` rows together.

    `compute` gives one result an item. A request is never cut in two. The oldest goes first; it waits `wait` seconds at
    most for others of its key while nothing else is computed. Where a batch fails, each of its items is computed alone,
    so that one request does not spoil another's.
    """

    def __init__(self, compute: Callable[[Any, Sequence[Any]], Sequence[Any]], rows: int, wait: float) -> None:
        self.compute, self.rows, self.wait = compute, rows, wait
        self.batches = 0
        """batches computed so far"""
        self.computed = 0
        """rows computed so far"""
        self._waiting: deque[_Job] = deque()
        self._came = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "model")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to compute, in the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """End when what is being computed is done; what still waits is cancelled."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for job in self._waiting:
            job.result.cancel()
        self._thread.shutdown(wait=True)

    async def submit(self, key: Hashable, item: Any, rows: int) -> Any:
        """What `compute` makes of an item of so many rows. Raises what it raises."""
        loop = asyncio.get_running_loop()
        job = _Job(key, item, rows, loop.create_future(), loop.time() + self.wait)
        self._waiting.append(job)
        self._came.set()
        return await job.result  # where this is cancelled, so is the future, and the job is passed over

    async def _run(self) -> None:
        while True:
            jobs = await self._next()
            results = await asyncio.get_running_loop().run_in_executor(self._thread, self._results, jobs)
            for job, result in zip(jobs, results, strict=True):
                if job.result.done():
                    continue
                if isinstance(result, Exception):
                    job.result.set_exception(result)
                else:
                    job.result.set_result(result)

    async def _next(self) -> list[_Job]:
        """The oldest job, and those that go with it; waits until there is one, and for others while it may."""
        loop = asyncio.get_running_loop()
        while True:
            self._came.clear()
            self._waiting = deque(job for job in self._waiting if not job.result.done())
            if not self._waiting:
                await self._came.wait()
                continue
            chosen, full = self._chosen()
            left = chosen[0].due - loop.time()
            if full or left <= 0 or len(chosen) < len(self._waiting):  # where others wait too, none is idle
                for job in chosen:
                    self._waiting.remove(job)
                return chosen
            try:
                await asyncio.wait_for(self._came.wait(), left)
            except asyncio.TimeoutError:
                continue

    def _chosen(self) -> tuple[list[_Job], bool]:
        """Jobs of the oldest's key, in their order, as many as fit; and whether no more would."""
        chosen: list[_Job] = []
        rows = 0
        for job in self._waiting:
            if job.key != self._waiting[0].key:
                continue
            if chosen and rows + job.rows > self.rows:
                return chosen, True
            chosen.append(job)
            rows += job.rows
        return chosen, rows >= self.rows

    def _results(self, jobs: Sequence[_Job]) -> list[Any]:
        self.batches += 1
        self.computed += sum(job.rows for job in jobs)
        try:
            return list(self.compute(jobs[0].key, [job.item for job in jobs]))
        except Exception as error:
            if len(jobs) == 1:
                return [error]
        return [result for job in jobs for result in self._results([job])]
