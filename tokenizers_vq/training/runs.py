"""A tokenizer's run: a folder that trains, stops, resumes, and is a model all along."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
import yaml
from torch import Tensor

from tokenizers_vq.config import ConfigError, parse, read_yaml
from tokenizers_vq.data import identity
from tokenizers_vq.data.batches import Batches
from tokenizers_vq.data.loading import evaluation_batches, training_batches
from tokenizers_vq.data.sources import Stream, open_source, open_stream
from tokenizers_vq.devices import channels_last, processes
from tokenizers_vq.discriminators import saved
from tokenizers_vq.folders import read_config
from tokenizers_vq.models import find, load
from tokenizers_vq.quantizers.base import training_buffers
from tokenizers_vq.text import parse_json
from tokenizers_vq.tokenizer import Tokenizer
from tokenizers_vq.training import loop
from tokenizers_vq.training.checkpoint import saved_steps
from tokenizers_vq.training.health import before_the_start
from tokenizers_vq.training.recipe import Recipe
from tokenizers_vq.training.step import TokenizerTask
from tokenizers_vq.training.tracking import Watch, read_log, tell
from tokenizers_vq.writing import clear, holds_anything, left_behind, lock, remove, write_atomically

C = TypeVar("C")
P = ParamSpec("P")
R = TypeVar("R")


class LostProcessError(OSError):
    """One of several processes that train together is gone."""


def _left_alone(error: RuntimeError) -> bool:
    """Whether an error is that of a collective whose other side is gone; gloo's have no class of their own."""
    if processes().world == 1:
        return False
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error) or "by peer" in str(error)


def alone(command: Callable[Concatenate[C, Path, P], R]) -> Callable[Concatenate[C, Path, P], R]:
    """`command(what, out, ...)` with the folder `out` for itself: a second one into it is refused by a `ValueError`.

    A run that could not begin (its data are not there, say) leaves no folder that was not there before. Where one of
    several processes dies, the others raise `LostProcessError`.
    """

    @wraps(command)
    def locked(what: C, out: Path, *args: P.args, **kwargs: P.kwargs) -> R:
        first, new = processes().rank == 0, not out.exists()
        try:
            with lock(out) if first else nullcontext():
                return command(what, out, *args, **kwargs)
        except RuntimeError as error:
            if not _left_alone(error):
                raise
            steps = saved_steps(out / "checkpoints")
            kept = f"the checkpoint of step {steps[-1]} is kept" if steps else "nothing was saved yet"
            raise LostProcessError(
                f"another process of this run has ended or cannot be reached; {kept}: see what it says, then start all "
                "of them with the same command"
            ) from None
        except (ValueError, OSError):
            if first and new:
                _take_back(out)
            raise

    return locked


def _take_back(out: Path) -> None:
    """Remove a folder that holds nothing but what a run writes before it begins."""
    if out.is_dir() and {path.name for path in out.iterdir() if not left_behind(path)} <= {"recipe.yaml", "data.json"}:
        remove(out)


@alone
def train(
    recipe: Recipe,
    out: Path,
    *,
    device: str = "auto",
    init_from: str | Path | None = None,
    progress: Watch | None = None,
) -> int:
    """Train by `recipe` into the folder `out`, going on where it holds a run; returns the last step.

    `init_from`: a model whose weights a new run begins with, its discriminator's too where it lies beside and fits.
    `progress` is called with (steps done, steps of the run) after every step. Raises `ValueError` where `out` holds a
    run of another recipe (the fields are named) or on other data, or what `loop.run` raises.
    """
    accelerator = loop.make_accelerator(recipe, out, device)
    say = partial(tell, accelerator)
    with accelerator.main_process_first():
        changed = claim(recipe, out, write=accelerator.is_main_process)
    if changed:
        say(changed)
    loop.seed_everything(recipe.seed)
    tokenizer = recipe.model.build()
    if init_from is not None and has_checkpoint(out):
        say(f"{out} resumes from its checkpoint: --init-from {init_from} is for a new run")
    elif init_from is not None:
        _fill(tokenizer, init_from, say)
    elif recipe.train != "all" and not has_checkpoint(out):
        raise ValueError(f"train={recipe.train} keeps what was learnt before: give --init-from MODEL")
    tokenizer = channels_last(tokenizer.to(accelerator.device))
    say(f"training on {accelerator.device}, {recipe.precision}; the run is {out}")
    for problem in before_the_start(recipe):
        say(problem)
    task = TokenizerTask(
        recipe, tokenizer, _examples(recipe) if recipe.image_every else None, partial(_card, recipe, out)
    )
    if init_from is not None and not has_checkpoint(out):
        _fill_discriminator(task, init_from, say)

    def batches(start: int, rank: int, world: int) -> Batches:
        found = training_batches(
            recipe.data,
            image_size=recipe.model.image_size,
            channels=recipe.model.channels,
            batch_size=recipe.batch_size,
            accumulate=recipe.accumulate,
            seed=recipe.seed,
            start=start,
            world=world,
            rank=rank,
            raw=True,
        )
        say(f"reading {found.about.description}")
        size = None if found.source is None else len(found.source)
        task.told = None if found.source is None else found.source.told()
        with accelerator.main_process_first():
            claim_data(out, size, recipe.data.path, data=found, write=accelerator.is_main_process)
        return found

    return loop.run(task, recipe, accelerator, out, batches, progress)


