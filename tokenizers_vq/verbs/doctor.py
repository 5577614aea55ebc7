"""What a run's log shows to be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from tokenizers_vq.config import parse, read_yaml
from tokenizers_vq.training.findings import ENOUGH, Finding
from tokenizers_vq.training.health import diagnose, summary
from tokenizers_vq.training.recipe import Recipe
from tokenizers_vq.training.tracking import read_log


class Diagnosis(NamedTuple):
    """Result of `doctor`."""

    run: Path
    step: int
    """the step that the log has come to"""
    steps: int
    """of the whole run"""
    lines: int
    """that the log holds"""
    findings: list[Finding]
    """what is wrong, causes before what may come of them; empty for a healthy run"""
    figures: dict[str, float]
    """what was looked at, as means over the recent lines of the log"""

    @property
    def early(self) -> bool:
        """Whether the log is too short for most verdicts."""
        return self.lines < ENOUGH

    @property
    def healthy(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        found = [
            {**finding._asdict(), "advice": [advice._asdict() for advice in finding.advice]}
            for finding in self.findings
        ]
        return {
            "run": str(self.run),
            "step": self.step,
            "healthy": self.healthy,
            "early": self.early,
            "findings": found,
            "figures": self.figures,
        }


def doctor(run: Path | str) -> Diagnosis:
    """What the log of a tokenizer's run, finished or going on, shows to be wrong, and what to try.

    Raises `FileNotFoundError` for what is no run, `ValueError` for a prior's, or one that has not logged yet.

    ```python
    for finding in tvq.doctor("runs/a").findings:
        finding.what, finding.evidence, [str(advice) for advice in finding.advice]
    ```
    """
    run = Path(run)
    path = run / "recipe.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{run} holds no recipe.yaml: give a run, which is what `tvq train --out` names")
    data = read_yaml(path)
    if "losses" not in data:
        raise ValueError(f"{run} is not a run of a tokenizer: the doctor reads what `tvq train` leaves")
    recipe = parse(Recipe, data, str(path))
    lines = read_log(run / "log.jsonl")
    if not lines:
        raise ValueError(
            f"{run / 'log.jsonl'} holds no line that can be read: the first comes after {recipe.log_every} steps"
        )
    figures = sum("stopped" not in line for line in lines)
    findings = diagnose(recipe, lines)
    return Diagnosis(run, int(lines[-1]["step"]), recipe.steps, figures, findings, summary(recipe, lines))
