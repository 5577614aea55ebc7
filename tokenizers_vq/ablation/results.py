"""What a table's runs gave: read from their folders, joined over seeds, written as JSON, Markdown, CSV and a grid."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers_vq.ablation import timing
from tokenizers_vq.ablation.grid import write_grid
from tokenizers_vq.ablation.judges import judge_of, resemblance
from tokenizers_vq.ablation.report import CODES, SPREAD, as_csv, markdown
from tokenizers_vq.ablation.table import Plan, Row
from tokenizers_vq.folders import write_atomically
from tokenizers_vq.training import loop, runs
from tokenizers_vq.training.recipe import Recipe
from tokenizers_vq.training.tracking import read_log

EVALUATION, FAILURE, STRIP, ORIGINALS = "evaluation.json", "failure.json", "examples.png", "originals.png"
EXAMPLES = 8


class Spread(NamedTuple):
    """A figure over seeds."""

    mean: float
    half_range: float | None
    """None for one seed, which says nothing of it"""


def read_run(plan: Plan, out: Path, row: Row, seed: int) -> dict[str, Any] | None:
    """The evaluation of a run, None where it is absent, or of another recipe or length than the plan's."""
    folder, recipe = plan.folder(out, row.name, seed), row.recipes[seed]
    if not (folder / EVALUATION).is_file() or not (folder / "recipe.yaml").is_file():
        return None
    found = json.loads((folder / EVALUATION).read_text(encoding="utf-8"))
    differing = runs.differences(runs.as_now(recipe, folder / "recipe.yaml"), recipe.to_dict())
    if found["step"] != recipe.steps or not all(runs.among(name, loop.AROUND) for name in differing):
        return None
    return found


def read_failure(plan: Plan, out: Path, row: Row, seed: int) -> str | None:
    """The message of a run that failed."""
    path = plan.folder(out, row.name, seed) / FAILURE
    return json.loads(path.read_text(encoding="utf-8"))["message"] if path.is_file() else None


def unfinished(plan: Plan, out: Path, rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Runs of `rows` that failed, `ROW/seed-S: message`, and runs that are not there, `ROW/seed-S`."""
    failed, missing = [], []
    for row in rows:
        for seed in row.recipes:
            if read_run(plan, out, row, seed) is None:
                message = read_failure(plan, out, row, seed)
                name = f"{row.name}/seed-{seed}"
                failed.append(f"{name}: {message}") if message else missing.append(name)
    return failed, missing


def seconds(folder: Path, recipe: Recipe) -> float | None:
    """Training time of the whole run at the mean rate of its last stretch; None where it logged no rate.

    The logged rate is a mean since the start or the last resume: what came before is taken to have gone as fast.
    """
    path = folder / "log.jsonl"
    lines = read_log(path) if path.is_file() else []
    rates = [line["images_per_second"] for line in lines if line.get("images_per_second")]
    return recipe.steps * recipe.batch_size / rates[-1] if rates else None


def figures(evaluation: dict[str, Any], training_seconds: float | None) -> dict[str, float]:
    """The numbers of one run, by name."""
    usage, streams = evaluation["usage"], evaluation["usage"]["streams"]
    numbers = {name: metric["value"] for name, metric in evaluation["metrics"].items()}
    numbers |= {name: usage[name] for name in ("usage", "dead", "bits_per_pixel")}
    numbers["perplexity"] = sum(stream["perplexity"] for stream in streams) / len(streams)
    speed = evaluation["speed"]
    rates = {name: speed[name] for name in ("encode_images_per_second", "decode_images_per_second") if speed[name]}
    return {**numbers, **rates, **({} if training_seconds is None else {"training_seconds": training_seconds})}


def spread(values: Sequence[float]) -> Spread:
    """Mean and half the range."""
    half_range = (max(values) - min(values)) / 2 if len(values) > 1 else None
    return Spread(sum(values) / len(values), half_range)


def collect(plan: Plan, out: Path) -> dict[str, Any]:
    """Everything that is known of the table, JSON-able."""
    rows: dict[str, Any] = {}
    definitions: dict[str, Any] = dict(CODES)
    left_out: dict[str, str] = {}
    places: dict[str, None] = {}
    for row in plan.rows:
        found: dict[str, Any] = {}
        for seed in row.recipes:
            evaluation = read_run(plan, out, row, seed)
            if evaluation is None:
                failure = read_failure(plan, out, row, seed)
                found[str(seed)] = {"failed": failure} if failure else {"missing": True}
                continue
            for name, metric in evaluation["metrics"].items():
                definitions[name] = {key: value for key, value in metric.items() if key != "value"}
            left_out |= evaluation["skipped"] | evaluation["asked"]["left_out"]
            speed = {key: evaluation["speed"][key] for key in ("device", "precision", "threads")}
            places[f"{speed['device']}, {speed['threads']} thread{'' if speed['threads'] == 1 else 's'}"] = None
            numbers = figures(evaluation, seconds(plan.folder(out, row.name, seed), row.recipes[seed]))
            found[str(seed)] = {"figures": numbers, "where": speed, "data": evaluation["data"]}
        done = [run["figures"] for run in found.values() if "figures" in run]
        names = [name for name in (done[0] if done else ()) if all(name in run for run in done)]
        rows[row.name] = {
            "note": row.note,
            "parameters": row.parameters._asdict(),
            "networks_differ": row.differs,
            "unequal": row.unequal,
            "precision": row.recipe.precision,
            "seeds": found,
            "done": len(done),
            "mean": {name: spread([run[name] for run in done])._asdict() for name in names},
            "step_time": timing.read(plan, out, row),
        }
    judges = [judge for name in definitions if (judge := judge_of(name)) is not None]
    for row in plan.rows:
        rows[row.name]["resembles"] = {
            judge.metric: kind for judge in judges if (kind := resemblance(judge, row.recipe))
        }
    recipe, test = plan.rows[0].recipe, plan.test
    return {
        "title": plan.table.title,
        "table": plan.table.to_dict(),
        "training": {
            "data": recipe.data.to_dict(),
            "steps": recipe.steps,
            "batch_size": recipe.batch_size,
            "image_size": recipe.model.image_size,
        },
        "test": test.to_dict(),
        "spread": SPREAD,
        "definitions": definitions,
        "left_out": {name: reason for name, reason in left_out.items() if name not in definitions},
        "where": list(places),
        "rows": rows,
    }


def write(plan: Plan, out: Path) -> None:
    """`results.json`, `table.md`, `table.csv` and `grid.png`, each replaced whole; what is missing is named."""
    result = collect(plan, out)
    write_atomically(out / "results.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    write_atomically(out / "table.md", markdown(result))
    write_atomically(out / "table.csv", as_csv(result))
    columns = [("originals", out / ORIGINALS)]
    for row in plan.rows:
        strips = [plan.folder(out, row.name, seed) / STRIP for seed in row.recipes]
        columns += [(row.name, path) for path in strips if path.is_file()][:1]
    write_grid(out / "grid.png", columns, EXAMPLES)
