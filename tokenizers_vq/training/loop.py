"""The training loop: any task, from any step, on one process or many, with the same result.

Nothing but the step counts: the data order, augmentation and random numbers are functions of (seed, step), so that
resuming needs a checkpoint and one number.
"""

from __future__ import annotations

import io
import random
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from tokenizers_vq import checks, distributed
from tokenizers_vq.config import Config, fields_in_steps
from tokenizers_vq.devices import resolve_device
from tokenizers_vq.training import sharding
from tokenizers_vq.training.checkpoint import Checkpoints
from tokenizers_vq.training.tracking import Log, Progress, Tracker, Watch, check_trackers, tell
from tokenizers_vq.writing import write_atomically


class LoopConfig(Config):
    """What every training run has, whatever it trains."""

    steps: int = Field(default=1000, ge=1)
    """optimizer steps of the whole run"""
    batch_size: int = Field(default=16, ge=1)
    """images a step, over all processes and micro-batches"""
    accumulate: int = Field(default=1, ge=1)
    """micro-batches whose gradients one step adds up"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: networks under autocast; losses and quantizer stay float32"""
    seed: int = Field(default=0, ge=0)
    """of initialisation, data order, augmentation and noise"""
    log_every: int = Field(default=20, ge=1)
    """steps between lines of log.jsonl"""
    checkpoint_every: int = Field(default=500, ge=1)
    """steps between checkpoints"""
    keep_checkpoints: int = Field(default=2, ge=1)
    """how many checkpoints stay"""
    image_every: int = Field(default=500, ge=0)
    """steps between image grids; 0 = none"""
    trackers: tuple[Tracker, ...] = ()
    """tensorboard, wandb"""
    compile: bool = False
    """compile the networks' blocks in place (torch.compile)"""
    gradient_checkpointing: bool = False
    """blocks are computed anew in the backward pass, which takes less memory and a third more time"""

    def logs(self, step: int) -> bool:
        """Whether the figures of this step, 0 = first, are written into the log."""
        return (step + 1) % self.log_every == 0 or step + 1 == self.steps

    @model_validator(mode="after")
    def _shares_to_steps(self) -> Self:
        # Here, once: a schedule stays a function of the step alone, also where a resumed run is given more steps.
        for name, value in fields_in_steps(self, self.steps).items():
            object.__setattr__(self, name, value)
        return self


AROUND = (
    "steps",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "image_every",
    "trackers",
    "compile",
    "gradient_checkpointing",
    "data.workers",
    "warn_usage",
)
"""fields that stand around what is learnt: two runs that differ in them alone can be compared, step for step"""
STEERS = (
    "precision",
    "optimizer.lr",
    "optimizer.clip",
    "adversary.optimizer.lr",
    "adversary.optimizer.clip",
)
"""fields that may change in the middle of a run, and are told where they do"""
MAY_CHANGE = (*AROUND, *STEERS)
"""fields, with all that stands inside them, in which a resumed run may differ from what it began as"""
ADVICE = "Lower the learning rate, clip gradients (optimizer.clip=1.0) or train in fp32, then run again"


class Task(Protocol):
    """What the loop trains: networks, their losses, and what they save."""

    modules: dict[str, nn.Module]
    """prepared (wrapped) in place by the loop"""
    optimizers: dict[str, Any]
    """prepared in place by the loop"""
    state: dict[str, nn.Module]
    """further state of a checkpoint: weight averages, running means"""

    def step(self, batch: dict[str, Any], step: int, accelerator: Accelerator) -> dict[str, Tensor]:
        """One micro-batch: forward, backward, and the optimizers where `accelerator` says that gradients are whole."""

    def after_step(self, step: int) -> list[str]:
        """Called after the optimizers; returns messages for the person."""

    def picture(self) -> Tensor | None:
        """`(3, H, W)` in [-1, 1] for the run's `images/`, or nothing. Asked in the first process, if sharded in all."""

    def save(self, folder: Path, step: int) -> None:
        """Write the trained model into `folder`, each file atomically. Called as `picture` is."""


class NonFiniteLossError(ValueError):
    """A loss or gradient became NaN or infinite; the message names it and the step."""


class Interrupted(Exception):  # noqa: N818 (nothing is wrong: a person or scheduler asked)
    """SIGINT or SIGTERM: the run was saved. `signal` is the number."""

    def __init__(self, number: int, step: int) -> None:
        self.signal, self.step = number, step
        super().__init__(f"{signal.Signals(number).name}: saved at step {step}; the same command resumes from there")


