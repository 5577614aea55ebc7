"""Nothing in a step asks for a value that an accelerator would have to be waited for, but where the step is logged."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import prior
import prior.training
import tokenizers_vq as tvq
from prior.conditions import ClassConfig
from prior.networks.gpt import GptConfig
from prior.sequences import LayoutConfig
from tests.prior.conftest import SMALL as SMALL_PRIOR
from tests.prior.conftest import codes, tokenizer, write_codes  # noqa: F401  (fixtures)
from tokenizers_vq import checks
from tokenizers_vq.training import loop
from tokenizers_vq.training.recipe import load_recipe
from tokenizers_vq.training.runs import train

aten = torch.ops.aten
ASKING = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten.bincount,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.equal,
    aten.repeat_interleave,
}
"""operators whose result's value or shape goes to the host"""
MASKED = {aten.index, aten.index_put, aten.index_put_}
"""as well, where an index is a mask"""
OURS = tuple(str(Path(package.__file__).parent) for package in (tvq, prior))


def _ours(path: str) -> bool:
    return path.startswith(OURS) and "/tokenizers_vq/data/" not in path


class Waits(TorchDispatchMode):
    """Counts them by the line of this package that asked.

    Optimizers ask for their counts of steps, and the data for their order: both lie on the CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        masks = packet in MASKED and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in tree_leaves(args[1])
        )
        if packet in ASKING or masks:
            frame = sys._getframe(1)
            while frame is not None and not _ours(frame.f_code.co_filename):
                if "/torch/optim/" in frame.f_code.co_filename or "/tokenizers_vq/data/" in frame.f_code.co_filename:
                    break
                frame = frame.f_back  # type: ignore[assignment]
            else:
                where = "elsewhere" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                self.found[f"{packet} at {where}"] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def unlogged(monkeypatch: pytest.MonkeyPatch) -> list[Waits]:
    """What each step that is not logged asks for."""
    found: list[Waits] = []
    one = loop._one_step

    def counted(task: Any, config: Any, accelerator: Any, stream: Any, step: int, *others: Any) -> None:
        quiet = step > 0 and not config.logs(step)  # the first step checks the data once
        with Waits() if quiet else nullcontext() as waits:
            one(task, config, accelerator, stream, step, *others)
        found.extend([waits] if waits is not None else [])

    monkeypatch.setattr(loop, "_one_step", counted)
    return found


BOOKS = {
    "vector": "model.quantizer={kind: vector, num_codes: 32, dim: 4, distance: cosine, revive_after: 2}",
    "ema": "model.quantizer={kind: vector, num_codes: 32, dim: 4, codebook: ema, kmeans_batches: 1}",
    "fsq": "model.quantizer={kind: fsq, levels: [4, 4, 3]}",
    "residual": "model.quantizer={kind: residual, levels: 2, book: {kind: vector, num_codes: 16, dim: 4}}",
}


@pytest.mark.parametrize("book", BOOKS)
def test_a_tokenizers_step_waits_for_nothing(
    tmp_path: Path, small: list[str], unlogged: list[Waits], book: str
) -> None:
    short = ["adversary.start=0", "steps=4", "log_every=4", "checkpoint_every=4", "accumulate=1"]
    train(load_recipe("vqgan-tiny-64", [*small, *short, BOOKS[book]]), tmp_path, device="cpu")
    assert len(unlogged) == 2
    assert not unlogged[-1].found


def test_a_priors_step_waits_for_nothing(tmp_path: Path, codes: Path, unlogged: list[Waits]) -> None:  # noqa: F811
    short = ["steps=4", "log_every=4", "checkpoint_every=4", "evaluate_every=4"]
    prior.training.train(prior.recipe.load_recipe("gpt-tiny", codes, [*SMALL_PRIOR, *short]), tmp_path, device="cpu")
    assert len(unlogged) == 2
    assert not unlogged[-1].found


def test_encoding_reads_its_checks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read = checks.Checks.read
    flags: list[int] = []
    monkeypatch.setattr(
        checks.Checks, "read", lambda self, *options: (flags.append(len(self._noted)), read(self, *options))[1]
    )
    encoder = tvq.BatchEncoder(tvq.create("vqgan-tiny-64", ["encoder.width=32", "decoder.width=32"]), device="cpu")
    images = 2 * torch.rand(2, 3, 64, 64) - 1
    with Waits() as waits:
        encoder.encode(images)
    assert not waits.found
    assert len(flags) == 1 and flags[0] >= 3  # range, features, codebook


def test_a_sampled_code_waits_for_nothing() -> None:
    found = []
    for side in (2, 4):
        layout = LayoutConfig(grids=((side, side),), levels=1, sizes=(16,))
        network = GptConfig(layers=1, dim=32, heads=2)
        config = prior.PriorConfig(network=network, condition=ClassConfig(num_classes=3), layout=layout)
        made = prior.Prior(config).eval()
        made.sample(1, 1)  # what is tried once in a process
        with Waits() as waits:
            made.sample(2, 1, guidance=2, top_p=0.9)
        found.append(sum(waits.found.values()))
    assert found[0] == found[1]


def test_what_is_wrong_is_said_when_read_first_things_first() -> None:
    said: list[str] = []
    with checks.together() as noted:
        with checks.together() as inner:
            checks.check(torch.tensor(True), lambda: said.append("never"))
            checks.check(torch.tensor(False), lambda: said.append("first"))
        assert inner is noted and not said
        checks.check(torch.tensor(False), lambda: said.append("second"))
        noted.read()
        assert said == ["first", "second"]
    checks.check(torch.tensor(False), lambda: said.append("at once"))
    assert said[-1] == "at once" and len(said) == 3
