"""`python -m tests.laws.table [--list] [quantizers | terms ...]`: every part x every law, as Markdown.

Exits 1 where a law failed or was not tried. `--list` tries none and says which there are; the tests try them all.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.laws import adversaries, conditions, priors, quantizers, regularisers, terms
from tests.laws.law import Role

ROLES = {
    "quantizers": Role("quantizer", quantizers.CASES, quantizers.LAWS, "test_quantizers.py"),
    "discriminators": adversaries.DISCRIMINATORS,
    "objectives": adversaries.OBJECTIVES,
    "regularisers": regularisers.REGULARISERS,
    "terms": terms.TERMS,
    "priors": priors.PRIORS,
    "conditions": conditions.CONDITIONS,
}


class Recorder:
    """Collects the outcomes of a pytest run by case and law."""

    def __init__(self) -> None:
        self.outcomes: dict[tuple[str, str], set[str]] = defaultdict(set)
        self.laws: dict[str, tuple[str, str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Function]) -> None:
        for item in items:
            if hasattr(item.function, "law"):
                self.laws[item.nodeid] = (item.callspec.params["case"].name, item.function.law)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.nodeid in self.laws and (report.when == "call" or not report.passed):
            self.outcomes[self.laws[report.nodeid]].add(report.outcome)


def table(role: Role, outcomes: dict[tuple[str, str], set[str]]) -> tuple[str, bool]:
    """The Markdown, and whether every law passed or has its reason."""
    lines = [f"| {role.noun} | {' | '.join(role.laws)} |", f"| --- |{' --- |' * len(role.laws)}"]
    reasons: dict[str, int] = {}
    good = True
    for case in role.cases:
        cells = []
        for law in role.laws:
            seen = outcomes.get((case.name, law), set())
            if law in case.exempt and seen <= {"skipped"}:
                cells.append(f"n.a. [{reasons.setdefault(case.exempt[law], len(reasons) + 1)}]")
            else:
                good &= seen == {"passed"}
                cells.append("passed" if seen == {"passed"} else "**failed**" if "failed" in seen else "**not tried**")
        lines.append(f"| {case.name} | {' | '.join(cells)} |")
    notes = [f"{number}. {reason}" for reason, number in reasons.items()]
    laws = [f"- *{law}*: {title}" for law, title in role.laws.items()]
    return "\n".join([*lines, *(["", "Not applicable:", "", *notes] if notes else []), "", "Laws:", "", *laws]), good


def listing(role: Role) -> str:
    """Parts, laws, and which do not apply to which, without trying any."""
    names = ", ".join(f"`{case.name}`" for case in role.cases)
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for case in role.cases:
        for law, reason in case.exempt.items():
            reasons[law, reason].append(f"`{case.name}`")
    lines = [f"{len(role.cases)} cases, {len(role.laws)} laws each: {names}.", ""]
    lines += [f"- *{law}*: {title}" for law, title in role.laws.items()]
    if reasons:
        lines += ["", "Not applicable:", ""]
        lines += [f"- *{law}* to {', '.join(cases)}: {reason}" for (law, reason), cases in reasons.items()]
    return "\n".join(lines)


def main() -> int:
    good, recorders = True, {}
    names = [name for name in sys.argv[1:] if name != "--list"] or list(ROLES)
    if "--list" in sys.argv:
        print("\n\n".join(listing(ROLES[name]) for name in names))
        return 0
    for name in names:
        role = ROLES[name]
        if role.tests not in recorders:
            recorders[role.tests] = Recorder()
            path = Path(__file__).with_name(role.tests)
            pytest.main([str(path), "--no-summary", "-q"], plugins=[recorders[role.tests]])
        text, passed = table(role, recorders[role.tests].outcomes)
        print(f"\n{text}\n")
        good &= passed
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
