"""Configs, overrides, schedules, and what they say of mistakes."""

from __future__ import annotations

from itertools import pairwise
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
    read_json,
    read_yaml,
    schedule_value,
)
from tokenizers_vq.text import printable


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
        ({"shapes": ["rond"]}, "shapes.0.kind: unknown kind 'rond'; did you mean 'round'?"),
        (
            {"shapes": [], "weight": {"kind": "linear", "begin": 0, "end": 1, "over": [6, 5]}},
            "weight.over: needs a first step and a later one",
        ),
    ],
)
def test_one_line_says_where_and_what(data: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^drawing.yaml: {message}") as error:
        parse(Drawing, data, "drawing.yaml")
    assert "\n" not in str(error.value)


def test_a_kind_alone_is_a_part_with_its_defaults() -> None:
    assert parse(Drawing, {"shapes": ["round", {"kind": "square", "side": 2}]}).shapes == (Round(), Square(side=2))


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


def alias_bomb(template: str) -> str:
    """Twelve anchors, each of nine times the one before: 9^12 values in 400 bytes."""
    names = "abcdefghijkl"
    lines = [f"{new}: &{new} {template.format(','.join([f'*{old}'] * 9))}" for old, new in pairwise(names)]
    return "\n".join(["a: &a {k: 1}", *lines])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (alias_bomb("[{}]"), "more than 100,000 values"),
        (alias_bomb("{{<<: [{}]}}"), "more than 100,000 values"),
        ("a: &a [*a]", "line 1, column 4: nested more than 64 levels deep, or an alias to itself"),
        ("a: &a {<<: *a}", "an alias to itself"),
        ("[" * 5000, "nested more than 64 levels"),
        ("a: " + "[" * 70 + "]" * 70, "nested more than 64 levels"),
        ("1: 2", "the key '1' is not text: put it in quotes"),
        ("a: {true: 2}", "the key 'true' is not text"),
        ("? [a]\n: 2", "the key is not text"),
        ("a: 1\nb: 2\na: 3", "line 3, column 1: 'a' appears twice"),
        ("a: !!bool maybe", "not of the kind that it says"),
        ("a: !!python/object:os.system x", "only text, numbers"),
        ("a: !!set {b}", "only mappings and lists"),
        ("a: 1" + "0" * 30, "a whole number of 100 bits"),
        ("a: \x00", "unacceptable character"),
        ("a: " + "x" * 300_000, "has 300,003 characters"),
    ],
)
def test_yaml_that_costs_more_than_its_size_is_refused_in_one_line(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as error:
        read_yaml(path)
    assert str(error.value).startswith(str(path)) and said in str(error.value)
    assert "\n" not in str(error.value)


def test_yaml_keeps_dates_as_text_and_reads_shared_parts(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbfday: 2024-01-01\nlr: 1e-4\nbase: &b {x: 1}\nmore: {<<: *b, y: 2}")
    assert read_yaml(path) == {"day": "2024-01-01", "lr": 1e-4, "base": {"x": 1}, "more": {"x": 1, "y": 2}}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 100_000, "nested more than 64 levels"),
        (b'{"a":' + b"[" * 70 + b"]" * 70 + b"}", "nested more than 64 levels"),
        (b"[1]", "expected a JSON object, found list"),
        (b"", "not valid JSON"),
        (b"{\xff}", "no text in UTF-8"),
        (b'{"a": 1, "a": 2}', "'a' appears twice"),
        (b'{"a": 1%s}' % (b"0" * 30), "a whole number of 100 bits"),
        (b'{"a": 1%s}' % (b"0" * 5000), "not valid JSON"),
        (b" " * 9_000_000, "9,000,000 bytes"),
    ],
)
def test_json_is_read_within_bounds(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read_json(path)
    assert str(error.value).startswith(str(path)) and said in str(error.value)
    assert "\n" not in str(error.value)


def test_json_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": [1, 2.5, null, true, "x"], "b": {}}')
    assert read_json(path) == {"a": [1, 2.5, None, True, "x"], "b": {}}
    with pytest.raises(FileNotFoundError, match="no file"):
        read_json(tmp_path / "none.json")


def test_infinite_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"radius: .*finite number, got inf"):
        Round(radius=float("inf"))
    with pytest.raises(ConfigError, match=r"weight: .*finite number"):
        parse(Drawing, {"shapes": [], "weight": float("nan")})


def test_control_characters_are_written_as_escapes() -> None:
    assert printable("red \x1b[31m\u202etxt\udc80\x9b1m\r") == r"red \x1b[31m\u202etxt\udc80\x9b1m\r"
    assert printable("Zürich 図\tand\nline") == "Zürich 図\tand\nline"
