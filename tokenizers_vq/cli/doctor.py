"""`tvq doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenizers_vq.cli import common


def doctor(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="folder of a run of `tvq train`, finished or still running")
    ],
    as_json: common.AsJson = False,
) -> None:
    """Find out from its log what is wrong with a run, and what to try. Exit status 1 if anything was found."""
    from tokenizers_vq.training.findings import ENOUGH
    from tokenizers_vq.verbs.doctor import doctor as examine

    found = examine(run)
    findings = found.findings
    where = f"{run}, step {found.step} of {found.steps}"
    if as_json:
        common.print_json(found.to_dict())
    elif not findings:
        early = f"; most verdicts want {ENOUGH} lines of the log, it has {found.lines}" if found.early else ""
        print(f"{where}: healthy; {', '.join(f'{name} {value:.4g}' for name, value in found.figures.items())}{early}")
    else:
        others = "; cure the first first, others may come of it" if len(findings) > 1 else ""
        print(f"{where}: {len(findings)} {'finding' if len(findings) == 1 else 'findings'}{others}")
        for finding in findings:
            print(f"\n{finding.what}\n  seen  {finding.when}: {finding.evidence}")
            for advice in finding.advice:
                print(f"  try   {advice}")
    if findings:
        raise typer.Exit(1)
