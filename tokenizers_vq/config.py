"""Typed configuration: a strict, frozen base, schedules, and `a.b=value` overrides.

A part's config stands above its module; its fields are the module's keyword arguments. Sub-packages join the configs
of one role into a union on `kind`. Everything a person can misspell is answered by one line naming the nearest field.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from typing_extensions import Self

from tokenizers_vq import text

Path_ = tuple[str, ...]
T = TypeVar("T", bound="Config")


Size = Annotated[int, Field(ge=1, le=65_536)]
"""channels of a layer, sides of images in pixels, heads, groups"""
Blocks = Annotated[int, Field(ge=0, le=256)]
"""blocks or layers, one after the other"""
Halvings = Annotated[int, Field(ge=1, le=16)]
"""how often a size is halved"""
Multiplier = Annotated[int, Field(ge=1, le=1024)]
"""channels of a level as a multiple of others"""
MOST_CODES = 2**31
"""codes of a codebook that is stored"""
MOST_LEVELS = 16
"""levels of a network, each of which halves the size"""


class ConfigError(ValueError):
    """A config value that cannot be used: `path` is where it stands, `problem` what is wrong and what to do."""

    def __init__(self, path: Path_, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"{'.'.join(path)}: {problem}" if path else problem)


class Config(BaseModel):
    """Base of every config: strict types, unknown fields refused, immutable. Lists become tuples."""

    model_config = ConfigDict(
        # Deferred: most of them are parts of another, which builds them itself.
        defer_build=True,
        strict=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
    )

    def __init__(self, /, **data: Any) -> None:  # of strangers' data, a field may be called `self`
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise _describe(error, type(self), data) from None

    @model_validator(mode="before")
    @classmethod
    def _as_people_write(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        tuples = {key: _tuples(value) for key, value in data.items()}
        return {key: _kinds(value) if key in _named(cls) else value for key, value in tuples.items()}

    def arguments(self) -> dict[str, Any]:
        """The fields as keyword arguments (nested configs stay configs); `kind` left out."""
        return {name: getattr(self, name) for name in type(self).model_fields if name != "kind"}

    def to_dict(self, defaults: bool = True) -> dict[str, Any]:
        """Plain JSON-able data. `defaults=False` leaves out fields at their default, but keeps every `kind`."""
        return _dump(self, defaults)

    def replace(self, **changes: Any) -> Self:
        """A copy with `changes` applied, validated again."""
        return type(self)(**{**{name: getattr(self, name) for name in self.model_fields_set}, **changes})


def _tuples(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value


@cache
def _named(config: type[Config]) -> frozenset[str]:
    """The fields that hold configs of several kinds and no text: `objective: wasserstein` can only mean a kind."""
    found = {name: list(_leaves(field.annotation)) for name, field in config.model_fields.items()}
    return frozenset(
        name
        for name, leaves in found.items()
        if any("kind" in leaf.model_fields for leaf in leaves if _is_config(leaf)) and not {str, Literal} & set(leaves)
    )


def _leaves(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is None or origin is Literal:
        yield origin or annotation
    else:
        for part in get_args(annotation)[: 1 if origin is Annotated else None]:
            yield from _leaves(part)


def _is_config(leaf: Any) -> bool:
    return isinstance(leaf, type) and issubclass(leaf, Config)


def _kinds(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_kinds(item) for item in value)
    return {"kind": value} if isinstance(value, str) else value


def _dump(value: Any, defaults: bool) -> Any:
    if isinstance(value, Config):
        kept = {}
        for name, field in type(value).model_fields.items():
            given = getattr(value, name)
            default = field.get_default(call_default_factory=True)
            if defaults or name == "kind" or field.is_required() or given != default:
                kept[name] = _dump(given, defaults)
        return kept
    if isinstance(value, (list, tuple)):
        return [_dump(item, defaults) for item in value]
    if isinstance(value, Mapping):
        return {key: _dump(item, defaults) for key, item in value.items()}
    return value


def nearest(name: str, names: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` when something near exists, else the names themselves where a line can hold them."""
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; choose from: {', '.join(names)}" if 0 < len(names) <= 40 else ""


