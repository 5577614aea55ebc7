"""Running a table: every row at every seed is an ordinary run folder, trained, then judged, then in the table.

What is done is passed over, so that the same command goes on after a kill at any moment.
"""

from __future__ import annotations

import gc
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenizers_vq import distributed, images
from tokenizers_vq.ablation import judges as judging
from tokenizers_vq.ablation import results, timing
from tokenizers_vq.ablation.judges import Judge
from tokenizers_vq.ablation.table import Plan, Row, choose_rows
from tokenizers_vq.config import ConfigError, parse
from tokenizers_vq.data import DataConfig
from tokenizers_vq.data.loading import evaluation_batches
from tokenizers_vq.data.sources import open_source
from tokenizers_vq.data.transforms import PREPROCESSING
from tokenizers_vq.devices import join_processes, resolve_device
from tokenizers_vq.evaluation import evaluate
from tokenizers_vq.evaluation.metrics import FeatureStatistics
from tokenizers_vq.folders import write_atomically
from tokenizers_vq.models import load
from tokenizers_vq.training import loop, runs
from tokenizers_vq.training.recipe import Recipe
from tokenizers_vq.training.tracking import Watch

logger = logging.getLogger(__name__)
Say = Callable[[str], None]
BEGINNING = "init_from.json"


class Outcome(NamedTuple):
    """How a command ended."""

    failed: tuple[str, ...]
    """`ROW/seed-S: message` of every run that could not be trained"""
    missing: tuple[str, ...]
    """`ROW/seed-S` of every run that is not there yet"""


class _Due(NamedTuple):
    runs: list[tuple[Row, int]]
    judges: tuple[Judge, ...]
    asked: dict[str, Any]


def _check(plan: Plan, out: Path, rows: Sequence[Row], say: Say) -> _Due:
    """What is due, once nothing known would stop it: folders of other recipes, data, weights of losses, judges."""
    _check_beginning(plan, out)
    for row in rows:
        for seed, recipe in row.recipes.items():
            runs.claim(recipe, plan.folder(out, row.name, seed), write=False, may_change=loop.AROUND)
    for data in (plan.rows[0].recipe.data, plan.test):
        if not data.streaming:
            open_source(data)
    _weights_at_hand(rows)
    listed = tuple(judging.parse_judge(text) for text in plan.table.judges or ()) or judging.default_judges()
    judges, missing = judging.available(listed, rows[0].recipe.model.size)
    for name, reason in missing.items():
        say(f"left out {name}: {reason}")
    if len(judges) < 2:
        say("fewer than two networks judge: bring their weights, or name others in `judges`")
    asked = {"data": plan.test.to_dict(), "judges": [judge.metric for judge in judges], "left_out": missing}
    due = [(row, seed) for seed in plan.table.seeds for row in rows if not _is_done(plan, out, row, seed, asked)]
    return _Due(due, judges, asked)


def due_runs(
    plan: Plan, out: Path, *, only: Sequence[str] = (), device: str = "auto", say: Say = logger.info
) -> list[str]:
    """A line for each run that `run_table` would train or judge. Checks all that it checks and writes nothing."""
    resolve_device(device)
    due = _check(plan, out, choose_rows(plan, only), say)
    return [f"{row.name}, seed {seed}: {plan.folder(out, row.name, seed)}" for row, seed in due.runs] or [
        "nothing is due"
    ]


@runs.alone
def run_table(
    plan: Plan,
    out: Path,
    *,
    only: Sequence[str] = (),
    device: str = "auto",
    say: Say = logger.info,
    progress: Watch | None = None,
) -> Outcome:
    """Train and judge what is not done of `plan` (rows `only`) under `out`, and write the table after every run.

    All rows at the first seed come first, so that a whole comparison is there early. A run that diverges, does not fit
    into memory or misses a file is noted and the others go on. `say` gets messages for the person; `progress` is called
    with (runs done, runs due) after every run. Under several processes the first one writes. Raises
    `ValueError` where a run's folder holds another recipe, where data or a loss's weights are not there, and
    `loop.Interrupted`.
    """
    rows = choose_rows(plan, only)
    place = resolve_device(device)
    processes = join_processes(place)
    main = processes.rank == 0
    _keep_group(processes.world)
    say = say if main else lambda text: None
    due, judges, asked = _check(plan, out, rows, say)
    if main:
        _originals(plan, out)
        if plan.table.init_from is not None:
            write_atomically(out / BEGINNING, json.dumps(_beginning(plan)) + "\n")
    originals: dict[str, FeatureStatistics] = {}
    for number, (row, seed) in enumerate(due, start=1):
        folder = plan.folder(out, row.name, seed)
        say(f"[{number}/{len(due)}] {row.name}, seed {seed}")
        try:
            runs.train(row.recipes[seed], folder, device=device, init_from=plan.table.init_from)
        # Most of all `loop.NonFiniteLossError`: it is the row's, the others go on.
        except (ValueError, FileNotFoundError, torch.OutOfMemoryError) as error:
            reason = str(error).splitlines()[0]
            say(f"failed: {reason}")
            if main:
                write_atomically(folder / results.FAILURE, json.dumps({"message": reason}) + "\n")
        else:
            _judge(plan, row.recipes[seed], folder, asked, judges, place, originals)
        gc.collect()  # one run's networks go before the next one's come
        if place.type == "cuda":
            torch.cuda.empty_cache()
        if main:
            results.write(plan, out)
        if progress is not None:
            progress(number, len(due))
    if plan.table.time_against is not None:
        timing.time_rows(plan, out, rows, place, main)
    distributed.sum(torch.zeros((), device=place))  # no process reads results before the first one has written them
    if main and (not due or plan.table.time_against is not None):
        results.write(plan, out)
    failed, absent = results.unfinished(plan, out, rows)
    return Outcome(tuple(failed), tuple(absent))


