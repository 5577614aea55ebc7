"""Writing to disk: nothing half-written is ever met, nothing saved is lost, and one process at a time owns a folder.

What is being written lies beside its place as `.NAME.partial`. A kill leaves it there, and the next writer of the same
file or folder takes it away.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
"""what a system says when there is no room"""
_CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_TAKEN = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}


class WriteError(OSError):
    """A file that could not be written: its one line names it. What was saved before stays."""

    def __str__(self) -> str:
        advice = "then run the same command again"
        if self.errno in FULL:
            advice = f"make room, {advice}"
        elif self.errno in _CLOSED:
            advice = "make its folder writable, or give another --out"
        elif self.errno in (errno.EEXIST, errno.ENOTDIR):
            advice = "a file stands in its way; move it, or give another --out"
        else:
            advice = f"put its folder right, {advice}"
        return f"{self.filename} cannot be written ({self.strerror}): {advice}; what was saved before stays"


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error of writing inside the block becomes a `WriteError` that names `path`."""
    try:
        yield
    except WriteError:
        raise
    except (OSError, SafetensorError) as error:
        found = re.search(r"\((?:os error|errno) (\d+)\)", str(error))  # Rust and Arrow say it in words alone
        number = int(found[1]) if found else getattr(error, "errno", None)
        reason = os.strerror(number) if number else " ".join(str(error).split())
        raise WriteError(number or errno.EIO, reason, str(path)) from None


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file beside its place, then move it there: a reader sees the old file or the new one, never half.

    Raises `WriteError`, which names the file and what to do; the old file stays.
    """
    made = not path.parent.is_dir()
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = _beside(path)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
                if os.name == "posix":  # while it is locked; Windows moves no open file
                    aside.chmod(0o644)
                    aside.replace(path)
            if os.name != "posix":
                aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            if made:
                with suppress(OSError):
                    path.parent.rmdir()
            raise


def _beside(path: Path) -> tuple[int, Path]:
    """A new file beside `path`: `.NAME.partial`, unless another process is writing that one now."""
    aside = path.with_name(f".{path.name}.partial")
    if os.name == "posix":
        with suppress(OSError):
            handle = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            if _take(handle) and _is_at(handle, aside):
                os.ftruncate(handle, 0)  # a killed process may have left it
                return handle, aside
            os.close(handle)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    return handle, Path(name)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file at `path`, written in place. Raises `WriteError`."""
    with naming(path):
        save_file(tensors, path, metadata={"format": "pt"})


def sync(folder: Path) -> None:
    """Hand every file of a folder to the disk. Raises `WriteError`."""
    for path in folder.rglob("*"):
        if path.is_file():
            with naming(path), path.open("rb+") as file:  # Windows syncs nothing that is open for reading alone
                os.fsync(file.fileno())


def left_behind(path: Path) -> bool:
    """Whether `path` is what a killed writer leaves: `.NAME.partial`, or a lock."""
    return path.name.startswith(".") and (path.name.endswith((".partial", ".lock")))


def holds_anything(folder: Path) -> bool:
    """Whether a folder is there and holds more than what a killed writer left."""
    return folder.is_dir() and any(not left_behind(path) for path in folder.iterdir())


def clear(folder: Path) -> None:
    """Take away what killed writers left half-written in `folder`, at any depth; call it under the folder's `lock`."""
    for path in list(folder.rglob(".*.partial")):
        remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """An empty folder beside `out` that takes its place, at once and whole, when the block ends without an error.

    After an error `out` is as it was. A process killed between the two renames leaves it beside its place, from where
    the next call for the same `out` brings it back first. Raises `ValueError` where another process is writing `out`,
    and `WriteError`.
    """
    named, out = out, out.absolute()
    new, old = (out.with_name(f".{out.name}.{part}.partial") for part in ("new", "old"))
    with lock(out.parent, f".{out.name}.lock", named):
        if old.exists() and not out.exists():
            old.replace(out)
        remove(old)
        remove(new)
        try:
            with naming(named):
                new.mkdir()
            try:
                yield new
            except OSError as error:
                raise _as_of(error, new, named) from None
            with naming(named):
                sync(new)
                if out.exists():
                    out.replace(old)
                new.replace(out)
        except BaseException:
            if old.exists() and not out.exists():
                old.replace(out)
            raise
        finally:
            shutil.rmtree(new, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def _as_of(error: OSError, new: Path, out: Path) -> OSError:
    """An error of writing in `new`, named after the place that it was meant for; any other as it is."""
    path = Path(error.filename or new)
    if not path.is_relative_to(new) or not (isinstance(error, WriteError) or error.errno in FULL):
        return error
    return WriteError(error.errno, error.strerror, str(out / path.relative_to(new)))


_held: set[int] = set()
"""handles of the locks that this process holds"""


def _let_go() -> None:
    """In a child: it must not keep the lock of a parent that was killed."""
    for handle in _held:
        os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextmanager
def lock(folder: Path, name: str = ".lock", what: Path | None = None) -> Iterator[None]:
    """`folder`, made where it is absent, for this process alone until the block ends.

    Raises `ValueError` where another process holds it; the line names `what`, by default the folder. The system lets
    go of the lock of a process that is killed. A file system without locks goes without.
    """
    path, made = folder / name, not folder.is_dir()
    with naming(what or folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = _locked(path)
    if handle is None:
        raise ValueError(
            f"{what or folder} is being written by another process: wait until it ends, stop it, or give another --out"
        )
    _held.add(handle)
    try:
        yield
    finally:
        if handle in _held:  # not in a forked child, which has let go of it
            with suppress(OSError):
                if os.name == "posix":
                    path.unlink(missing_ok=True)  # while it is held: whoever opened it meanwhile sees that it is gone
            _held.discard(handle)
            os.close(handle)
            with suppress(OSError):
                if os.name != "posix":
                    path.unlink(missing_ok=True)  # Windows removes no open file
                if made:
                    folder.rmdir()  # nothing came of it


def _locked(path: Path) -> int | None:
    """A handle of `path` that no other process has locked; None where one has."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        try:
            if _take(handle) is False:
                os.close(handle)
                return None
            if _is_at(handle, path):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its holder took it away while we waited: begin again


def _take(handle: int) -> bool | None:
    """Lock an open file; False where another holds it, None where the file system has no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
