"""What a run says: in a terminal of 80 columns, and in a file."""

from __future__ import annotations

import io
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from tokenizers_vq.training import tracking

FIGURES = {"step": 1234, "lr/tokenizer": 1e-4, "reconstruction": 0.52, **{f"loss{i}": 0.123456 for i in range(9)}}


def said(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> list[str]:
    text = io.StringIO()
    console: Any = partial(Console, file=text, width=80, force_terminal=terminal, color_system=None)
    monkeypatch.setattr(tracking, "Console", console)
    process: Any = SimpleNamespace(is_main_process=True)
    with tracking.shown(), tracking.Progress(process, 0, 100_000, 16) as progress:
        progress.advance(1234)
        for _ in range(2):
            progress.skipped({"a[red]b.png": "no image\x1b[31m"})
        progress.show({**FIGURES, "images_per_second": 253.1})
    return text.getvalue().replace("\r", "\n").splitlines()


def test_bar_and_figures_each_fit_into_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line.replace("\x1b[2K", "").replace("\x1b[1A", "") for line in said(monkeypatch, True)]
    assert all(len(line) <= 80 for line in lines if "\x1b" not in line)
    assert any("1234/100000" in line and "images/s, left" in line for line in lines)
    assert any(line.startswith("reconstruction 0.52  loss0 0.1235") and line.endswith("…") for line in lines)


def test_a_file_gets_a_line_a_logged_step_and_each_broken_file_once(monkeypatch: pytest.MonkeyPatch) -> None:
    broken, step = said(monkeypatch, False)
    assert broken == r"skipped a[red]b.png: no image\x1b[31m"
    assert step.startswith("step 1234/100000  reconstruction 0.52  loss0 0.1235") and "images_per_second 253.1" in step
    assert "lr/tokenizer" not in step and step.endswith(" min")
