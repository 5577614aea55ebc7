"""Runs another benchmark on processor time instead of wall time, for machines that others use too; one thread only.

python -m tests.benchmarks.cputime networks --no-peers
"""

from __future__ import annotations

import runpy
import sys
import time

if __name__ == "__main__":
    time.perf_counter = time.process_time
    sys.argv = sys.argv[1:]
    print("processor time:", end=" ")
    runpy.run_module(f"tests.benchmarks.{sys.argv[0]}", run_name="__main__", alter_sys=True)
