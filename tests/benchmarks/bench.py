"""Harness of the benchmarks: alternating runs in one process, medians as ratios to a bound. Nothing asserts a time."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping

import torch


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--peer-path", action="append", default=[], help="folder to import a peer from; repeatable")
    options.add_argument("--threads", type=int, default=1, help="threads that torch may use (default: 1)")
    options.add_argument("--repeats", type=int, default=5, help="alternating runs (default: 5)")
    options.add_argument("--device", default="cpu", help="where everything is made and runs (default: cpu)")
    return options


def start(options: argparse.Namespace) -> None:
    """Sets threads and device, makes the peers importable, prints what the figures were taken on."""
    torch.set_num_threads(options.threads)
    if options.device != "cpu":  # a default device, even the CPU, slows each call down
        torch.set_default_device(options.device)
    sys.path[:0] = options.peer_path
    processor = f"{torch.backends.cpu.get_cpu_capability()}, {options.threads} thread(s)"
    where = torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else processor
    print(f"torch {torch.__version__}, {where}")


def measure(runs: Mapping[str, Callable[[], object]], repeats: int = 5) -> dict[str, float]:
    """Median seconds of each function, run in turn `repeats` times after one round of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            _finish()
            begin = time.perf_counter()
            run()
            _finish()
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) for name, times in seconds.items()}


def _finish() -> None:
    """Waits for what was asked of a GPU."""
    if torch.get_default_device().type == "cuda":
        torch.cuda.synchronize()


def table(title: str, seconds: Mapping[str, float], bound: str, goal: float | None = None) -> None:
    """Prints milliseconds and the ratio to the function named `bound`."""
    print(f"\n{title}" + (f", goal {goal:g}" if goal else ""))
    for name, value in seconds.items():
        print(f"  {name:<32} {1e3 * value:>10.2f} ms {value / seconds[bound]:>7.2f} x")


def compare(
    title: str, runs: Mapping[str, Callable[[], object]], bound: str, *, goal: float | None = None, repeats: int = 5
) -> dict[str, float]:
    """Measures, prints the table, returns the medians in seconds."""
    seconds = measure(runs, repeats)
    table(title, seconds, bound, goal)
    return seconds
