"""`tvq ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenizers_vq.cli import common

if TYPE_CHECKING:
    from tokenizers_vq.ablation.table import Plan


def ablate(
    table: Annotated[
        Path, typer.Argument(help="YAML file: a recipe, the rows with what each changes, seeds, test images")
    ],
    out: Annotated[Path, typer.Option(help="folder for the runs and the table; finished runs in it are kept")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATH=VALUE]...",
            help="data=PATH, test=PATH, other fields of the table, or fields that all rows share",
        ),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="ROW", help="run only this row; may be given several times")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="only check the table and print which runs are still to do")
    ] = False,
    device: common.Device = "auto",
) -> None:
    """Train and measure the rows of a table at equal steps on equal data; run again, it resumes."""
    from tokenizers_vq.ablation.run import due_runs
    from tokenizers_vq.ablation.table import load_table, make_plan
    from tokenizers_vq.devices import processes
    from tokenizers_vq.training.loop import Interrupted
    from tokenizers_vq.verbs.ablate import ablate as run

    plan = make_plan(load_table(table, overrides or []), table.parent)
    main = processes().rank == 0
    if main and not common.quiet():
        _print_plan(plan)
    if dry_run:
        for line in due_runs(plan, out, only=only or (), device=device):
            print(line)
        return
    try:
        with common.shown_runs():
            outcome = run(plan, out, only=only or (), device=device)
    except Interrupted as stop:
        common.note(f"tvq: {stop}")
        raise typer.Exit(128 + stop.signal) from None
    if main:
        print((out / "table.md").read_text(encoding="utf-8"))
        common.note(f"wrote {out}/table.md, table.csv, results.json and grid.png")
        for line in outcome.failed:
            common.note(f"failed: {line}")
    if outcome.failed:
        raise typer.Exit(1)


def _print_plan(plan: Plan) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    from tokenizers_vq.text import cell

    training = plan.rows[0].recipe
    seeds = ", ".join(map(str, plan.table.seeds))
    title = (
        f"{plan.table.title}: {len(plan.rows)} rows x seeds {seeds}, {training.steps:,} steps of "
        f"{training.batch_size} images of {training.data.path}; judged on {plan.test.path}"
    )
    shown = Table(Column("row", overflow="fold"), "tokenizer parameters", "of them codebook", "discriminator")
    for row in plan.rows:
        count = row.parameters
        flag = f" (networks {row.differs:+.1%} of the first row's: not of equal size)" if row.unequal else ""
        shown.add_row(
            cell(row.name),
            f"{count.tokenizer:,}{flag}",
            f"{count.codebook:,}",
            f"{count.discriminator:,}" if count.discriminator else "-",
        )
    console = Console(stderr=True)
    console.print(cell(title), soft_wrap=True, highlight=False)
    console.print(shown)
