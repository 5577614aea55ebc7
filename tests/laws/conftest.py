"""Steps in two processes, started once for all the laws."""

from __future__ import annotations

import pytest

from tests.laws.measure import Steps, steps
from tests.processes import in_processes


@pytest.fixture(scope="session")
def shared_steps() -> list[Steps]:
    """Of one process, then of each of two."""
    return [steps(0, 1), *in_processes(2, steps)]