def _describe(error: ValidationError, config: type[Config], data: Mapping[str, Any]) -> ConfigError:
    first, *others = error.errors(include_url=False)
    inner = first.get("ctx", {}).get("error")
    where = _written(data, first["loc"], first["type"] in ("missing", "extra_forbidden"))
    kind = first["type"]
    if isinstance(inner, ConfigError):
        return ConfigError(where + inner.path, inner.problem)
    if kind == "extra_forbidden":
        return ConfigError(where, f"no such field{nearest(where[-1], config.model_fields)}")
    if kind == "missing":
        return ConfigError(where, "required, but not given")
    if kind == "union_tag_invalid":
        tags = [tag.strip("' ") for tag in first["ctx"]["expected_tags"].split(",")]
        return ConfigError(
            (*where, "kind"), f"unknown kind '{first['ctx']['tag']}'{nearest(str(first['ctx']['tag']), tags)}"
        )
    if kind == "union_tag_not_found":
        return ConfigError(where, "needs a `kind`")
    if kind == "value_error":
        return ConfigError(where, str(inner))
    # A union has one error a member.
    same = [other["msg"] for other in others if _written(data, other["loc"], False) == where]
    wanted = " or ".join(dict.fromkeys([first["msg"], *same])).replace(" or Input should be", " or")
    return ConfigError(where, f"{wanted[0].lower()}{wanted[1:]}, got {first['input']!r}")


def _written(data: Any, loc: tuple[str | int, ...], is_field: bool) -> Path_:
    """The parts of pydantic's `loc` that stand in `data`; it adds tags and names of union members between them."""
    kept: list[str] = []
    for i, part in enumerate(loc):
        inside = (isinstance(data, Mapping) and part in data) or (
            isinstance(data, (list, tuple)) and isinstance(part, int) and part < len(data)
        )
        if inside:
            data = data[part]
        if inside or (is_field and i == len(loc) - 1):
            kept.append(str(part))
    return tuple(kept)


def parse(config: type[T], data: Mapping[str, Any], source: str | None = None) -> T:
    """Build `config` from plain data. Raises `ConfigError`, its one line headed by `source`."""
    try:
        return config(**data)
    except ConfigError as error:
        if source is None:
            raise
        raise ConfigError((), f"{source}: {error}") from None


def read_yaml(path: Path | str) -> dict[str, Any]:
    """A YAML mapping from a file. Raises `FileNotFoundError`, or `ConfigError` where it is none or too much."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no config file at {path}")
    return _read(Path(path), text.parse_yaml, 4 * text.MOST_YAML, "`field: value` lines")


def read_json(path: Path | str) -> dict[str, Any]:
    """A JSON object from a file, such as a config.json.

    Raises `FileNotFoundError`, or `ConfigError`, one line headed by the file: where it is no JSON object or no text,
    names a field twice, is nested deeper than 64 levels, larger than 8 MiB or has whole numbers of more than 63 bits.
    """
    return _read(Path(path), text.parse_json, text.MOST_JSON, "a JSON object")


def _read(path: Path, parse: Callable[[str], Any], most: int, wanted: str) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if path.stat().st_size > most:
        raise ConfigError((), f"{path} has {path.stat().st_size:,} bytes; the limit is {most:,}")
    try:
        data = parse(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError((), f"{path}: no text in UTF-8 (byte {error.start})") from None
    except ValueError as error:
        raise ConfigError((), f"{path}: {error}") from None
    if not isinstance(data, dict):
        found = "nothing" if data is None else type(data).__name__
        raise ConfigError((), f"{path}: expected {wanted}, found {found}")
    return data


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Copy of `data` with `a.b.0.c=value` applied; values are YAML. Raises `ConfigError` for a malformed override."""
    result = _plain(data)
    for override in overrides:
        key, separator, written = override.partition("=")
        if not separator or not key:
            raise ConfigError((), f"override '{override}' is not of the form path=value, for example steps=1000")
        try:
            value = text.parse_yaml(written) if written else None
        except ValueError as error:
            raise ConfigError((), f"override '{override}': {error}") from None
        _assign(result, key.split("."), value, key)
    return result


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _assign(data: Any, parts: list[str], value: Any, key: str) -> None:
    *parents, last = parts
    for part in parents:
        if isinstance(data, list):
            data = data[_index(data, part, key)]
        elif isinstance(data, dict):
            if not isinstance(data.get(part), (dict, list)):
                data[part] = {}
            data = data[part]
        else:
            raise ConfigError((key,), f"'{part}' stands inside a plain value; nothing can be set there")
    if isinstance(data, list):
        data[_index(data, last, key)] = value
    elif isinstance(data, dict):
        data[last] = value
    else:
        raise ConfigError((key,), f"'{last}' stands inside a plain value; nothing can be set there")


def _index(data: list[Any], part: str, key: str) -> int:
    if not part.isdigit() or int(part) >= len(data):
        raise ConfigError((key,), f"'{part}' is not an entry of a list of {len(data)} (entries are numbered from 0)")
    return int(part)


