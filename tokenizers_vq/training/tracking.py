"""What a run tells: log.jsonl, accelerate's trackers, the log of Python, and for a person at a terminal a bar."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text
from typing_extensions import Self

from tokenizers_vq.text import printable
from tokenizers_vq.writing import FULL, WriteError, naming, write_atomically

Tracker = Literal["tensorboard", "wandb"]
PROJECT = "tokenizers-vq"
Watch = Callable[[int, int], None]
"""called with (steps done, steps of the run) after every step"""
_shown: ContextVar[bool] = ContextVar("shown", default=False)
logger = logging.getLogger(__name__)


@contextmanager
def shown() -> Iterator[None]:
    """Inside the block runs print their progress on stdout; elsewhere it goes to the logger of this module."""
    before = _shown.set(True)
    try:
        yield
    finally:
        _shown.reset(before)


def tell(accelerator: Accelerator, message: str) -> None:
    """Log a message for the person, in the main process alone."""
    if accelerator.is_main_process:
        logger.info("%s", message)


def check_trackers(trackers: Sequence[Tracker]) -> None:
    """Raises `ValueError` for a tracker whose package is absent, where accelerate would pass over it in silence."""
    available = {str(tracker) for tracker in get_available_trackers()}
    for name in trackers:
        if name not in available:
            raise ValueError(f"trackers: {name} is not installed; pip install {name}, or take it out of `trackers`")


class Log:
    """JSON lines, one a logged step; lines after the resumed checkpoint are dropped, since they come again."""

    def __init__(self, path: Path, accelerator: Accelerator, start: int, config: Mapping[str, Any]) -> None:
        self.path, self.accelerator = path, accelerator
        self.latest: dict[str, float] = {}
        if accelerator.is_main_process:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = [line for line in _whole_lines(path) if line["step"] <= start]
            if path.exists():
                write_atomically(path, "".join(f"{json.dumps(line)}\n" for line in kept))
        if accelerator.log_with:
            run = path.parent.resolve()
            accelerator.init_trackers(
                PROJECT, flat(config), {"wandb": {"name": run.name, "dir": str(run), "group": run.name}}
            )

    def write(self, step: int, figures: dict[str, float], rate: float) -> None:
        """Append one line, and hand the figures to the trackers."""
        self.latest = {"step": step, **figures, "images_per_second": rate}
        if self.accelerator.is_main_process:
            self._append(self.latest)
        if self.accelerator.log_with:
            try:
                self.accelerator.log({**figures, "images_per_second": rate}, step=step)
            except OSError as error:
                if error.errno not in FULL:  # a tracker's network is not the disk
                    raise
                raise WriteError(error.errno, error.strerror, str(self.path.parent / PROJECT)) from None

    def stopped(self, step: int, reason: str) -> None:
        """Append why the run ended in the midst of a step; a resume, which begins before it, drops the line."""
        if self.accelerator.is_main_process:
            with suppress(WriteError):  # the reason is raised; a full disk must not hide it
                self._append({"step": step, "stopped": reason})

    def _append(self, line: Mapping[str, Any]) -> None:
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def flat(config: Mapping[str, Any] | list[Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Plain nested settings as `a.b.0: value`, which every tracker takes."""
    items = config.items() if isinstance(config, Mapping) else enumerate(config)
    found: dict[str, bool | int | float | str] = {}
    for name, value in items:
        if isinstance(value, (Mapping, list)):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return found


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """Lines that say a step; a kill or a full disk can leave the last one half written."""
    lines = []
    if path.exists():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
    return lines


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log.jsonl. Raises `FileNotFoundError` where there is none."""
    if not path.is_file():
        raise FileNotFoundError(f"no log at {path}: it is not a run, or has not logged yet")
    return _whole_lines(path)


class _Bar(Bar):
    """A bar, and the newest figures in a line of their own: beside it they would push it out of a narrow terminal."""

    figures = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        if self.figures:
            yield Text(self.figures, no_wrap=True, overflow="ellipsis")


class Progress:
    """Inside `shown` a bar on a terminal, else a line a logged step; only the main process speaks."""

    def __init__(
        self, accelerator: Accelerator, start: int, steps: int, batch_size: int, watch: Watch | None = None
    ) -> None:
        self.speaks, self.shown, self.watch = accelerator.is_main_process, _shown.get(), watch
        self.console = Console(quiet=not (self.speaks and self.shown), highlight=False)
        self.start, self.steps, self.batch_size = start, steps, batch_size
        self.began, self.done = time.perf_counter(), start
        self.broken: set[str] = set()
        self.bar = _Bar(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[rate]:.1f} images/s, left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (self.shown and self.console.is_terminal),
        )
        self.task = self.bar.add_task("", total=steps, completed=start, rate=0.0)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    @property
    def rate(self) -> float:
        """Images a second since the start or resume."""
        return (self.done - self.start) * self.batch_size / max(time.perf_counter() - self.began, 1e-9)

    def advance(self, done: int) -> None:
        """Note a finished step."""
        self.done = done
        self.bar.update(self.task, completed=done, rate=self.rate)
        if self.watch is not None:
            self.watch(done, self.steps)

    def show(self, figures: dict[str, float]) -> None:
        """Show the newest figures."""
        shown = {name: f"{value:.4g}" for name, value in figures.items() if "/" not in name and name != "step"}
        self.bar.figures = "  ".join(f"{name} {text}" for name, text in shown.items() if name != "images_per_second")
        if not (self.shown and self.console.is_terminal):
            left = (self.steps - self.done) * self.batch_size / max(self.rate, 1e-9)
            said = "  ".join(f"{name} {text}" for name, text in shown.items())
            self.say(f"step {self.done}/{self.steps}  {said}  left {left / 60:.1f} min")

    def skipped(self, broken: Mapping[str, str]) -> None:
        """Name images that could not be read, each once, when they are met."""
        for name in broken:
            if name not in self.broken:
                self.broken.add(name)
                self.say(f"skipped {name}: {broken[name]}")

    def say(self, message: str) -> None:
        """A line for the person, in which a file's name is only text: no markup, no escape codes."""
        if self.shown:
            self.console.print(printable(message), soft_wrap=True, markup=False)
        elif self.speaks:
            logger.info("%s", message)
