"""The words of a table: Markdown and CSV of what its runs gave, with all that one must know to read them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from tokenizers_vq.ablation.table import TOLERANCE
from tokenizers_vq.ablation.timing import DEFINITION
from tokenizers_vq.evaluation.measures import SIGNS, few_images
from tokenizers_vq.evaluation.tables import label

SPREAD = "half the range over seeds"
CODES = {
    "usage": "share of the codes seen on the test images",
    "perplexity": "exp of the entropy of the codes of the test images (mean over streams)",
    "dead": "codes never seen on the test images",
    "bits_per_pixel": "log2(number of codes) a code",
}
"""figures of the codes, and what they are"""
_MARKS = {"same": "†", "family": "‡", "": ""}
_UNEQUAL = "§"
_FIRST = ("psnr", "ssim", "mse", "spectrum_distance", "patch_grid")


def markdown(result: dict[str, Any]) -> str:
    """The table for people, with everything that one must know to read it below."""
    names = [name for name in _columns(result) if name != "mse"]
    head = ["Row", "Seeds", "Parameters", "of them codebook", "Discriminator"]
    timed = any(row["step_time"] is not None for row in result["rows"].values())
    head += [_heading(name, result) for name in names] + ["Training s"] + ["Step time ↓"] * timed
    lines = [f"# {result['title']}", "", _row(head), _row(["---"] * len(head))]
    for name, row in result["rows"].items():
        count = row["parameters"]
        cells = [name, f"{row['done']}/{len(row['seeds'])}"]
        cells += [f"{count['tokenizer']:,}{_UNEQUAL if row['unequal'] else ''}", f"{count['codebook']:,}"]
        cells.append(f"{count['discriminator']:,}" if count["discriminator"] else "-")
        failed = any("failed" in run for run in row["seeds"].values())
        for metric in [*names, "training_seconds"]:
            value = row["mean"].get(metric)
            mark = _MARKS[row["resembles"].get(metric, "")]
            cells.append(f"{_cell(metric, value)}{mark}" if value else "failed" if failed else "-")
        cells += ["-" if row["step_time"] is None else f"{row['step_time']:.2f}"] * timed
        lines.append(_row(cells))
    return "\n".join([*lines, "", *_notes(result)]) + "\n"


def as_csv(result: dict[str, Any]) -> str:
    """One line a row: parameters, and for every figure its mean, half its range, and what marks it."""
    names = list(dict.fromkeys(name for row in result["rows"].values() for name in row["mean"]))
    judges = list(dict.fromkeys(name for row in result["rows"].values() for name in row["resembles"]))
    head = ["row", "seeds_done", "seeds", "failed", "tokenizer_parameters", "codebook_parameters"]
    head += ["discriminator_parameters", "networks_differ", "step_time"]
    for name in names:
        head += [name, f"{name} half_range"] + ([f"{name} resembles"] if name in judges else [])
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    for name, row in result["rows"].items():
        count = row["parameters"]
        failed = sum("failed" in run for run in row["seeds"].values())
        cells = [name, row["done"], len(row["seeds"]), failed, count["tokenizer"], count["codebook"]]
        cells += [count["discriminator"], f"{row['networks_differ']:.4f}"]
        cells.append("" if row["step_time"] is None else f"{row['step_time']:.4f}")
        for metric in names:
            value = row["mean"].get(metric)
            cells += [value["mean"], value["half_range"]] if value else ["", ""]
            cells += [row["resembles"].get(metric, "")] if metric in judges else []
        writer.writerow(cells)
    return buffer.getvalue()


def _columns(result: dict[str, Any]) -> list[str]:
    """Metrics in order: pixels, judges, codes; `mse` says what PSNR says, and stays out of the Markdown."""
    known = [name for name in result["definitions"] if name not in CODES]
    judges = [name for name in known if name not in _FIRST]
    return [name for name in _FIRST if name in known] + judges + ["usage", "perplexity", "dead"]


def _heading(name: str, result: dict[str, Any]) -> str:
    definition = result["definitions"].get(name)
    if not isinstance(definition, dict):
        return {"usage": "Usage ↑", "perplexity": "Perplexity ↑", "dead": "Dead codes ↓"}[name]
    unit = f" ({definition['unit']})" if definition["unit"] else ""
    return f"{label(name)}{unit} {SIGNS[definition['better']]}"


def _cell(name: str, value: dict[str, Any]) -> str:
    mean = value["mean"]
    digits = 0 if mean >= 1000 or name == "dead" else 1 if mean >= 100 else 2 if mean >= 1 else 4
    form = ".1%" if name == "usage" else f",.{digits}f"
    return " ± ".join(f"{part:{form}}" for part in (mean, value["half_range"]) if part is not None)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _notes(result: dict[str, Any]) -> list[str]:
    parts = (_of_rows, _of_figures, _of_marks, _of_sizes, _of_unfinished, _of_definitions)
    return [f"- {line}" for part in parts for line in part(result)]


def _of_rows(result: dict[str, Any]) -> Iterator[str]:
    for name, row in result["rows"].items():
        if row["note"]:
            yield f"{name}: {row['note']}"


def _of_figures(result: dict[str, Any]) -> Iterator[str]:
    training, rows, test = result["training"], result["rows"], result["test"]
    seeds = list(next(iter(rows.values()))["seeds"])
    yield f"Figures are means ± {SPREAD} ({', '.join(seeds)}), those that are done; a single seed has no ±."
    for name, row in rows.items():
        done = [seed for seed, run in row["seeds"].items() if "figures" in run]
        if done and len(done) < len(seeds):
            yield f"{name}: n = {len(done)} of {len(seeds)} seeds so far ({', '.join(done)})."
    yield (
        f"Every run: {training['steps']:,} steps of {training['batch_size']} images of {training['image_size']} px "
        f"of {training['data']['path']}; {', '.join(result['where']) or 'none done'}."
    )
    if result["table"]["init_from"] is not None:
        begin = result["table"]["init_from"]
        yield f"All runs begin with the weights of {begin}, and its discriminator where one lies beside it and fits."
    if against := result["table"]["time_against"]:
        yield f"Step time: {DEFINITION.format(against=against)}."
    images = {run["data"]["images"] for row in rows.values() for run in row["seeds"].values() if "data" in run}
    counted = f"{', '.join(f'{count:,}' for count in sorted(images))} images" if images else "images"
    yield f"Judged on {counted} of {test['path']}, split {test['split'] or 'as found'}, in float32."
    yield "Training s: steps x batch size at the mean rate of the run's last stretch, since its start or last resume."


def _of_marks(result: dict[str, Any]) -> Iterator[str]:
    marked = {kind for row in result["rows"].values() for kind in row["resembles"].values()}
    if "same" in marked:
        yield f"{_MARKS['same']} the row was trained on this network's features: it flatters the row."
    if "family" in marked:
        yield f"{_MARKS['family']} the row was trained on a relative of this network, which may flatter the row."
    for name, row in result["rows"].items():
        judges = [metric for metric in row["mean"] if metric.startswith(("lpips_", "feature_distance/"))]
        if judges and all(row["resembles"].get(metric) for metric in judges):
            yield f"{name}: every judge resembles a loss of this row; name another network in `judges`."


def _of_sizes(result: dict[str, Any]) -> Iterator[str]:
    first = next(iter(result["rows"]))
    for name, row in result["rows"].items():
        if row["unequal"]:
            yield (
                f"{_UNEQUAL} {name}'s networks have {row['networks_differ']:+.1%} parameters against {first}'s, "
                f"more than {TOLERANCE:.0%} apart: the rows are not of equal size."
            )


def _of_unfinished(result: dict[str, Any]) -> Iterator[str]:
    runs = {f"{name}/seed-{seed}": run for name, row in result["rows"].items() for seed, run in row["seeds"].items()}
    for name, run in runs.items():
        if "failed" in run:
            yield f"failed: {name}: {run['failed']}"
    absent = [name for name, run in runs.items() if "missing" in run]
    if absent:
        yield f"Not there yet: {', '.join(absent)}."


def _of_definitions(result: dict[str, Any]) -> Iterator[str]:
    for name, definition in result["definitions"].items():
        if isinstance(definition, dict) and "features" in definition:
            runs = [run for row in result["rows"].values() for run in row["seeds"].values() if "data" in run]
            fewest = min((run["data"]["images"] for run in runs), default=0)
            if note := few_images(fewest, definition["features"]):
                yield f"{label(name)}: {note}"
        if isinstance(definition, dict) and name != "mse":
            skipped = ("unit", "better", "images", "note")
            text = "; ".join(f"{key} {_plain(value)}" for key, value in definition.items() if key not in skipped)
            yield f"{label(name)}: {text}{'; ' + definition['note'] if 'note' in definition else ''}"
        elif name in ("usage", "perplexity"):
            yield f"{name.capitalize()}: {definition}"
    for name, reason in result["left_out"].items():
        yield f"left out {label(name)}: {reason}"


def _plain(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)
