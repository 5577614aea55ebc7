"""A kill at every point: `python -m tests.kill_points train|prior|encode|convert|export|all [--every 1]`.

A process is killed before one of its calls that change the disk, the same command runs again, and the whole folder is
compared with an undisturbed run's: no file may differ, be missing or be left over. Then the same at the next call.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

CHANGES = ("open", "replace", "rename", "mkdir", "unlink", "rmdir", "fsync", "chmod", "ftruncate")
"""of `os`; `io.open` for writing counts too"""


class Trial(NamedTuple):
    """A command, as a function of the folder that it works in."""

    work: Callable[[Path], object]
    place: Callable[[str], Path]
    """a new folder, prepared"""


def killed_at(point: int, work: Callable[[], object]) -> bool:
    """Do `work` in a forked process that dies before its `point`-th change of the disk; False where it has fewer."""
    child = os.fork()
    if not child:
        code = 1
        try:
            _die_at(point)
            with (
                Path(os.devnull).open("w") as nothing,
                contextlib.redirect_stdout(nothing),
                contextlib.redirect_stderr(nothing),
            ):
                work()
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, 137):
        raise AssertionError(f"point {point}: the command ended with {code}")
    return code == 137


def _die_at(point: int) -> None:
    left, sync = point, os.fsync

    def counted(call: Callable[..., Any], writes: Callable[..., bool]) -> Callable[..., Any]:
        def before(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            if writes(*args, **kwargs):
                left -= 1
                if left == 0:
                    os._exit(137)
            # A kill, unlike a power cut, loses nothing that was not synced.
            return None if call is sync else call(*args, **kwargs)

        return before

    for name in CHANGES:
        writes = (lambda path, flags, *rest, **more: bool(flags & os.O_CREAT)) if name == "open" else _always
        setattr(os, name, counted(getattr(os, name), writes))
    for_writing = lambda file, mode="r", *rest, **more: bool(set(mode) & set("wa+"))  # noqa: E731
    io.open = counted(io.open, for_writing)  # type: ignore[assignment]


def _always(*args: Any, **kwargs: Any) -> bool:
    return True


def points(trial: Trial, every: int = 1) -> int:
    """Kill a trial before each `every`-th change and do it again; returns the number of kills.

    Raises `AssertionError` where what stands in the folder in the end differs from an undisturbed run's.
    """
    wanted = _done(trial, trial.place("whole"))
    point, kills = 1, 0
    while True:
        folder = trial.place(f"point-{point}")
        if not _killed(trial, folder, point):
            return kills
        kills += 1
        found = _done(trial, folder)
        differ = [name for name in {**wanted, **found} if wanted.get(name, b"-") != found.get(name, b"-")]
        assert not differ, f"killed at point {point}, it differs in {differ}"
        point += every


def _killed(trial: Trial, folder: Path, point: int) -> bool:
    return killed_at(point, lambda: trial.work(folder))


def _done(trial: Trial, folder: Path) -> dict[str, bytes | None]:
    assert not _killed(trial, folder, 10**9)
    return _contents(folder)


def _contents(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder, with what it holds; of a log all but how fast the run was."""
    found: dict[str, bytes | None] = {}
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() else None
        if path.name == "log.jsonl" and content is not None:
            lines = [json.loads(line) for line in content.decode().splitlines()]
            content = json.dumps([{**line, "images_per_second": 0} for line in lines]).encode()
        found[str(path.relative_to(folder))] = content
    return found


def train(folder: Path) -> Trial:
    """A run with pictures, an average, a discriminator, and one checkpoint kept."""
    from tests.kills import pictures
    from tests.training.conftest import SMALL
    from tokenizers_vq.training import runs
    from tokenizers_vq.training.recipe import load_recipe

    data = pictures(folder / "pictures", 12)
    options = [*SMALL, f"data.path={data}", "steps=4", "checkpoint_every=2", "image_every=2", "keep_checkpoints=1"]
    recipe = load_recipe("vqgan-tiny-64", options)
    return Trial(lambda place: runs.train(recipe, place / "run", device="cpu"), lambda name: _new(folder / name))


def encode(folder: Path) -> Trial:
    """Twelve images into three shards."""
    from tests.kills import pictures
    from tests.stand_ins import make_tokenizer

    data, model = pictures(folder / "pictures", 12), folder / "model"
    make_tokenizer().save_pretrained(model)
    arguments = ["encode", model, data, "--shards", 3, "--workers", 0, "--device", "cpu", "--precision", "fp32"]
    return Trial(lambda place: _tvq(*arguments, "--out", place / "codes"), lambda name: _new(folder / name))


def prior(folder: Path) -> Trial:
    """A prior's run on the codes of 24 images."""
    from prior.cli import main
    from tests.kills import pictures
    from tests.prior.conftest import SMALL
    from tests.stand_ins import make_tokenizer

    data, model, codes = pictures(folder / "pictures", 24), folder / "model", folder / "codes"
    make_tokenizer().save_pretrained(model)
    _tvq("encode", model, data, "--out", codes, "--device", "cpu")
    options = [*SMALL, "steps=4", "checkpoint_every=2", "keep_checkpoints=1", "--device", "cpu"]
    return Trial(
        lambda place: _call(main, "train", "gpt-tiny", codes, *options, "--out", place / "run"),
        lambda name: _new(folder / name),
    )


def export(folder: Path) -> Trial:
    """An export to diffusers over an earlier one."""
    import tokenizers_vq as tvq

    narrow = [f"{half}.{field}" for half in ("encoder", "decoder") for field in ("width=32", "multipliers=[1, 1]")]
    tokenizer = tvq.create("vqgan-tiny-64", [*narrow, "encoder.blocks=1", "decoder.blocks=2", "image_size=16"])
    tokenizer.save_pretrained(folder / "model")

    def place(name: str) -> Path:
        (_new(folder / name) / "out").mkdir()
        (folder / name / "out" / "config.json").write_text("earlier")
        return folder / name

    return Trial(lambda at: _tvq("export", folder / "model", "--to", "diffusers", "--out", at / "out"), place)


def convert(folder: Path) -> Trial:
    """A conversion of recorded weights over an earlier one."""
    from safetensors.torch import load_file

    from tests.conftest import shared
    from tokenizers_vq.conversion.write import RECORD

    recorded = shared("golden/taming/vq-f4-ch32")
    torch.save({"state_dict": load_file(recorded / "weights.safetensors")}, folder / "last.ckpt")
    arguments = ["convert", "taming", folder / "last.ckpt", "--config", recorded / "config.yaml"]

    def place(name: str) -> Path:
        (_new(folder / name) / "out").mkdir()
        (folder / name / "out" / RECORD).write_text("{}")
        return folder / name

    return Trial(lambda at: _tvq(*arguments, "--out", at / "out"), place)


TRIALS: dict[str, Callable[[Path], Trial]] = {
    "train": train,
    "prior": prior,
    "encode": encode,
    "convert": convert,
    "export": export,
}


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _tvq(*arguments: object) -> None:
    from tokenizers_vq.cli import main

    _call(main, *arguments)


def _call(main: Callable[[list[str]], None], *arguments: object) -> None:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        if stop.code:
            raise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=[*TRIALS, "all"])
    parser.add_argument("--every", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in TRIALS if options.what == "all" else [options.what]:
        with tempfile.TemporaryDirectory() as folder:
            kills = points(TRIALS[name](Path(folder)), options.every)
        print(f"{name}: killed at {kills} points, each time the same folder in the end", flush=True)


if __name__ == "__main__":
    sys.exit(main())
