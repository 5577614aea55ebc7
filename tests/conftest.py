"""Shared files, quiet torch, and no network in the tests."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: a second thread only waits for the first
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


def shared(path: str) -> Path:
    """A file or folder of `../shared`; skips where it is absent, fails where `TVQ_REQUIRE_SHARED` is set."""
    found = SHARED / path
    if found.exists():
        return found
    missing(f"needs ../shared/{path}, which a clone does not have")


def missing(reason: str) -> NoReturn:
    """Skips for want of something; fails where `TVQ_REQUIRE_SHARED` is set."""
    if os.environ.get("TVQ_REQUIRE_SHARED"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def _seed() -> None:
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _logging_stays_on() -> Iterator[None]:
    """What a test leaves switched off, those after it wait for in vain."""
    yield
    left = logging.root.manager.disable
    logging.disable(logging.NOTSET)
    assert not left, "this test left logging disabled"


@pytest.fixture
def notes() -> Iterator[Callable[[], str]]:
    """What the package has logged since the last call, a line a message."""
    logger, lines = logging.getLogger("tokenizers_vq"), []

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    def heard() -> str:
        text = "\n".join(lines)
        lines.clear()
        return text

    handler, before = Heard(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield heard
    logger.removeHandler(handler)
    logger.setLevel(before)
