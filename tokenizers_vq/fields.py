"""What the fields of configs are: names, types, defaults and help, read from the configs themselves."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import sys
import types
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic_core import PydanticUndefined

from tokenizers_vq.config import Config, ConfigError, Schedule, Step, nearest

_SPOKEN = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "NoneType": "null"}


class Field(NamedTuple):
    """One field of a config."""

    name: str
    type: str
    """what may be given, in words"""
    default: str
    """as YAML; `required` where there is none"""
    help: str


class Section(NamedTuple):
    """A config that may stand at a path: its kind, what it is, its fields."""

    kind: str | None
    """value of `kind`, where several configs may stand there"""
    about: str
    """first line of the docstring"""
    fields: list[Field]


def sections(config: type[Config], path: str = "") -> list[Section]:
    """What may stand at the dotted `path` below `config`: one section a kind.

    Numbers of list entries may be left out (`losses` and `losses.0` are one), and a kind may be named to get its own
    (`model.quantizer.fsq`). Raises `ConfigError` for a path that does not exist, with the nearest name.
    """
    found: list[type[Config]] = [config]
    walked: list[str] = []
    for part in [part for part in path.split(".") if part and not part.isdigit()]:
        by_kind = {kind: each for each in found if (kind := _kind(each)) is not None}
        fields = {name for each in found for name in each.model_fields}
        if part in by_kind and part not in fields:
            found = [by_kind[part]]
        elif part in fields:
            annotations = [each.model_fields[part].annotation for each in found if part in each.model_fields]
            below = list(dict.fromkeys(inner for annotation in annotations for inner in configs_of(annotation)))
            if not below:
                return [section(each, only=part) for each in found if part in each.model_fields]
            found = below
        else:
            where = ".".join(walked) or "the top"
            raise ConfigError((path,), f"no field '{part}' at {where}{nearest(part, fields | set(by_kind))}")
        walked.append(part)
    return [section(each) for each in found]


def commented(config: Config, indent: int = 0) -> str:
    """`config` as YAML, every field with its help behind it: a file that can be read again."""
    lines: list[str] = []
    for name in type(config).model_fields:
        value = getattr(config, name)
        said = _help(type(config), name)
        comment = f"  # {said}" if said else ""
        lines += _lines(name, value, comment, indent)
    return "".join(lines)


def _lines(name: str, value: Any, comment: str, indent: int) -> Iterator[str]:
    space = " " * indent
    if isinstance(value, Config):
        yield f"{space}{name}:{comment}\n"
        yield commented(value, indent + 2)
    elif isinstance(value, tuple) and value and all(isinstance(item, Config) for item in value):
        yield f"{space}{name}:{comment}\n"
        for item in value:
            body = commented(item, indent + 4)
            yield f"{space}  - {body[indent + 4 :]}"
    elif isinstance(value, Mapping) and any(isinstance(item, Config) for item in value.values()):
        yield f"{space}{name}:{comment}\n"
        for key, item in value.items():
            yield from _lines(key, item, "", indent + 2)
    else:
        yield f"{space}{name}: {_plain(value)}{comment}\n"


def _plain(value: Any) -> str:
    if isinstance(value, Config):
        value = value.to_dict(defaults=False)
    if isinstance(value, (tuple, list)):
        value = [item.to_dict(defaults=False) if isinstance(item, Config) else item for item in value]
    text = yaml.safe_dump(json.loads(json.dumps(value)), default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def section(config: type[Config], only: str | None = None) -> Section:
    """What `config` is and what its fields are; `only`: of one field."""
    about = (config.__doc__ or "").strip().splitlines()
    shown = {name: field for name, field in config.model_fields.items() if name != "kind" and only in (None, name)}
    fields = [
        Field(name, _words(field.annotation), _default(field), _help(config, name)) for name, field in shown.items()
    ]
    return Section(_kind(config), about[0] if about else "", fields)


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "required" if value is PydanticUndefined else _plain(value)


def _help(config: type[Config], name: str) -> str:
    """What the config says of its field: `Field(description=)`, else the text below it, in it or in a base."""
    said = config.model_fields[name].description
    texts = (_texts(base.__module__).get(f"{base.__qualname__}.{name}") for base in config.__mro__)
    return " ".join((said or next((text for text in texts if text), "")).split())


@cache
def _texts(module: str) -> dict[str, str]:
    """The text below each annotated name in the classes of a module, by `Class.name`.

    Read when asked for: pydantic would read the sources of all configs at import, a tenth of a second.
    """
    source = inspect.getsource(sys.modules[module]) if getattr(sys.modules[module], "__file__", None) else ""
    found: dict[str, str] = {}
    waiting: list[tuple[str, ast.AST]] = [("", ast.parse(source))]
    while waiting:
        prefix, node = waiting.pop()
        body = getattr(node, "body", [])
        waiting += [(f"{prefix}{part.name}.", part) for part in body if isinstance(part, ast.ClassDef)]
        for field, below in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and (text := _text(below)):
                found[f"{prefix}{field.target.id}"] = text
    return found


def _text(node: ast.AST) -> str | None:
    value = node.value if isinstance(node, ast.Expr) else None
    return inspect.cleandoc(value.value) if isinstance(value, ast.Constant) and isinstance(value.value, str) else None


def _kind(config: type[Config]) -> str | None:
    field = config.model_fields.get("kind")
    values = get_args(field.annotation) if field is not None else ()
    return str(values[0]) if len(values) == 1 else None


def configs_of(annotation: Any) -> list[type[Config]]:
    """The configs that an annotation admits, in its order, through unions, lists and mappings."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    if get_origin(annotation) is Literal:
        return []
    return list(dict.fromkeys(inner for part in get_args(annotation) for inner in configs_of(part)))


def _words(annotation: Any) -> str:
    """An annotation as a person would say it."""
    if annotation == Schedule:
        return "number or schedule"
    if annotation == Step:
        return "step or share of the run"
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(parts[0])
    if origin is Literal:
        return " | ".join(map(str, parts))
    if origin in (Union, types.UnionType):
        if _schedule(annotation):
            return "number or schedule"
        return " or ".join(dict.fromkeys(_words(part) for part in parts))
    if origin in (tuple, list):
        inner = " or ".join(dict.fromkeys(_words(part) for part in parts if part is not Ellipsis))
        return f"list of {inner}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"mapping of {_words(parts[-1])}"
    if isinstance(annotation, type) and issubclass(annotation, Config):
        kind = _kind(annotation)
        return kind if kind is not None else "fields of its own"
    return _SPOKEN.get(getattr(annotation, "__name__", ""), str(annotation))


def _schedule(annotation: Any) -> bool:
    names = {getattr(part, "__name__", "") for part in configs_of(annotation)}
    return names == {"ScheduleCurve", "ScheduleChain"}
