"""Runs another benchmark on processor time instead of wall time, for machines that others use too; one thread only.

    python -m tests.benchmarks.cputime networks --no-peers

Finished child processes are counted too.
"""

from __future__ import annotations

import resource
import runpy
import sys
import time


def spent() -> float:
    """Seconds of processor time of this process and its finished children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


if __name__ == "__main__":
    time.perf_counter = spent
    sys.argv = sys.argv[1:]
    print("processor time:", end=" ")
    runpy.run_module(f"tests.benchmarks.{sys.argv[0]}", run_name="__main__", alter_sys=True)
