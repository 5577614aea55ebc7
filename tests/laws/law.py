"""Marks a test as a law, tried on every case of a role; a case that is exempt skips with its reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pytest


class Role(NamedTuple):
    """Parts of one kind and their laws."""

    noun: str
    """as its table calls a part"""
    cases: Sequence[Any]
    """each with `name` and `exempt`, law -> why it does not apply"""
    laws: Mapping[str, str]
    """what they say, by the names that `exempt` uses"""
    tests: str
    """file in which they are tried"""

    def law(self, name: str) -> Callable[[Callable], Callable]:
        """Gives a test its `case`, one after the other."""
        assert name in self.laws

        def mark(test: Callable) -> Callable:
            test.law = name  # type: ignore[attr-defined]
            return pytest.mark.parametrize("case", [self._given(case, name) for case in self.cases])(test)

        return mark

    def _given(self, case: Any, name: str) -> Any:
        reason = case.exempt.get(name)
        marks = () if reason is None else pytest.mark.skip(reason=f"{name} does not apply: {reason}")
        return pytest.param(case, id=case.name, marks=marks)

    def check(self) -> None:
        """Names are unique; exemptions name a law and a reason."""
        assert len({case.name for case in self.cases}) == len(self.cases)
        for case in self.cases:
            assert set(case.exempt) <= set(self.laws), case.name
            assert all(len(reason) > 15 and "\n" not in reason for reason in case.exempt.values()), case.name
