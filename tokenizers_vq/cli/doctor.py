"""`tvq doctor`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def doctor(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a tokenizer's run, finished or going on")],
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Say what a run's log shows to be wrong, and what to try. Status 1 where it found something."""
    from tokenizers_vq.config import parse, read_yaml
    from tokenizers_vq.training.health import diagnose, summary
    from tokenizers_vq.training.recipe import Recipe
    from tokenizers_vq.training.tracking import read_log

    path = run / "recipe.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{run} holds no recipe.yaml: give a run, which is what `tvq train --out` names")
    data = read_yaml(path)
    if "losses" not in data:
        raise ValueError(f"{run} is no tokenizer's run: the doctor reads what `tvq train` leaves")
    recipe = parse(Recipe, data, str(path))
    lines = read_log(run / "log.jsonl")
    if not lines:
        raise ValueError(
            f"{run / 'log.jsonl'} holds no line that can be read: the first comes after {recipe.log_every} steps"
        )
    findings, figures, step = diagnose(recipe, lines), summary(recipe, lines), int(lines[-1]["step"])
    where = f"{run}, step {step} of {recipe.steps}"
    if as_json:
        found = [
            {**finding._asdict(), "advice": [advice._asdict() for advice in finding.advice]} for finding in findings
        ]
        print(json.dumps({"run": str(run), "step": step, "healthy": not found, "findings": found, "figures": figures}))
    elif not findings:
        print(f"{where}: healthy; {', '.join(f'{name} {value:.4g}' for name, value in figures.items())}")
    else:
        others = "; cure the first first, others may come of it" if len(findings) > 1 else ""
        print(f"{where}: {len(findings)} {'finding' if len(findings) == 1 else 'findings'}{others}")
        for finding in findings:
            print(f"\n{finding.what}\n  seen  {finding.when}: {finding.evidence}")
            for advice in finding.advice:
                print(f"  try   {advice}")
    if findings:
        raise typer.Exit(1)
