"""Checkpoints: any damaged file falls back to the older one, nothing is unpickled, nothing that is NaN is saved."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tokenizers_vq as tvq
from tests.training.test_runs import assert_bitwise, everything, run
from tokenizers_vq.training import loop
from tokenizers_vq.training.checkpoint import Checkpoints
from tokenizers_vq.training.loop import NonFiniteLossError
from tokenizers_vq.training.recipe import load_recipe
from tokenizers_vq.training.runs import train
from tokenizers_vq.training.state_dicts import pack, unpack
from tokenizers_vq.training.step import TokenizerTask

LECAM = "adversary.regularisers=[{kind: lecam, weight: 0.1, decay: 0.9}]"


def empty(path: Path) -> None:
    path.write_bytes(b"")


def halved(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def gone(path: Path) -> None:
    path.unlink()


def flipped(path: Path) -> None:
    """One bit near the end: of a safetensors file it is in a weight, and the file still opens."""
    content = bytearray(path.read_bytes())
    content[-9] ^= 0x10
    path.write_bytes(content)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """A run of 4 steps with checkpoints at 2 and 4, an average, a discriminator and its regulariser's state."""
    from tests.training.conftest import SMALL

    options = [*SMALL, f"data.path={pictures}", LECAM, "steps=4", "checkpoint_every=2"]
    return run(tmp_path_factory.mktemp("finished") / "run", options)


@pytest.fixture
def task(small: list[str]) -> tuple[TokenizerTask, Any]:
    recipe = load_recipe("vqgan-tiny-64", [*small, LECAM])
    return TokenizerTask(recipe, recipe.model.build()), loop.make_accelerator(recipe, Path(), "cpu")


def checkpoints_of(task: tuple[TokenizerTask, Any], folder: Path, keep: int = 2) -> Checkpoints:
    made, accelerator = task
    return Checkpoints(folder, accelerator, keep, modules=made.modules, optimizers=made.optimizers, state=made.state)


def test_any_damaged_file_of_the_newest_falls_back_to_the_older(
    finished: Path, tmp_path: Path, task: tuple[TokenizerTask, Any], notes: Callable[[], str]
) -> None:
    names = sorted(path.name for path in (finished / "checkpoints" / "4").iterdir())
    assert names == [
        "checkpoint.json",
        *("model.safetensors", "model_1.safetensors", "optimizer.safetensors", "optimizer_1.safetensors"),
        *("state.safetensors", "state_1.safetensors", "state_2.safetensors"),
    ]
    for name in names:
        for damage in (empty, halved, gone, flipped):
            folder = tmp_path / f"{name}-{damage.__name__}"
            shutil.copytree(finished / "checkpoints", folder)
            damage(folder / "4" / name)
            if damage is flipped and name == "checkpoint.json":
                continue  # some bits of it say nothing
            found = checkpoints_of(task, folder)
            assert found.restore() == 2, (name, damage)
            said = notes().splitlines()
            assert len(said) == 2 and str(folder / "4" / name) in said[0] and str(folder / "2") in said[1], said
    whole = checkpoints_of(task, finished / "checkpoints")
    assert whole.restore() == 4 and not notes()


def test_where_no_checkpoint_is_whole_one_line_says_so_and_nothing_begins_anew(
    finished: Path, tmp_path: Path, small: list[str]
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    for step, name in ((2, "optimizer.safetensors"), (4, "checkpoint.json")):
        halved(tmp_path / "run" / "checkpoints" / str(step) / name)
    with pytest.raises(ValueError, match=r"no checkpoint that can be read \(.*4/checkpoint\.json.*; .*2/opt") as no:
        run(tmp_path / "run", [*small, LECAM, "checkpoint_every=2"])
    assert "\n" not in str(no.value)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["2", "4"]


def test_a_run_that_fell_back_ends_as_one_that_never_did(tmp_path: Path, small: list[str]) -> None:
    for keep in (1, 2):
        options = [*small, "checkpoint_every=2", f"keep_checkpoints={keep}"]
        whole = run(tmp_path / f"whole-{keep}" / "run", options)
        parts = tmp_path / f"parts-{keep}" / "run"
        run(parts, [*options, "keep_checkpoints=2"], "steps=6")
        gone(parts / "checkpoints" / "6" / "model.safetensors")
        run(parts, options)
        assert_bitwise(everything(whole), everything(parts))
        kept = sorted(path.name for path in (parts / "checkpoints").iterdir())
        assert kept == (["8"] if keep == 1 else ["6", "8"])
        assert (whole / "model" / "README.md").read_text() == (parts / "model" / "README.md").read_text()
        assert {path.name for path in whole.iterdir()} == {path.name for path in parts.iterdir()}


class Harmful:
    """Makes a folder where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.marker),)


def save_by_accelerate(self: Checkpoints, step: int) -> None:
    """As runs were saved before: pickles of accelerate's."""
    if not self.accelerator._custom_objects:
        self.accelerator.register_for_checkpointing(*self.roles["state"].values())
    self.accelerator.save_state(str(self.folder / str(step)), safe_serialization=True)


def test_older_checkpoints_of_pickles_go_on_bitwise_and_run_nothing(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch, notes: Callable[[], str]
) -> None:
    whole = everything(run(tmp_path / "whole", small))
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_by_accelerate)
        run(tmp_path / "older", small, "steps=6", "checkpoint_every=2")
    newest = tmp_path / "older" / "checkpoints" / "6"
    assert {path.name for path in newest.glob("*.pkl")} >= {"custom_checkpoint_0.pkl", "random_states_0.pkl"}
    for name in ("custom_checkpoint_0.pkl", "optimizer.bin"):
        shutil.copytree(tmp_path / "older", tmp_path / name)
        (tmp_path / name / "checkpoints" / "6" / name).write_bytes(pickle.dumps(Harmful(tmp_path / "ran")))
        assert train(load_recipe("vqgan-tiny-64", [*small]), tmp_path / name, device="cpu") == 8
        assert name in notes() and not (tmp_path / "ran").exists()
    (newest / "random_states_0.pkl").write_bytes(pickle.dumps(Harmful(tmp_path / "ran")))
    for name in ("custom_checkpoint_0.pkl", "optimizer.bin", "scheduler.bin", "scaler.pt", "sampler.bin"):
        path = tmp_path / "custom_checkpoint_0.pkl" / "checkpoints" / "8" / name  # beside our own files
        path.write_bytes(pickle.dumps(Harmful(tmp_path / "ran")))
    run(tmp_path / "custom_checkpoint_0.pkl", small, "steps=9")
    assert_bitwise(whole, everything(run(tmp_path / "older", small)))
    assert not (tmp_path / "ran").exists()