def _beginning(plan: Plan) -> dict[str, str] | None:
    """The model that all runs begin with, by the fingerprint of its weights; None where they begin untrained."""
    return None if plan.table.init_from is None else {"fingerprint": load(plan.table.init_from).fingerprint}


def _check_beginning(plan: Plan, out: Path) -> None:
    """Raises `ValueError` where the runs in `out` began with other weights than the table's."""
    path = out / BEGINNING
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    begun = any(runs.has_checkpoint(plan.folder(out, row.name, seed)) for row in plan.rows for seed in row.recipes)
    if _beginning(plan) != kept and begun:
        raise ValueError(
            f"{out} holds runs that began {'with another model' if kept else 'untrained'}, but init_from is now "
            f"{plan.table.init_from or 'null'}: give another --out, or the init_from they began with"
        )


def _is_done(plan: Plan, out: Path, row: Row, seed: int, asked: dict[str, Any]) -> bool:
    """Whether the run is trained, and judged by everything that can judge it now, on these images."""
    found = results.read_run(plan, out, row, seed)
    return (
        found is not None
        and _same_images(found["asked"]["data"], plan.test)
        and set(asked["judges"]) <= set(found["asked"]["judges"])
    )


def _same_images(asked: dict[str, Any], test: DataConfig) -> bool:
    """Whether a run was judged on these images, also where it is older than a field of the config."""
    try:
        return parse(DataConfig, asked, "asked.data") == test
    except ConfigError:
        return False


def _weights_at_hand(rows: Sequence[Row]) -> None:
    """Make every loss once: one whose weights are out of reach stops the command now, not after hours."""
    made = []
    for row in rows:
        with torch.device("meta"):
            tokenizer = row.recipe.model.build()
        for term in row.recipe.losses:
            if term not in made:
                try:
                    term.build(tokenizer)
                except (ValueError, FileNotFoundError) as error:
                    raise ValueError(f"rows.{row.name}: {error}") from None
                made.append(term)


def _keep_group(world: int) -> None:
    """Let the processes stay together when a run ends: accelerate then ends their group, which cannot be made twice."""
    if world > 1:
        os.environ["FORK_LAUNCHED"] = "1"  # what accelerate reads to leave the group to who made it


def _judge(
    plan: Plan,
    recipe: Recipe,
    folder: Path,
    asked: dict[str, Any],
    judges: Sequence[Judge],
    device: torch.device,
    originals: dict[str, FeatureStatistics],
) -> None:
    tokenizer = load(folder, device=device)
    size, channels = recipe.model.image_size, recipe.model.channels
    shard = (distributed.rank(), distributed.world_size())
    batches = evaluation_batches(
        plan.test, image_size=size, channels=channels, batch_size=plan.table.test.batch_size, shard=shard
    )
    described: dict[str, Any] = {"name": plan.test.path, "split": plan.test.split, "preprocessing": PREPROCESSING}
    described |= {"folder": batches.about.folder, "source": batches.about.description}
    evaluation = evaluate(
        tokenizer,
        batches,
        data=described,
        lpips=next((judge.network for judge in judges if judge.kind == "lpips"), None),
        backbone=None,
        judges=[(judge.network, judge.layer) for judge in judges if judge.kind == "features"],
        originals=originals,
    )
    if distributed.rank():
        return
    with torch.no_grad():
        shown = tokenizer.decode(tokenizer.encode(_examples(plan.test, recipe).to(device))).cpu()
    _write_strip(folder / results.STRIP, shown)
    result = {"step": recipe.steps, "asked": asked, **evaluation.to_dict()}
    write_atomically(folder / results.EVALUATION, json.dumps(result, indent=2) + "\n")
    (folder / results.FAILURE).unlink(missing_ok=True)


def _examples(test: DataConfig, recipe: Recipe) -> Tensor:
    """The same images for every row, evenly spread over the test images: `(8, C, H, W)`."""
    few = test.replace(limit=results.EXAMPLES, workers=0)
    size, channels = recipe.model.image_size, recipe.model.channels
    batches = evaluation_batches(few, image_size=size, channels=channels, batch_size=results.EXAMPLES)
    return next(iter(batches))["images"]


def _originals(plan: Plan, out: Path) -> None:
    _write_strip(out / results.ORIGINALS, _examples(plan.test, plan.rows[0].recipe))


def _write_strip(path: Path, pictures: Tensor) -> None:
    """Pictures `(N, C, H, W)` one below the other, as PNG."""
    import io

    kept = pictures[:, :3] if pictures.shape[1] >= 3 else pictures[:, :1]
    buffer = io.BytesIO()
    images.to_pil(torch.cat(list(kept.float().clamp(-1, 1)), dim=1)).save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())
