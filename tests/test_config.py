"""Configs, overrides, schedules, and what they say of mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from tokenizers_vq.config import (
    Config,
    ConfigError,
    Schedule,
    ScheduleCurve,
    apply_overrides,
    parse,
    read_yaml,
    schedule_value,
)


class Round(Config):
    kind: Literal["round"] = "round"
    radius: float = 1.0


class Square(Config):
    kind: Literal["square"] = "square"
    side: int
    corners: tuple[int, ...] = (1, 2)


class Drawing(Config):
    shapes: tuple[Annotated[Round | Square, Field(discriminator="kind")], ...]
    weight: Schedule = 1.0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "shapes: required, but not given"),
        ({"shapes": [], "wieght": 1.0}, "wieght: no such field; did you mean 'weight'?"),
        ({"shapes": [{"kind": "rond"}]}, "shapes.0.kind: unknown kind 'rond'; did you mean 'round'?"),
        ({"shapes": [{"kind": "round"}, {"kind": "square", "side": "2"}]}, "shapes.1.side: .*valid integer, got '2'"),
        (
            {"shapes": [{"kind": "square", "side": 2, "sides": 3}]},
            "shapes.0.sides: no such field; did you mean 'side'?",
        ),
        ({"shapes": [{"radius": 2.0}]}, "shapes.0: needs a `kind`"),
        (
            {"shapes": [], "weight": {"kind": "linear", "begin": 0, "end": 1, "over": [6, 5]}},
            "weight.over: needs a first and a later step",
        ),
    ],
)
def test_one_line_says_where_and_what(data: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^drawing.yaml: {message}") as error:
        parse(Drawing, data, "drawing.yaml")
    assert "\n" not in str(error.value)


def test_configs_round_trip_and_are_immutable() -> None:
    drawing = Drawing(shapes=[Square(side=2), Round()], weight=0.5)
    assert parse(Drawing, drawing.to_dict()) == drawing
    assert drawing.to_dict(defaults=False) == {
        "shapes": [{"kind": "square", "side": 2}, {"kind": "round"}],
        "weight": 0.5,
    }
    assert drawing.replace(weight=2.0).weight == 2.0
    with pytest.raises(ValueError, match="frozen"):
        drawing.weight = 3.0  # type: ignore[misc]


def test_overrides_reach_into_lists_and_read_yaml() -> None:
    data = {"shapes": [{"kind": "round", "radius": 1.0}]}
    changed = apply_overrides(data, ["shapes.0.radius=1e-4", "weight={kind: linear, begin: 0, end: 1, over: [0, 9]}"])
    drawing = parse(Drawing, changed)
    assert drawing.shapes[0].radius == 1e-4 and isinstance(drawing.weight, ScheduleCurve)  # type: ignore[union-attr]
    assert data == {"shapes": [{"kind": "round", "radius": 1.0}]}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "not of the form path=value"),
        ("shapes.3.radius=1", "'3' is not an entry of a list of 1"),
        ("shapes.0.radius.deeper=1", "radius: input should be a valid number"),
        ("weight={", "not valid YAML"),
    ],
)
def test_wrong_overrides(override: str, message: str) -> None:
    data = {"shapes": [{"kind": "round", "radius": 1.0}]}
    with pytest.raises(ConfigError, match=message):
        parse(Drawing, apply_overrides(data, [override]))


def test_schedules_are_functions_of_the_step() -> None:
    linear = ScheduleCurve(kind="linear", begin=1, end=3, over=(10, 20))
    assert [schedule_value(linear, step) for step in (0, 10, 15, 20, 99)] == [1, 1, 2, 3, 3]
    cosine = ScheduleCurve(kind="cosine", begin=1, end=0, over=(0, 4))
    assert schedule_value(cosine, 2) == pytest.approx(0.5)
    exponential = ScheduleCurve(kind="exponential", begin=1, end=0.01, over=(0, 2))
    assert schedule_value(exponential, 1) == pytest.approx(0.1)
    assert schedule_value(0.3, 7) == 0.3


def test_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no config file"):
        read_yaml(tmp_path / "none.yaml")
    for text, message in [("- 1", "expected `field: value`"), ("a: [", "not valid YAML")]:
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_yaml(tmp_path / "x.yaml")