def test_a_whole_checkpoint_of_another_network_is_refused_in_one_line(finished: Path, small: list[str]) -> None:
    for override, part in (("ema=null", "state.ema"), ("model.quantizer.num_codes=16", "modules.tokenizer")):
        recipe = load_recipe("vqgan-tiny-64", [*small, LECAM, override])
        other = TokenizerTask(recipe, recipe.model.build()), loop.make_accelerator(recipe, Path(), "cpu")
        with pytest.raises(ValueError, match=f"{part}.*another version") as no:
            checkpoints_of(other, finished / "checkpoints").restore()
        assert "\n" not in str(no.value)


def test_weights_that_became_nan_are_not_saved(tmp_path: Path, small: list[str]) -> None:
    options = [*small, "ema=null", "checkpoint_every=2"]
    run(tmp_path / "run", options, "steps=2")
    before = {path: path.read_bytes() for path in (tmp_path / "run" / "model").iterdir()}
    # The last step breaks the weights: no loss is left that would show it.
    with pytest.raises(NonFiniteLossError, match=r"step 3: .* more became NaN or infinite; the checkpoint of step 2"):
        run(tmp_path / "run", options, "steps=3", "optimizer.lr=1e39")
    assert before == {path: path.read_bytes() for path in (tmp_path / "run" / "model").iterdir()}
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["2"]
    run(tmp_path / "run", options, "steps=4", "optimizer.lr=1e-4")  # as the line advises
    assert all(torch.isfinite(tensor).all() for tensor in tvq.load(tmp_path / "run").state_dict().values())


def test_a_checkpoint_that_holds_nan_is_passed_over(
    tmp_path: Path, task: tuple[TokenizerTask, Any], notes: Callable[[], str]
) -> None:
    saved = checkpoints_of(task, tmp_path)
    saved.save(1)
    with torch.no_grad():
        next(task[0].tokenizer.parameters()).view(-1)[0] = float("nan")
    assert len(saved.not_finite()) == 1  # the average does not look yet, and a measure that begins as NaN may stay so
    saved.save(2)
    fresh = checkpoints_of((task[0], task[1]), tmp_path)
    with torch.no_grad():
        next(task[0].tokenizer.parameters()).view(-1)[0] = 0.0
    fresh = checkpoints_of(task, tmp_path)
    assert fresh.restore() == 1 and "holds NaN or infinity" in notes()


class Odd(nn.Module):
    """State beyond tensors at the top: a number of its own, and numbers as keys."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[int, Any] = {}

    def get_extra_state(self) -> Any:
        return {"counts": self.counts, "rest": (1, None, [True, 2.5, float("inf")], "text")}

    def set_extra_state(self, state: Any) -> None:
        self.counts = state["counts"]
        assert state["rest"] == (1, None, [True, 2.5, float("inf")], "text")


def test_whatever_a_task_holds_is_kept(tmp_path: Path, task: tuple[TokenizerTask, Any]) -> None:
    odd = Odd()
    odd.counts = {3: torch.arange(6.0).view(2, 3).t(), 5: {"$tensor": 7}}
    bare = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.25)  # no tensors at all
    made = {"modules": {}, "optimizers": {"bare": bare}, "state": {"odd": odd}}
    Checkpoints(tmp_path, task[1], 1, **made).save(7)  # type: ignore[arg-type]
    kept, odd.counts, bare.param_groups[0]["lr"] = odd.counts, {}, 1.0
    assert Checkpoints(tmp_path, task[1], 1, **made).restore() == 7  # type: ignore[arg-type]
    assert odd.counts.keys() == kept.keys() and odd.counts[5] == kept[5] and bare.param_groups[0]["lr"] == 0.25
    assert torch.equal(odd.counts[3], kept[3]) and odd.counts[3].stride() == kept[3].stride()


def test_strides_come_back_and_cannot_ask_for_memory() -> None:
    last = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    one = torch.randn(3, 1, 2, 1).to(memory_format=torch.channels_last)
    tensors, rest = pack({"last": last, "one": one, "gaps": torch.randn(4, 6)[:, ::2], "same": last})
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    back = unpack(json.loads(json.dumps(rest)), tensors)
    assert back["last"].stride() == last.stride() and torch.equal(back["last"], last)
    assert torch.equal(back["one"], one) and back["gaps"].shape == (4, 3)
    for strides in ([10**12, 1, 1, 1], [0, 0, 0, 0], [1], [-1, 1, 1, 1]):
        lying = unpack({"$tensor": "last", "strides": strides}, tensors)
        assert lying.untyped_storage().nbytes() == last.untyped_storage().nbytes() and torch.equal(lying, last)
    with pytest.raises(TypeError, match=r"a\.0: a checkpoint holds tensors and plain values, this is a set"):
        pack({"a": [{1}]})
