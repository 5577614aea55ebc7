"""Codes without end: what does not fit into memory is opened, split and shuffled without reading it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prior.data import AllBut, Data, spread
from prior.recipe import PriorRecipe, load_recipe
from prior.scoring import score
from tests.benchmarks.endless import sparse
from tests.conftest import ROOT
from tests.prior.conftest import SMALL
from tests.prior.test_training import assert_bitwise, everything, run
from tokenizers_vq.data.shards import read_codes, stored


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every folder is one of more codes than fit into memory, in blocks of 5 rows of which 4 are shuffled together."""
    import prior.data
    from tokenizers_vq.data.shards import files

    monkeypatch.setattr(stored, "SMALL", 0)
    monkeypatch.setattr(stored, "UNIT", 5 * 32)
    monkeypatch.setattr(stored, "KEPT", 20 * 32)
    monkeypatch.setattr(files, "_GROUP", 10 * 32)
    monkeypatch.setattr(prior.data, "_TOGETHER", 4)


def recipe_of(codes: Path, *overrides: str) -> PriorRecipe:
    return load_recipe("gpt-tiny", codes, [*SMALL, *overrides])


def keys(data: Data, recipe: PriorRecipe, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[str]:
    for batch in data.batches(recipe, start, rank, world):
        yield from batch["keys"]


def test_every_row_once_an_epoch_and_none_that_is_held_out(many: None, write_codes: Any, tmp_path: Path) -> None:
    codes = write_codes(tmp_path / "codes", 100, shards=5)
    recipe = recipe_of(codes)
    data = Data(recipe)
    shards = read_codes(codes)
    assert len(data.rows) + len(data.held_rows) == 100 and 16 <= len(data.held_rows) <= 24
    assert data.blocks is not None
    held = set(shards.keys_of(data.held_rows))
    for epoch in range(2):
        seen = list(islice(keys(data, recipe), epoch * data.length, (epoch + 1) * data.length))
        assert sorted([*seen, *held]) == sorted(shards.keys)
    assert seen != list(islice(keys(data, recipe), 0, data.length))
    batch = next(data.batches(recipe, 3, 0, 1))
    rows = [shards.keys.index(key) for key in batch["keys"]]
    assert torch.equal(batch["tokens"], shards.codes[rows]) and torch.equal(batch["labels"], shards.labels[rows])
    # Two processes see the batches of one, from any step on.
    whole = list(islice(keys(data, recipe, 3), 8))
    assert whole == [key for rank in (0, 1) for key in islice(keys(data, recipe, 3, rank, 2), 4)]
    assert whole == list(islice(keys(data, recipe), 24, 32))


def test_resuming_is_bitwise(many: None, write_codes: Any, tmp_path: Path) -> None:
    codes = write_codes(tmp_path / "codes", 100, shards=3)
    whole = run(codes, tmp_path / "whole")
    run(codes, tmp_path / "parts", "steps=3")
    assert_bitwise(everything(whole), everything(run(codes, tmp_path / "parts")))
    assert json.loads((whole / "data.json").read_text())["order"] == [5, 4]
    assert score(str(whole), device="cpu").images == len(Data(recipe_of(codes)).held_rows)


def test_a_run_of_before_keeps_its_order_or_is_refused(write_codes: Any, tmp_path: Path, monkeypatch) -> None:
    """As many codes as fit are split and shuffled as ever; a run on more of them cannot go on."""
    codes = write_codes(tmp_path / "codes", 100)
    out = run(codes, tmp_path / "run", "steps=3")
    record = json.loads((out / "data.json").read_text())
    assert record.pop("order") is None
    (out / "data.json").write_text(json.dumps(record))  # as it was written before
    run(codes, out, "steps=4")
    monkeypatch.setattr(stored, "SMALL", 50)
    data = Data(recipe_of(codes))
    (out / "data.json").write_text(json.dumps({**record, "size": data.length}))
    for call in (lambda: run(codes, out, "steps=5"), lambda: score(str(out), device="cpu")):
        with pytest.raises(ValueError, match="began before so many codes were shuffled in blocks") as error:
            call()
        assert "\n" not in str(error.value) and "--init-from" in str(error.value)


@pytest.mark.parametrize("views", [1, 2])
def test_what_is_held_out_of_many_is_spread_in_runs(views: int, tmp_path: Path) -> None:
    shards = read_codes(sparse(tmp_path / "codes", 8192 * 20, side=2, codes=16))
    shards.info["views"] = "flip" if views == 2 else "center"
    rows = spread(shards, 0.05, 2048)
    assert len(rows) == 2048 == len(set(rows.tolist())) and (np.diff(rows) > 0).all()
    assert rows.max() > 0.9 * len(shards) and rows.min() < 0.1 * len(shards)
    left = AllBut(len(shards), rows)
    assert len(left) == len(shards) - 2048
    assert sorted([*left[:].tolist(), *rows.tolist()]) == list(range(len(shards)))
    assert np.array_equal(left[np.array([5, -1])], left[:][[5, -1]])
    if views == 2:
        assert np.array_equal(np.unique(rows // 2, return_counts=True)[1], np.full(1024, 2))


@pytest.mark.parametrize("together", [True, False])
def test_several_folders_with_weights(together: bool, write_codes: Any, tmp_path: Path, request) -> None:
    one = write_codes(tmp_path / "one", 40)
    two = write_codes(tmp_path / "two", 30, seed=1, label_names=["fox", "cat", "dog"])
    three = write_codes(tmp_path / "three", 20, seed=2)
    test = write_codes(tmp_path / "test", 10, seed=3)
    if not together:
        request.getfixturevalue("many")
    more = f"more_codes=[{{codes: {two}, weight: 2}}, {{codes: {three}, weight: 0.5}}]"
    recipe = recipe_of(one, more, f"held_out_codes={test}")
    data = Data(recipe)
    assert data.length == 40 + 60 + 10
    drawn = Counter(islice(keys(data, recipe), 2 * data.length))  # two epochs
    assert {drawn[f"image 0-{row}"] for row in range(40)} == {2}
    assert {drawn[f"image 1-{row}"] for row in range(30)} == {4}
    assert {drawn[f"image 2-{row}"] for row in range(20)} == {1}
    # Their classes are found by name, their codes are their own.
    shards = {folder: read_codes(folder) for folder in (one, two, three)}
    for batch in islice(data.batches(recipe, 0, 0, 1), 10):
        for key, tokens, label in zip(batch["keys"], batch["tokens"], batch["labels"].tolist(), strict=True):
            its = shards[(one, two, three)[int(key.split("-")[0][-1])]]
            row = its.keys.index(key)
            assert torch.equal(tokens, its.codes[row])
            assert ("cat", "dog", "fox")[label] == its.label_names[its.labels[row]]
        assert batch["views"].tolist() == [0] * 8
    out = run(one, tmp_path / "run", more, f"held_out_codes={test}", "steps=3")
    if together:
        whole = run(one, tmp_path / "whole", more, f"held_out_codes={test}")
        assert_bitwise(everything(whole), everything(run(one, out, more, f"held_out_codes={test}")))
    with pytest.raises(ValueError, match=r"has 140 rows to train on, the run .* began with 110"):
        run(one, out, more.replace("2}", "3}"), f"held_out_codes={test}")
    if together:
        return
    with pytest.raises(ValueError, match=r"more_codes: so many codes .*: give held_out_codes"):
        Data(recipe_of(one, more))


def test_an_image_that_is_held_out_is_in_no_folder(write_codes: Any, tmp_path: Path) -> None:
    one = write_codes(tmp_path / "one", 40)
    again = write_codes(tmp_path / "again", 40)  # the same images
    recipe = recipe_of(one, f"more_codes=[{{codes: {again}}}]")
    data = Data(recipe)
    held = set(data.held.keys_of(data.held_rows))
    seen = Counter(islice(keys(data, recipe), data.length))
    assert held.isdisjoint(seen) and set(seen.values()) == {2} and len(seen) + len(held) == 40
    other = write_codes(tmp_path / "other", 40, fingerprint="f" * 64)
    with pytest.raises(ValueError, match=r"other holds codes of another tokenizer .ffffffff. than .*one"):
        Data(recipe_of(one, f"more_codes=[{{codes: {other}}}]"))


MEMORY = """
import sys
from pathlib import Path
from prior.recipe import load_recipe
from prior.training import train
from tests.fuzz import harness
from tests.prior.conftest import SMALL

def first(number):
    recipe = load_recipe("gpt-tiny", sys.argv[1 + number], [*SMALL, "steps=1", "held_out=0.02", "max_held_out=512"])
    train(recipe, Path(sys.argv[3]) / str(number), device="cpu")

for found in harness.attempts([0], lambda n: n, first, ()), harness.attempts([1], lambda n: n, first, ()):
    (attempt,) = found
    assert attempt.fault is None, attempt.fault
    print("memory", attempt.memory)
"""


def test_a_hundred_million_rows_begin_in_the_memory_of_ten_thousand(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    few, many = (sparse(tmp_path / str(count), count, side=4, codes=64, classes=10) for count in (8192, 12208 * 8192))
    assert len(read_codes(many)) > 100_000_000
    command = [sys.executable, "-c", MEMORY, str(few), str(many), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    peaks = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("memory")]
    assert len(peaks) == 2, done.stderr
    assert peaks[1] - peaks[0] < 64 * 2**20
    log = json.loads((tmp_path / "1" / "log.jsonl").read_text().splitlines()[-1])
    assert log["held_out/bits_per_token"] > 0 and json.loads((tmp_path / "1" / "data.json").read_text())["order"]
