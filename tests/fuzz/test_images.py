"""Some hundred mutated pictures; `python -m tests.fuzz.images --count N` tries more."""

from __future__ import annotations

import pytest

pytest.importorskip("resource")
import tokenizers_vq.resizing  # noqa: F401  (before the children, each of which would import it)
from tests.fuzz import harness, images


def test_every_seed_is_read() -> None:
    for number, content in enumerate(images.seeds()):
        try:
            images.call(content)
        except ValueError as error:
            assert "range" in str(error), number  # 32 bits and 16-bit colour: a range is asked for, or none fits


@pytest.mark.filterwarnings("ignore")
def test_mutated_pictures_are_read_or_named() -> None:
    images.seeds()
    assert not harness.search(range(1500), images.make, images.call, images.DOCUMENTED)
