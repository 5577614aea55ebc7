"""Writing: whole or not at all, on a full disk too; one process at a time; a kill at any point leaves nothing."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests import kill_points
from tokenizers_vq import writing
from tokenizers_vq.writing import WriteError, lock, replacing, write_atomically, write_tensors

posix = pytest.mark.skipif(os.name != "posix", reason="forks")


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes: the system refuses, as it does on a full disk."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def in_child(work: Callable[[], object]) -> int:
    """The exit code of a forked process that does `work`: 0, or 1 after a `ValueError`, 2 after another error."""
    child = os.fork()
    if not child:
        code = 0
        try:
            work()
        except ValueError:
            code = 1
        except BaseException:
            code = 2
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@posix
def test_on_a_full_disk_the_file_is_named_the_old_one_stays_and_nothing_else_does(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    with full_disk(1000), pytest.raises(WriteError, match=r"a\.json cannot be written \(File too large\): make") as no:
        write_atomically(path, "x" * 5000)
    assert no.value.errno == errno.EFBIG and "\n" not in str(no.value)
    assert path.read_text() == "old" and names(tmp_path) == ["a.json"]
    tensors = tmp_path / "b.safetensors"
    with full_disk(1000), pytest.raises(WriteError, match=r"b\.safetensors cannot be written \(File too large\)"):
        write_tensors(tensors, {"x": torch.zeros(5000)})
    for write in (lambda path: path.write_text("y" * 5000), lambda path: write_atomically(path, "y" * 5000)):
        named = r"/out(/c\.txt)? cannot be written \(File too large"
        with full_disk(1000), pytest.raises(WriteError, match=named), replacing(tmp_path / "out") as new:
            write(new / "c.txt")
    assert set(names(tmp_path)) <= {"a.json", "b.safetensors"}  # some versions of safetensors write aside


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file" / "a.json", tmp_path / "file" / "sub" / "a.json"):
        with pytest.raises(WriteError, match="a file stands in its way"):
            write_atomically(path, "x")
    for work in (lambda: lock(tmp_path / "file"), lambda: replacing(tmp_path / "file" / "out")):
        with pytest.raises(WriteError, match=r"(file|out) cannot be written"), work():
            pass
    assert (tmp_path / "file").read_text() == "mine"


@posix
def test_what_a_killed_writer_left_is_taken_over_but_no_file_that_is_being_written(tmp_path: Path) -> None:
    path, aside = tmp_path / "a.json", tmp_path / ".a.json.partial"
    aside.write_text("half of a longer fi")
    write_atomically(path, "whole")
    assert path.read_text() == "whole" and names(tmp_path) == ["a.json"]
    handle, _ = writing._beside(path)  # another is at it
    write_atomically(path, "again")
    assert path.read_text() == "again" and aside.exists()
    os.close(handle)
    aside.unlink()
    (tmp_path / "other").write_text("precious")
    aside.symlink_to(tmp_path / "other")
    write_atomically(path, "third")
    assert path.read_text() == "third" and (tmp_path / "other").read_text() == "precious"


@posix
def test_a_folder_is_one_processs_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"

    def take() -> None:
        with lock(folder):
            pass

    with lock(folder):
        assert in_child(take) == 1
        with pytest.raises(ValueError, match="run is being written by another process: wait"), lock(folder):
            pass  # nor a second time in this process
        (folder / "a").touch()
    assert names(folder) == ["a"] and in_child(take) == 0
    with lock(tmp_path / "empty"):
        pass
    assert not (tmp_path / "empty").exists()  # nothing came of it


@posix
def test_a_killed_process_leaves_no_lock_though_its_loaders_live_on(tmp_path: Path) -> None:
    ready, tell = os.pipe()
    holder = os.fork()
    if not holder:
        with lock(tmp_path):
            loader = os.fork()
            if not loader:
                time.sleep(60)
                os._exit(0)
            os.write(tell, loader.to_bytes(4, "big"))
            time.sleep(60)
        os._exit(0)
    loader = int.from_bytes(os.read(ready, 4), "big")
    try:
        with pytest.raises(ValueError, match="another process"), lock(tmp_path):
            pass
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        assert (tmp_path / ".lock").exists()
        os.kill(loader, 0)  # it lives
        with lock(tmp_path):
            pass
        assert not names(tmp_path)
    finally:
        os.kill(loader, signal.SIGKILL)


def test_training_priors_and_tables_take_the_lock_before_all_else(tmp_path: Path) -> None:
    from prior import training as prior_training
    from tokenizers_vq.ablation import run
    from tokenizers_vq.training import runs

    for command in (runs.train, prior_training.train, run.run_table):
        with lock(tmp_path / "out"), pytest.raises(ValueError, match="out is being written by another process"):
            command(None, tmp_path / "out")  # type: ignore[operator]
        assert not (tmp_path / "out").exists()


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for text in ("first", "second"):
        with replacing(out) as new:
            (new / "a").write_text(text)
        assert (out / "a").read_text() == text
    with pytest.raises(KeyError), replacing(out) as new:
        (new / "a").write_text("third")
        raise KeyError
    with pytest.raises(FileNotFoundError, match="input"), replacing(out) as new:
        (tmp_path / "input").read_text()  # an error of reading stays what it is
    with replacing(out) as new:
        with pytest.raises(ValueError, match="out is being written by another process"), replacing(out):
            pass
        (new / "a").write_text("fourth")
    assert (out / "a").read_text() == "fourth" and names(tmp_path) == ["out"]


@posix
def test_a_kill_at_any_point_of_writing_leaves_nothing_once_it_is_done_again(tmp_path: Path) -> None:
    def work(folder: Path) -> None:
        with lock(folder / "run"):
            writing.clear(folder / "run")
            assert writing.holds_anything(folder / "run") in (False, (folder / "run" / "a.json").exists())
            write_atomically(folder / "run" / "a.json", "whole")
        out = folder / "out"
        assert {path.name for path in out.iterdir()} == {"b"} if out.exists() else not out.exists()
        with replacing(out) as new:
            assert (out / "b").read_text() in ("first", "second")  # the earlier one is there, or there again
            (new / "b").write_text("second")

    def place(name: str) -> Path:
        (tmp_path / name / "out").mkdir(parents=True)
        (tmp_path / name / "out" / "b").write_text("first")
        return tmp_path / name

    assert kill_points.points(kill_points.Trial(work, place)) >= 15


@posix
def test_a_run_killed_at_any_point_leaves_what_an_undisturbed_one_does(tmp_path: Path) -> None:
    """A few of the points; all of them, and other commands, by `python -m tests.kill_points all`."""
    torch.set_num_threads(1)
    assert kill_points.points(kill_points.train(tmp_path), every=53) >= 2