class Share(float):
    """A share of a run, 0.0 to 1.0; `in_steps` makes it an optimizer step once the length of the run is known."""


Step = Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, le=1), AfterValidator(Share)]
"""an optimizer step (a whole number), or a share of the run (0.0 to 1.0, written with a point)"""


def in_steps(value: Any, steps: int) -> Any:
    """A config, or part of one, with every `Share` turned into a step of a run of `steps`, and validated again."""
    if isinstance(value, Share):
        return round(value * steps)
    if isinstance(value, tuple):
        return tuple(in_steps(item, steps) for item in value)
    if isinstance(value, Mapping):
        return {name: in_steps(item, steps) for name, item in value.items()}
    return type(value)(**fields_in_steps(value, steps)) if isinstance(value, Config) else value


def fields_in_steps(config: Config, steps: int) -> dict[str, Any]:
    """The fields of a config as `in_steps` gives them. Raises `ConfigError` where they no longer fit together."""
    fields = {}
    for name in type(config).model_fields:
        try:
            fields[name] = in_steps(getattr(config, name), steps)
        except ConfigError as error:
            raise ConfigError((name, *error.path), error.problem) from None
    return fields


class ScheduleCurve(Config):
    """A value that moves from `begin` to `end` over a span of a run, and stays there."""

    kind: Literal["linear", "cosine", "exponential"] = "linear"
    begin: float
    """value up to the first step of the span"""
    end: float
    """value from the last step of the span on"""
    over: tuple[Step, Step]
    """first and last step of the span; a number with a point is a share of the run: [100, 1.0] lasts to its end"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        first, last = self.over
        if isinstance(first, float) == isinstance(last, float) and first > last:
            raise ConfigError(("over",), f"needs a first step and a later one, got {list(self.over)}")
        if self.kind == "exponential" and (self.begin <= 0 or self.end <= 0):
            raise ConfigError((), "an exponential schedule needs positive begin and end")
        return self

    def at(self, step: int) -> float:
        """The value at optimizer step `step` (0 = first). Raises `ValueError` while the span has shares of a run."""
        first, last = self.over
        if isinstance(first, float) or isinstance(last, float):
            raise ConfigError(("over",), f"{list(self.over)} has shares of a run whose steps are not known: use steps")
        # Shares of a very short run can meet in one step: there the value jumps.
        t = min(max((step - first) / (last - first), 0.0), 1.0) if first < last else float(step >= last)
        if self.kind == "linear":
            return self.begin + (self.end - self.begin) * t
        if self.kind == "cosine":
            return self.end + (self.begin - self.end) * 0.5 * (1 + math.cos(math.pi * t))
        return self.begin * (self.end / self.begin) ** t


class ScheduleChain(Config):
    """Curves one after the other: each holds from the first step of its span (warm-up, then decay)."""

    kind: Literal["chain"] = "chain"
    parts: Annotated[tuple[ScheduleCurve, ...], Field(min_length=1)]

    def at(self, step: int) -> float:
        current = self.parts[0]
        for part in self.parts[1:]:
            if step >= part.over[0]:
                current = part
        return current.at(step)


def _schedule_form(value: Any) -> str:
    if isinstance(value, Mapping):
        return "chain" if value.get("kind") == "chain" else "curve"
    if isinstance(value, ScheduleChain):
        return "chain"
    return "curve" if isinstance(value, ScheduleCurve) else "number"


Schedule = Annotated[
    Annotated[float, Tag("number")] | Annotated[ScheduleCurve, Tag("curve")] | Annotated[ScheduleChain, Tag("chain")],
    Discriminator(_schedule_form),
]
"""a number, `{kind, begin, end, over: [a, b]}`, or `{kind: chain, parts: [...]}`"""


def _not_negative(schedule: Any) -> Any:
    parts = schedule.parts if isinstance(schedule, ScheduleChain) else (schedule,)
    ends = [end for part in parts for end in ((part.begin, part.end) if isinstance(part, ScheduleCurve) else (part,))]
    if min(ends) < 0:
        raise ValueError(f"must not be negative, got {min(ends)}")
    return schedule


Rate = Annotated[Schedule, AfterValidator(_not_negative)]
"""a schedule that is nowhere negative"""


def schedule_value(schedule: Schedule, step: int) -> float:
    """The value of a schedule at an optimizer step: a pure function, so that resuming needs no counter."""
    return schedule.at(step) if isinstance(schedule, (ScheduleCurve, ScheduleChain)) else float(schedule)
