"""Checkpoints of a run: complete, written aside and renamed, so that the newest one can always be resumed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from accelerate import Accelerator


class Checkpoints:
    """`checkpoints/N` holds everything after step N: networks, optimizers, weight averages, running means."""

    def __init__(self, folder: Path, accelerator: Accelerator, keep: int) -> None:
        self.folder, self.accelerator, self.keep = folder, accelerator, keep

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, rising."""
        return sorted(int(path.name) for path in self.folder.glob("*") if path.name.isdigit())

    def restore(self) -> int:
        """Load the newest checkpoint; returns its step, 0 where there is none."""
        steps = self.steps()
        if not steps:
            return 0
        self.accelerator.load_state(str(self.folder / str(steps[-1])))
        return steps[-1]

    def save(self, step: int) -> None:
        """Write `checkpoints/<step>`; called by all processes."""
        final, partial = self.folder / str(step), self.folder / f".partial-{step}"
        if self.accelerator.is_main_process:
            for left in self.folder.glob(".partial-*"):
                shutil.rmtree(left)
            partial.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial), safe_serialization=True)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process and not final.exists():
            for path in partial.rglob("*"):
                if path.is_file():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
            partial.rename(final)
            for old in self.steps()[: -self.keep]:
                # Renamed first: a folder half removed must not look like a checkpoint.
                doomed = (self.folder / str(old)).rename(self.folder / f".partial-{old}")
                shutil.rmtree(doomed)
        self.accelerator.wait_for_everyone()