def claim(
    recipe: loop.LoopConfig, out: Path, *, write: bool = True, may_change: Sequence[str] = loop.MAY_CHANGE
) -> str | None:
    """Write `recipe.yaml` into a new run (in one process), and clear what a killed command left half-written.

    Gives a line for the person where a run goes on with other values of `loop.STEERS`.
    Raises `ValueError` where another recipe's run is there: one that differs in more than the fields `may_change` and
    what stands inside them. A run without a checkpoint has nothing to lose and takes any recipe, say one whose data
    path is now spelt right. Of a run that is at the recipe's last step already, `recipe.yaml` stays as it is.
    """
    path = out / "recipe.yaml"
    wanted = recipe.to_dict()
    steps, changed = saved_steps(out / "checkpoints"), None
    if path.exists() and steps:
        kept = as_now(recipe, path)
        found = differences(kept, wanted)
        differing = [name for name in found if not among(name, may_change)]
        if "data.path" in differing and isinstance(recipe, Recipe):
            if not _same_place(kept, wanted):
                _check_moved(recipe, kept["data"].get("path"), out)
            differing.remove("data.path")
        if differing:
            raise ValueError(
                f"{out} holds a run of another recipe, which differs in {_listed(differing, kept, wanted)}: "
                f"{_keep(differing, kept, wanted)}give "
                f"another --out, or the recipe it began with, {path}{_begin_from(recipe, out)}"
            )
        learnt = [name for name in found if among(name, loop.STEERS)]
        if steps[-1] < recipe.steps and learnt:
            changed = f"from step {steps[-1]} on {out} differs from its recipe in {_listed(learnt, kept, wanted)}"
    elif not path.exists() and holds_anything(out):
        raise ValueError(f"{out} is not empty and holds no run: give another --out")
    if write:
        clear(out)
        if not (path.exists() and steps and steps[-1] >= recipe.steps):
            write_atomically(path, yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True))
    return changed


def among(name: str, fields: Sequence[str]) -> bool:
    """Whether a dotted name is one of `fields`, or stands inside one."""
    return any(name == field or name.startswith(f"{field}.") for field in fields)