def make_accelerator(config: LoopConfig, out: Path, device: str = "auto") -> Accelerator:
    """The Accelerator of a run on `device` (auto, cpu, cuda, mps). Raises `ValueError` for one that is not there."""
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    check_trackers(config.trackers)
    sharding.take_over()
    AcceleratorState._reset_state()  # it keeps the first precision for good, but a process may train several runs
    return Accelerator(
        mixed_precision={"fp32": "no", "bf16": "bf16"}[config.precision],
        gradient_accumulation_steps=config.accumulate,
        cpu=resolve_device(device).type == "cpu",
        log_with=list(config.trackers) or None,
        project_dir=str(out) if config.trackers else None,
        step_scheduler_with_optimizer=False,
        # Buffers agree by construction (batch norm and codebooks reduce over processes); broadcasting them between
        # the discriminator's two forwards would write over what its backward reads.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


def run(
    task: Task,
    config: LoopConfig,
    accelerator: Accelerator,
    out: Path,
    batches: Callable[[int, int, int], Iterable[dict[str, Any]]],
    progress: Watch | None = None,
) -> int:
    """Train `task` to `config.steps` from the newest checkpoint in `out`; returns the last step.

    `batches(start, rank, world)` yields this process's micro-batches from optimizer step `start` on. `progress` is
    called with (steps done, steps of the run) after every step.

    Raises `NonFiniteLossError` (with the next line of the log at the latest; the last good checkpoint stays),
    `Interrupted` (a checkpoint was written) and `writing.WriteError`. A run that is at `config.steps` already changes
    nothing and says so. Whatever is raised, the iterator of `batches` is closed, and its loader processes end.
    """
    apart = _sharded(task)
    for name, module in task.modules.items():
        task.modules[name] = module if apart else accelerator.prepare(module)
    for name, optimizer in task.optimizers.items():
        task.optimizers[name] = accelerator.prepare(optimizer)
    for module in task.state.values():
        if not sharding.sharded(module):
            module.to(accelerator.device)

    checkpoints = Checkpoints(
        out / "checkpoints",
        accelerator,
        config.keep_checkpoints,
        modules=task.modules,
        optimizers=task.optimizers,
        state=task.state,
    )
    start = checkpoints.restore()
    if start >= config.steps:
        tell(accelerator, f"{out} is at step {start}, steps={config.steps} asks for no more: nothing is changed")
        accelerator.end_training()
        return start
    log = Log(out / "log.jsonl", accelerator, start, config.to_dict())
    stream = iter(batches(start, accelerator.process_index, accelerator.num_processes))
    try:
        shown = Progress(accelerator, start, config.steps, config.batch_size, progress)
        return _steps(task, config, accelerator, out, stream, checkpoints, log, shown)
    finally:
        # Whatever happens: Python, leaving, waits for loader processes that wait for it.
        close = getattr(stream, "close", None)
        if close is not None:
            close()


def _sharded(task: Task) -> bool:
    """Whether the task's modules are in shards. Raises `ValueError` for those that were asked to be, and are not."""
    if sharding.asked() and not all(sharding.sharded(module) for module in task.modules.values()):
        raise ValueError(
            f"FSDP shards priors; a {' and a '.join(task.modules)} trains whole in every process: start it with "
            "`accelerate launch --multi_gpu` (gradient_checkpointing=true and accumulate take less memory)"
        )
    return sharding.asked()


def _steps(
    task: Task,
    config: LoopConfig,
    accelerator: Accelerator,
    out: Path,
    stream: Iterator[dict[str, Any]],
    checkpoints: Checkpoints,
    log: Log,
    progress: Progress,
) -> int:
    step = checkpoints.step
    with _caught_signals() as caught, progress, checks.together() as noted:
        while step < config.steps:
            try:
                _one_step(task, config, accelerator, stream, step, log, progress, noted)
                stop = _agreed(caught, accelerator, config.logs(step))
                due = (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps or stop
                pictured = config.image_every and ((step + 1) % config.image_every == 0 or step + 1 == config.steps)
                if due or pictured:
                    noted.read(everywhere=True)
                step += 1
                if due:
                    _check_weights(checkpoints, step)
            except ValueError as error:
                log.stopped(step + 1, str(error))
                raise
            if pictured:
                _picture(task, accelerator, out / "images" / f"{step:07d}.png", checkpoints.sharded)
            if due:
                # The checkpoint comes last: a run killed before it makes model and picture again, after it has both.
                if accelerator.is_main_process or checkpoints.sharded:
                    _still_there(out)
                    with checks.at_once():
                        task.save(out / "model", step)
                checkpoints.save(step)
            if stop:
                accelerator.end_training()
                raise Interrupted(stop, step)
    accelerator.end_training()
    return step


def _check_weights(checkpoints: Checkpoints, step: int) -> None:
    """Nothing that is NaN or infinite is saved: the run could not go on from it, nor anybody use the model."""
    bad = checkpoints.not_finite()
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        kept = f"the checkpoint of step {checkpoints.step} is kept" if checkpoints.step else "nothing was saved"
        raise NonFiniteLossError(f"step {step}: {bad[0]}{more} became NaN or infinite; {kept}. {ADVICE}")


def _still_there(out: Path) -> None:
    if not out.is_dir():
        raise FileNotFoundError(f"{out} disappeared while the run was training: nothing is written in its place")


def _one_step(
    task: Task,
    config: LoopConfig,
    accelerator: Accelerator,
    stream: Any,
    step: int,
    log: Log,
    progress: Progress,
    noted: checks.Checks,
) -> None:
    collected: list[dict[str, Tensor]] = []
    for micro in range(config.accumulate):
        batch = next(stream)
        progress.skipped(batch.get("broken") or {})
        seed_everything(config.seed, accelerator.process_index, step, micro)
        collected.append(task.step(_moved(batch, accelerator.device), step, accelerator))
    for message in task.after_step(step):
        progress.say(message)
    done = step + 1
    progress.advance(done)
    if config.logs(step):
        noted.read(everywhere=True)  # with the figures, which are waited for
        names = dict.fromkeys(name for part in collected for name in part)
        figures = {n: torch.stack([part[n].float() for part in collected if n in part]).mean() for n in names}
        log.write(done, _mean_over_processes(figures, accelerator.device), progress.rate)
        progress.show(log.latest)


def _moved(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


def _mean_over_processes(figures: dict[str, Tensor], device: torch.device) -> dict[str, float]:
    values = distributed.mean(torch.stack([value.detach().to(device, torch.float32) for value in figures.values()]))
    return dict(zip(figures, values.tolist(), strict=True))


def seed_everything(*parts: int) -> None:
    """Seed torch, NumPy and Python from (seed, rank, step, micro-batch).

    Random numbers depend on where we are, not on how we came: a checkpoint keeps none of their states.
    """
    mixed = 0x9E3779B97F4A7C15
    for part in parts:
        mixed = ((mixed ^ part) * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**63
        mixed ^= mixed >> 29
    torch.manual_seed(mixed)
    np.random.seed(mixed % 2**32)
    random.seed(mixed)


def check_finite(step: int, values: dict[str, Tensor]) -> None:
    """Raises `NonFiniteLossError` for a non-finite value: in a run in every process, once its checks are read."""
    good = torch.stack([torch.isfinite(value.detach()).all() for value in values.values()])

    def refuse() -> None:
        bad = [name for name, flag in zip(values, good.tolist(), strict=True) if not flag]
        names = " and ".join(bad) or "a value of another process"
        raise NonFiniteLossError(f"step {step}: {names} became NaN or infinite; the last checkpoint is kept. {ADVICE}")

    checks.check(good.all(), refuse)


@contextmanager
def _caught_signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM as they come; the handlers that were there before come back afterwards."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if caught:  # asked twice: leave at once, the last checkpoint is whole
            raise KeyboardInterrupt
        caught.append(number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # elsewhere signals belong to whoever owns them
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _agreed(caught: list[int], accelerator: Accelerator, logged: bool) -> int:
    """The signal that any process caught: all of them save and leave at the same step.

    Several on accelerators ask each other where the step is logged, and would have to wait otherwise.
    """
    if accelerator.num_processes == 1:
        return caught[0] if caught else 0
    if accelerator.device.type != "cpu" and not logged:
        return 0
    mine = torch.zeros(65, device=accelerator.device)
    if caught:
        mine[caught[0]] = 1
    hits = torch.nonzero(distributed.sum(mine))
    return int(hits[0]) if len(hits) else 0


def _picture(task: Task, accelerator: Accelerator, path: Path, sharded: bool) -> None:
    if not (accelerator.is_main_process or sharded):
        return
    with checks.at_once():
        picture = task.picture()
    if picture is not None and accelerator.is_main_process:
        from tokenizers_vq import images

        buffer = io.BytesIO()
        images.to_pil(picture).save(buffer, format="PNG")
        _still_there(path.parents[1])
        write_atomically(path, buffer.getvalue())
