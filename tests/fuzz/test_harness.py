"""The harness sees what it is there to see."""

from __future__ import annotations

import os
import signal

import pytest

pytest.importorskip("resource")
from tests.fuzz import harness


def _call(number: int) -> None:
    if number == 1:
        raise KeyError("x")
    if number == 2:
        raise ValueError("said")
    if number == 3:
        raise ValueError("two\nlines")
    if number == 4:
        while True:
            pass
    if number == 5:
        bytearray(b"x") * 2**27
    if number == 6:
        bytearray(2**50)
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)


def test_faults_are_told_from_refusals_and_the_rest_goes_on() -> None:
    found = list(harness.attempts(range(9), lambda number: number, _call, (ValueError,), seconds=1, memory=2**26))
    assert [attempt.number for attempt in found] == list(range(9))
    faults = {attempt.number: attempt.fault for attempt in found if attempt.fault}
    assert set(faults) == {1, 3, 4, 5, 6, 7}
    expected = {1: "KeyError", 3: "one line", 4: "over 1 s", 5: "MiB", 6: "memory", 7: "SIGKILL"}
    assert all(expected[number] in fault for number, fault in faults.items() if fault)
    assert [attempt.refusal for attempt in found if attempt.refusal] == ["ValueError"]
