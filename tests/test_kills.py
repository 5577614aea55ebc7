"""Nothing saved is lost: killed at random moments, a run and an encoding end as if they had not been."""

from __future__ import annotations

from pathlib import Path

from tests import kills


def test_a_killed_run_ends_bitwise_equal(tmp_path: Path) -> None:
    killed, same = kills.train(tmp_path, kills=2, seed=1, steps=120)
    assert killed and same


def test_a_killed_encoding_loses_and_doubles_nothing(tmp_path: Path) -> None:
    killed, same = kills.encode(tmp_path, kills=2, seed=1, images=400)
    assert killed and same
