"""Runs that stop before their end: signals, errors, full disks, vanished folders, a second run beside."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import tokenizers_vq as tvq
from tests.training.test_runs import assert_bitwise, everything, files, run
from tokenizers_vq.training.loop import Interrupted, NonFiniteLossError
from tokenizers_vq.training.step import TokenizerTask
from tokenizers_vq.writing import WriteError


def test_a_second_run_into_the_same_folder_is_refused_and_changes_nothing(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    after_step, refused = TokenizerTask.after_step, []

    def second(self: TokenizerTask, step: int) -> list[str]:
        before = files(tmp_path / "run")
        with pytest.raises(ValueError, match=r"run is being written by another process: wait until it ends, stop it"):
            run(tmp_path / "run", small, "log_every=1")
        assert before == files(tmp_path / "run")
        refused.append(step)
        return after_step(self, step)

    monkeypatch.setattr(TokenizerTask, "after_step", second)
    run(tmp_path / "run", small, "steps=3")
    assert refused == [0, 1, 2] and not (tmp_path / "run" / ".lock").exists()


def test_what_a_kill_left_is_no_foreign_folder_and_is_cleared(tmp_path: Path, small: list[str]) -> None:
    def leave(*names: str) -> None:
        for name in names:
            (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "run" / name).write_text("half")

    leave(".recipe.yaml.partial", ".lock")  # at the first write of all
    run(tmp_path / "run", small, "steps=1")
    leave(".lock", "checkpoints/.4.partial/model.safetensors", "model/.README.md.partial", "model/.x.a1.partial")
    run(tmp_path / "run", small, "steps=1")  # it is finished, and cleared all the same
    assert not list((tmp_path / "run").rglob(".*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["checkpoint_every=1", "log_every=5"], "disappeared while"),
        (["log_every=1"], r"log\.jsonl cannot be written \(No"),
    ],
)
def test_a_folder_that_vanishes_is_not_written_anew(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.setattr(TokenizerTask, "after_step", lambda self, step: shutil.rmtree(tmp_path / "run") or [])
    with pytest.raises(OSError, match=message):
        run(tmp_path / "run", small, *options)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files")
def test_on_a_full_disk_a_run_ends_in_one_line_and_goes_on_when_there_is_room(tmp_path: Path, small: list[str]) -> None:
    from tests.test_writing import full_disk

    whole = everything(run(tmp_path / "whole", small))
    run(tmp_path / "run", small, "steps=4")
    before = files(tmp_path / "run" / "checkpoints")
    for size, name in ((20_000, "model.safetensors"), (100, "recipe.yaml")):
        with full_disk(size), pytest.raises(WriteError, match=f"{name} cannot be written .*make room") as no:
            run(tmp_path / "run", small)
        assert "\n" not in str(no.value)
        assert before == files(tmp_path / "run" / "checkpoints")
        assert not list((tmp_path / "run").rglob(".*")) and tvq.load(tmp_path / "run")
    assert_bitwise(whole, everything(run(tmp_path / "run", small)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_leaves(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    whole = everything(run(tmp_path / "whole", small))
    after_step = TokenizerTask.after_step

    def interrupted(self: TokenizerTask, step: int) -> list[str]:
        if step == 2:
            os.kill(os.getpid(), number)
        return after_step(self, step)

    handlers = {which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)}
    with monkeypatch.context() as patch:
        patch.setattr(TokenizerTask, "after_step", interrupted)
        with pytest.raises(Interrupted, match="saved at step 3") as stopped:
            run(tmp_path / "run", small)
    assert stopped.value.signal == number
    assert {which: signal.getsignal(which) for which in handlers} == handlers
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["3"]
    assert_bitwise(whole, everything(run(tmp_path / "run", small)))


def test_killed_before_the_last_checkpoint_a_run_still_ends_with_its_model(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenizers_vq.training.checkpoint import Checkpoints

    whole = everything(run(tmp_path / "whole", small))
    save = Checkpoints.save

    def killed(self: Checkpoints, step: int) -> None:
        save(self, step)
        if step == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, "save", killed)
        run(tmp_path / "run", small)
    assert_bitwise(whole, everything(run(tmp_path / "run", small)))


def test_a_signal_to_the_whole_process_group_saves_too(tmp_path: Path, small: list[str]) -> None:
    command = [
        sys.executable,
        "-m",
        "tokenizers_vq",
        "train",
        "vqgan-tiny-64",
        *small,
        "steps=100000",
        "data.workers=1",
    ]
    command += ["checkpoint_every=2", "--out", str(tmp_path / "run"), "--device", "cpu"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "run" / "checkpoints").exists():
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, said.decode()
    assert b"saved at step" in said


def test_a_non_finite_loss_is_named_and_the_last_checkpoint_stays(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenizers_vq.losses.terms import L2

    forward = L2.forward
    monkeypatch.setattr(L2, "forward", lambda self, r: forward(self, r) * (float("nan") if r.step == 6 else 1.0))
    with pytest.raises(NonFiniteLossError, match=r"step 6: l2 .*became NaN"):
        run(tmp_path / "run", small)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["4"]
    assert all(torch.isfinite(tensor).all() for tensor in tvq.load(tmp_path / "run").state_dict().values())


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_error_that_nobody_foresaw_ends_the_run_and_its_loaders(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """The test holds the traceback, and by it the loader: it ends because the run closes it."""
    seen: list[int] = []

    def fail(self: TokenizerTask, step: int) -> list[str]:
        seen.append(len(multiprocessing.active_children()))
        if step == 1:
            raise RuntimeError("out of memory")
        return []

    monkeypatch.setattr(TokenizerTask, "after_step", fail)
    with pytest.raises(RuntimeError, match="out of memory") as raised:
        run(tmp_path / "run", small, f"data.workers={workers}")
    assert seen == [workers, workers]
    assert raised.tb is not None and not multiprocessing.active_children()
    assert not list((tmp_path / "run").glob(".*"))  # the lock is gone too
