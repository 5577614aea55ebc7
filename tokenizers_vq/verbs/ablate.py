"""Train and judge the rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers_vq.ablation.run import Outcome, run_table
from tokenizers_vq.ablation.table import Plan, load_table, make_plan
from tokenizers_vq.verbs.options import Progress


def ablate(
    table: Path | str | Plan,
    out: Path | str,
    *overrides: str,
    only: Sequence[str] = (),
    device: str = "auto",
    progress: Progress | None = None,
) -> Outcome:
    """Train and judge the rows of a table at equal steps and data, or go on with them; says which runs failed.

    `table`: a YAML file (a recipe, rows of overrides, seeds, test images), or its `ablation.table.Plan`, which
    `ablation.run.due_runs` checks without training. `out`: folder of the runs, `table.md`, `table.csv`, `results.json`
    and `grid.png`; what is done there is kept. `overrides`: `"data=PATH"`, `"test=PATH"`, fields of the table or of all
    rows. `only`: names of the rows to run. `progress` is called with (runs done, runs due).

    Raises `ValueError` for what is no table, and where a run's folder holds another recipe; `training.loop.Interrupted`
    after Ctrl-C: the same call goes on.
    """
    if isinstance(table, Plan):
        if overrides:
            raise ValueError("a plan is made with its overrides: give them to load_table")
        plan = table
    else:
        plan = make_plan(load_table(table, overrides), Path(table).parent)
    return run_table(plan, Path(out), only=only, device=device, progress=progress)
