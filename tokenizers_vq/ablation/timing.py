"""What a row's training step costs: its time over that of another row's, both timed in turn on one machine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenizers_vq.ablation.table import Plan, Row
from tokenizers_vq.data.loading import training_batches
from tokenizers_vq.devices import channels_last
from tokenizers_vq.folders import write_atomically
from tokenizers_vq.training import loop
from tokenizers_vq.training.recipe import Recipe
from tokenizers_vq.training.step import TokenizerTask

FILE = "step_time.json"
STEPS = 16
"""timed steps, one behind the other: a lazy regulariser's whole round at its usual `every`"""
_WARM = 3
DEFINITION = (
    f"time of {STEPS} steps (on a CPU its processor time) with the discriminator at work, over that of the row "
    "{against}, timed in turn"
)


def time_rows(plan: Plan, out: Path, rows: Sequence[Row], device: torch.device, main: bool) -> None:
    """Write `step_time.json` of each of `rows` that has none against the table's row. All processes take part."""
    against = plan.table.time_against
    other = next(row for row in plan.rows if row.name == against)
    batch: dict[str, Any] | None = None
    for row in rows:
        if read(plan, out, row) is not None or not (out / row.name).is_dir():
            continue
        batch = batch or _batch(row.recipe, device)
        own, others = (_steps(recipe, batch, out, device) for recipe in (row.recipe, other.recipe))
        seconds = [0.0, 0.0]
        for turn in range(-_WARM, STEPS):
            for side, step in enumerate((own, others)):
                begin = _now(device)
                step()
                seconds[side] += _now(device) - begin if turn >= 0 else 0.0
        if main:
            found = {"against": against, "ratio": seconds[0] / seconds[1], "seconds": seconds[0] / STEPS}
            write_atomically(out / row.name / FILE, json.dumps(found) + "\n")


def read(plan: Plan, out: Path, row: Row) -> float | None:
    """The row's ratio; None where it was not timed, or against another row."""
    path = out / row.name / FILE
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found["ratio"] if found.get("against") == plan.table.time_against is not None else None


def _batch(recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """The first micro-batch of training."""
    batches = training_batches(
        recipe.data.replace(workers=0),
        image_size=recipe.model.image_size,
        channels=recipe.model.channels,
        batch_size=recipe.batch_size,
        accumulate=recipe.accumulate,
        seed=recipe.seed,
    )
    batch = next(iter(batches))
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def _steps(recipe: Recipe, batch: dict[str, Any], out: Path, device: torch.device) -> Callable[[], object]:
    """Takes the recipe's next step, its discriminator at work from the first."""
    accelerator = loop.make_accelerator(recipe.replace(trackers=()), out, str(device))
    loop.seed_everything(recipe.seed)
    task = TokenizerTask(recipe, channels_last(recipe.model.build().to(accelerator.device)))
    task.modules = {name: accelerator.prepare(module) for name, module in task.modules.items()}
    task.optimizers = {name: accelerator.prepare(optimizer) for name, optimizer in task.optimizers.items()}
    for module in task.state.values():
        module.to(accelerator.device)
    if task.adversary is not None:
        task.adversary.start.started.fill_(0)
    # Rounded up: no step before the warm-up's end, and the first regulariser's round begins with the timing.
    first = -(-max(recipe.steps // 2, task.adversary.start.warmup if task.adversary else 0, 1) // STEPS) * STEPS
    steps = iter(range(first - _WARM, first + STEPS))

    def step() -> None:
        number = next(steps)
        loop.seed_everything(recipe.seed, accelerator.process_index, number)
        task.step(batch, number, accelerator)
        task.after_step(number)

    return step


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.process_time() if device.type == "cpu" else time.perf_counter()