def _same_place(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether two recipes mean one folder, written in two ways."""
    first, second = (Path(str(plain["data"].get("path"))).expanduser() for plain in (before, after))
    return first.exists() and second.exists() and first.samefile(second)


def _listed(names: Sequence[str], before: dict[str, Any], after: dict[str, Any]) -> str:
    """The fields that differ, a few of them with what they were and what they are asked to be."""
    shown = [f"{name} ({_at(before, name)}, now {_at(after, name)})" for name in names[:3]]
    return ", ".join([*shown, *names[3:8], *(["..."] if len(names) > 8 else [])])


def _keep(names: Sequence[str], before: dict[str, Any], after: dict[str, Any]) -> str:
    """The overrides with which a run goes on for other steps: these stretch every span that is a share of the run."""
    if before.get("steps") == after.get("steps") or len(names) > 3:
        return ""
    return f"to resume it, add {' '.join(f'{name}={_at(before, name)}' for name in names)}; else "


def _at(plain: Any, name: str) -> Any:
    for part in name.split("."):
        plain = plain[int(part)] if isinstance(plain, list) else (plain or {}).get(part)
    return plain if not isinstance(plain, (dict, list)) or len(str(plain)) < 40 else "..."


def _begin_from(recipe: loop.LoopConfig, out: Path) -> str:
    """The remedy of a tokenizer's run; a prior begins from nothing."""
    return f" (--init-from {out} --out ANOTHER begins a new run with its weights)" if isinstance(recipe, Recipe) else ""


def as_now(recipe: loop.LoopConfig, path: Path) -> dict[str, Any]:
    """The kept recipe, with fields that are younger than it at their default."""
    kept = read_yaml(path)
    try:
        return parse(type(recipe), kept).to_dict()
    except ConfigError:
        return kept


def has_checkpoint(out: Path) -> bool:
    """Whether the run `out` has anything to resume from."""
    return bool(saved_steps(out / "checkpoints"))


def claim_data(out: Path, size: int | None, what: str, *, data: Batches | None = None, write: bool = True) -> None:
    """Keep beside the recipe what a run is trained on: how much (None: a stream, which nobody counts), and which files.

    Raises `ValueError` where a run that has checkpoints began with another amount, or `data` with other files: the
    order of training depends on them, so that going on would show some images twice and others never.
    """
    path = out / "data.json"
    record = {} if data is None else data.record()
    if path.exists() and has_checkpoint(out):
        before = kept_record(path)
        remedy = "restore them, or give another --out (--init-from begins with this run's weights)"
        if before["size"] != size:
            raise ValueError(f"{what} holds {size} images, the run {out} began with {before['size']}: {remedy}")
        if data is not None and "blocks" in before and (other := identity.changed(before, record, data.files())):
            raise ValueError(f"{what} holds other images than the run {out} began with: {other}: {remedy}")
    if write:
        # First the data by name, split:count:folder, so that a person reads at once what a run was trained on.
        named = {f"{record['split'] or 'all'}:{size}:{record['folder']}": record.pop("source")} if record else {}
        write_atomically(path, json.dumps({**named, "size": size, **record}) + "\n")


def _check_moved(recipe: Recipe, began: str | None, out: Path) -> None:
    """Raises `ValueError` where `data.path` does not hold the files that the run began with, at another path."""
    path, data = out / "data.json", recipe.data
    if not path.exists() or "blocks" not in kept_record(path):
        raise ValueError(
            f"the run {out} keeps no record of its images, so it cannot be checked that {data.path} holds the same "
            f"ones: give data.path={began}, which it began with"
        )
    opened = open_stream(data) if data.streaming else open_source(data)
    size = None if isinstance(opened, Stream) else len(opened)
    claim_data(out, size, data.path, data=Batches(list, data, opened), write=False)


def kept_record(path: Path) -> dict[str, Any]:
    """What `data.json` says. Raises `ValueError`, which names it, where it is damaged."""
    try:
        record = parse_json(path.read_text(encoding="utf-8"))
        if record["size"] is not None and not isinstance(record["size"], int):
            raise ValueError(f"size is {record['size']!r}")
        if "blocks" in record and not (isinstance(record["blocks"], list) and {"files", "classes"} <= record.keys()):
            raise ValueError("its record of files is incomplete")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {error}): restore it, or remove it to continue "
            "with the data as they are"
        ) from None
    return record


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    """Dotted names of the fields in which two plain configs differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = [*before, *(name for name in after if name not in before)]
        return [
            found
            for name in names
            for found in differences(before.get(name), after.get(name), f"{where}.{name}" if where else str(name))
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [
            found
            for i, (b, a) in enumerate(zip(before, after, strict=True))
            for found in differences(b, a, f"{where}.{i}")
        ]
    return [] if before == after else [where]


def _fill(tokenizer: Tokenizer, name: str | Path, say: Callable[[str], None]) -> None:
    trained = load(name)
    state, wanted = trained.state_dict(), tokenizer.state_dict()
    # Statistics that training alone reads may begin anew: a converted model has none.
    free = training_buffers(tokenizer) | training_buffers(trained)
    bad = [
        key
        for key in {**state, **wanted}
        if key not in free and (key not in state or key not in wanted or state[key].shape != wanted[key].shape)
    ]
    if bad:
        raise ValueError(
            f"--init-from {name}: its weights do not fit the recipe's model, first at {bad[0]}; "
            f"give the recipe the same model, model={name} where it is a folder"
        )
    kept = {key: value for key, value in state.items() if key in wanted and value.shape == wanted[key].shape}
    tokenizer.load_state_dict({**wanted, **kept})
    other = differences(trained.config.to_dict(), tokenizer.config.to_dict())
    if other:
        say(f"--init-from {name}: the recipe's model differs from it in {', '.join(other)}, and the recipe's holds")


def _fill_discriminator(task: TokenizerTask, name: str | Path, say: Callable[[str], None]) -> None:
    if task.adversary is None:
        return
    folder = find(name) / saved.FOLDER
    if not folder.is_dir():
        say(f"--init-from {name}: no discriminator lies beside it, so the run's begins untrained")
        return
    differing = saved.fill(task.adversary.discriminator, folder)
    if differing:
        own = json.dumps(read_config(folder)["discriminator"]).replace('"', "")
        say(
            f"--init-from {name}: its discriminator is not taken, {differing}: the run's begins untrained; to "
            f"continue with it give 'adversary.discriminator={own}' adversary.start=0 adversary.warmup=0"
        )


def _examples(recipe: Recipe) -> Tensor | None:
    batches = evaluation_batches(
        recipe.data.replace(limit=8, workers=0),
        image_size=recipe.model.image_size,
        channels=recipe.model.channels,
        batch_size=8,
        prefer=("train", "training"),
    )
    return next((batch["images"] for batch in batches), None)


def _card(recipe: Recipe, out: Path, step: int) -> dict[str, Any]:
    lines = read_log(out / "log.jsonl") if (out / "log.jsonl").exists() else []
    last = lines[-1] if lines else {}
    # How fast it was is of the machine and of the last resume, not of the model.
    kept = {name: value for name, value in last.items() if "/" not in name and name != "images_per_second"}
    figures = {f"training {name}": value for name, value in kept.items()}
    data = f"{recipe.data.path}, {recipe.batch_size} images a step, {step} steps"
    return {"data": data, "command": f"tvq train recipe.yaml --out {out.name}", "figures": figures}
