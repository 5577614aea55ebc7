"""One input after the other in forked children with bounds on time and memory: what may happen is a documented error.

A fuzzer gives `make`, a pure function of a number that makes an input, `call`, which reads it, and the errors that
`call` documents; `search` says what fell, `main` is the command line around it. Every input is known by its number, so
a fault is tried again with `--first NUMBER --count 1`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SECONDS = 10
MEMORY = 2**30
_BATCH = 500  # inputs a child reads: forking costs more than most inputs

Make = Callable[[int], Any]
Call = Callable[[Any], object]
Errors = tuple[type[BaseException], ...]


class Attempt(NamedTuple):
    """One input: `fault` says what must not have happened, else None; `refusal` is the documented error's class."""

    number: int
    fault: str | None
    refusal: str | None
    seconds: float
    """of the processor"""
    memory: int
    """bytes by which the child's peak has grown over what it held before its first input"""


def attempts(
    numbers: Sequence[int], make: Make, call: Call, documented: Errors, seconds: int = SECONDS, memory: int = MEMORY
) -> Iterator[Attempt]:
    """Every number's `call(make(number))`, in order. A fault ends its child; the next number gets a new one."""
    left = list(numbers)
    while left:
        batch = left[:_BATCH]
        done = 0
        for attempt in _child(batch, make, call, documented, seconds, memory):
            done += 1
            yield attempt
        left = left[done:]


def _child(
    batch: Sequence[int], make: Make, call: Call, documented: Errors, seconds: int, memory: int
) -> Iterator[Attempt]:
    reading, writing = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries in C write about every damaged byte
        try:
            with os.fdopen(writing, "w", buffering=1) as out:
                _try_all(
                    batch, make, call, documented, seconds, memory, lambda found: print(json.dumps(found), file=out)
                )
        finally:
            os._exit(0)
    os.close(writing)
    done = 0
    with os.fdopen(reading) as lines:
        for line in lines:
            done += 1
            yield Attempt(*json.loads(line))
    _, status = os.waitpid(pid, 0)
    if done < len(batch) and os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        fault = (
            f"over {seconds} s"
            if number in (signal.SIGPROF, signal.SIGALRM)
            else f"killed by {signal.Signals(number).name}"
        )
        yield Attempt(batch[done], fault, None, float(seconds), 0)


def _try_all(
    batch: Sequence[int],
    make: Make,
    call: Call,
    documented: Errors,
    seconds: int,
    memory: int,
    report: Callable[[Attempt], None],
) -> None:
    for clock in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(clock, signal.SIG_DFL)  # ends loops inside C, which Python's handlers would wait for
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    held = _virtual() + 4 * memory  # keeps the machine; what is asked for beyond it is a MemoryError
    resource.setrlimit(resource.RLIMIT_AS, (held, held))
    base = _peak()
    for number in batch:
        value = make(number)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.alarm(20 * seconds)  # for what waits; the machine may be busy with other things
        start = time.process_time()
        fault, refusal = _call(call, value, documented)
        taken = time.process_time() - start
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        grown = _peak() - base
        if fault is None and grown > memory:
            fault = f"{grown / 2**20:.0f} MiB of memory"
        report(Attempt(number, fault, refusal, taken, grown))
        if fault is not None:
            return


def _call(call: Call, value: Any, documented: Errors) -> tuple[str | None, str | None]:
    try:
        call(value)
    except documented as error:
        text = str(error)
        if "\n" in text:
            return f"more than one line: {text!r}", None
        if "MemoryError" in text or "allocate" in text.lower():
            return f"asked for more memory than there is: {text}", None
        return None, type(error).__name__
    except MemoryError:
        return "asked for more memory than there is", None
    except BaseException as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", None
    return None, None


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _virtual() -> int:
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[0]) * resource.getpagesize() if status.exists() else 2**40


def search(numbers: Sequence[int], make: Make, call: Call, documented: Errors, **bounds: int) -> list[Attempt]:
    """What fell, for a test: the attempts with a fault."""
    return [attempt for attempt in attempts(numbers, make, call, documented, **bounds) if attempt.fault is not None]


def main(make: Make, call: Call, documented: Errors, what: str) -> None:
    """`python -m tests.fuzz.NAME --count N`: counts what was read and refused, prints every fault, keeps its input."""
    parser = argparse.ArgumentParser(description=f"Mutated {what}: documented errors only.")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--keep", type=Path, help="folder for the inputs that fell, where they are bytes")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    slowest, largest, start = 0.0, 0, time.perf_counter()
    for attempt in attempts(range(options.first, options.first + options.count), make, call, documented):
        counts["fell" if attempt.fault else attempt.refusal or "read"] += 1
        slowest, largest = max(slowest, attempt.seconds), max(largest, attempt.memory)
        if attempt.fault:
            print(f"{attempt.number}: {attempt.fault}", flush=True)
            value = make(attempt.number)
            if options.keep and isinstance(value, bytes):
                options.keep.mkdir(parents=True, exist_ok=True)
                (options.keep / str(attempt.number)).write_bytes(value)
    total = ", ".join(f"{count:,} {name}" for name, count in counts.most_common())
    took = time.perf_counter() - start
    print(
        f"{options.count:,} {what} in {took:.0f} s: {total}; at most {slowest:.1f} s and {largest / 2**20:.0f} MiB each"
    )
    sys.exit(int(counts["fell"] > 0))
