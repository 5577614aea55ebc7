"""Every benchmark still runs, each at its smallest size, once. Nothing here looks at a time."""

from __future__ import annotations

import importlib
import logging
import re
from pathlib import Path

import pytest
import torch

import tests.benchmarks

HELPERS = {"__init__", "bench", "cputime", "ours", "test_benchmarks"}
SMALLEST = {
    "networks": ["--width", "32", "--size", "32", "--no-peers"],
    "training_step": ["--width", "32", "--size", "16", "--batch", "2", "--no-peers"],
    "discriminators": ["--only", "dcgan", "--width", "32", "--size", "16", "--batch", "2", "--precision", "bf16"],
    "codes": ["--rows", "100"],
    "determinism": ["--models", "vqvae-tiny-64", "--backends", "eager", "--data", "skimage", "--count", "8"],
    "large": ["--sides", "64"],
    "endless": ["--rows", "100"],
    "families": ["--pair", "vit-vqgan-tiny-64", "vqgan-tiny-64"],
    "files": ["--count", "10"],
    "folder": ["--count", "3", "--size", "64"],
    "memory": ["--alone", "step", "--step-size", "16"],
    "startup": ["--quick"],
    "sampling": ["--layers", "1", "--dim", "64", "--vocabulary", "16", "--tokens", "4", "--batch", "1", "--no-peers"],
    "scales": ["--layers", "1", "--dim", "64", "--codes", "16", "--scales", "1", "2"],
    "interpolation": ["--data", "skimage"],
    "measures": ["skimage", "--count", "6", "--image-size", "32"],
    "speculative": ["--layers", "1", "--dim", "64", "--tokens", "4", "--images", "1"],
    "serve": ["--requests", "2", "--clients", "2", "--batch-size", "2", "--seconds", "0.1", "--malformed", "7"],
    "search": ["--memory", "ours", "64", "64", "8"],
}
ONCE = {"interpolation", "measures", "serve", "speculative"}
"""those that repeat nothing"""


@pytest.mark.parametrize("name", sorted(SMALLEST))
def test_a_benchmark_prints_its_figures(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr("sys.argv", [name, *SMALLEST[name], *([] if name in ONCE else ["--repeats", "1"])])
    try:
        importlib.import_module(f"tests.benchmarks.{name}").main()
    finally:
        torch.set_num_threads(threads)
        logging.disable(logging.NOTSET)
    assert re.search(r"\d\.\d", capsys.readouterr().out)


def test_every_benchmark_is_tried() -> None:
    scripts = {path.stem for path in Path(tests.benchmarks.__file__).parent.glob("*.py")}
    assert scripts - HELPERS == SMALLEST.keys()
