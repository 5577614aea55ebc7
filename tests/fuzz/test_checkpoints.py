"""Some hundred mutated checkpoints, layouts and configs; `python -m tests.fuzz.checkpoints --count N` tries more."""

from __future__ import annotations

import pytest

pytest.importorskip("resource")
from tests.fuzz import checkpoints, configs, harness, layouts


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("fuzz", "count"), [(checkpoints, 600), (layouts, 48), (configs, 150)])
def test_what_strangers_wrote_is_read_or_refused_in_one_line(fuzz, count: int) -> None:
    fuzz.seeds()
    assert not harness.search(range(count), fuzz.make, fuzz.call, fuzz.DOCUMENTED, seconds=60)


def test_every_seed_is_read() -> None:
    for which, seed in enumerate(checkpoints.seeds()):
        if seed.suffix != ".pkl" or b"torch" in seed.content:
            checkpoints.call((which, seed.content, True))
    for seed in layouts.seeds():
        try:
            layouts.call(layouts.Input(seed.source, seed.tensors, seed.config, False, *seed[3:]))
        except ValueError as error:
            assert "its discriminator" in str(error) or "its decoder takes noise" in str(error), seed.source
    for seed in configs.seeds():
        configs.call(seed)
