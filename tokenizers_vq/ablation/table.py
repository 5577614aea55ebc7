"""A table of an ablation: which rows, of which recipe, at which seeds, and what judges them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import yaml
from pydantic import Field, field_validator, model_validator
from torch import nn
from typing_extensions import Self

from tokenizers_vq.ablation.judges import parse_judge
from tokenizers_vq.config import Config, ConfigError, apply_overrides, nearest, parse, read_yaml
from tokenizers_vq.data import DataConfig
from tokenizers_vq.devices import without_memory
from tokenizers_vq.training.recipe import Recipe, load_recipe

MUST_AGREE = ("steps", "batch_size", "data", "model.image_size", "model.channels")
"""fields of the recipes that all rows share, or their figures could not be compared"""
TOLERANCE = 0.05
"""share by which the weights of a row's encoder and decoder may differ from the first row's before the table says so"""

Overrides = tuple[str, ...]


class RowConfig(Config):
    """What one row changes; a plain list in the file is its overrides."""

    recipe: str | None = None
    """another recipe than the table's: name or YAML file"""
    model: str | None = None
    """another model preset than the recipe's"""
    overrides: Overrides = ()
    """`path=value` for this row; quote those that hold `: `"""
    note: str = ""
    """a remark that is shown beside the row"""


class TestConfig(Config):
    """The images that judge; fields left out are the training data's, but for the split."""

    __test__ = False  # no test, whatever pytest thinks of the name

    path: str | None = None
    """folder, parquet or webdataset files, Hub name, or skimage; unset: the training data's"""
    split: str | None = None
    """name of the split; unset: test where no path is given, else as in evaluation"""
    image_column: str | None = None
    """column of the images; unset: the one that holds images"""
    limit: int | None = Field(default=None, ge=8)
    """use this many images, evenly spread"""
    batch_size: int = Field(default=32, ge=1)
    """images at a time"""

    def resolve(self, training: DataConfig) -> DataConfig:
        """The data to evaluate on."""
        own = self.path is not None
        return DataConfig(
            path=self.path or training.path,
            split=self.split if own or self.split is not None else "test",
            image_column=self.image_column if own or self.image_column is not None else training.image_column,
            limit=self.limit,
        )


class TableConfig(Config):
    """An ablation: rows x seeds of one recipe, at equal steps, batch size and data."""

    title: str = "Ablation"
    """heading of the table"""
    recipe: str
    """name or YAML file (beside the table, or from here) that all rows begin with"""
    overrides: Overrides = ()
    """`path=value` common to all rows; quote those that hold `: `"""
    init_from: str | None = None
    """model (name, run or saved folder) whose weights every run begins with; null = all begin untrained"""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1)
    """seeds that every row is trained with"""
    rows: Annotated[dict[str, RowConfig], Field(min_length=1)]
    """name -> overrides, in the order of the table"""
    data: DataConfig | None = None
    """training images of every row (in a file also a path); null = the recipe's"""
    test: TestConfig = TestConfig()
    """images that judge (in a file also a path)"""
    judges: Annotated[Overrides, Field(min_length=2)] | None = None
    """`BACKBONE/LAYER` (Frechet distance of its features) or `lpips/NET`, at least two; null = those at hand"""
    time_against: str | None = None
    """row whose training step takes 1: each row's step is timed in turn with it; null = none is timed"""

    @field_validator("rows", mode="before")
    @classmethod
    def _lists_to_rows(cls, rows: Any) -> Any:
        if not isinstance(rows, Mapping):
            return rows
        return {
            name: {"overrides": row} if isinstance(row, (list, tuple)) else {} if row is None else row
            for name, row in rows.items()
        }

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, row in self.rows.items():
            if not re.fullmatch(r"[\w+-][\w.+-]*", name):
                raise ConfigError(("rows",), f"'{name}' becomes a folder: use letters, digits and - _ . + only")
            for override in row.overrides:
                if override.partition("=")[0] in ("seed", "data", "model"):
                    field = override.partition("=")[0]
                    where = {"seed": "the table's `seeds`", "data": "the table's `data`", "model": "the row's `model`"}
                    raise ConfigError(("rows", name), f"'{override}' is set by {where[field]}")
        if self.time_against is not None and self.time_against not in self.rows:
            raise ConfigError(
                ("time_against",),
                f"the table has no row '{self.time_against}'{nearest(self.time_against, list(self.rows))}",
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(("seeds",), f"each once, got {list(self.seeds)}")
        for judge in self.judges or ():
            parse_judge(judge)
        if sum(judge.startswith("lpips/") for judge in self.judges or ()) > 1:
            raise ConfigError(("judges",), "one LPIPS network at most")
        return self


class Parameters(NamedTuple):
    """How many there are."""

    tokenizer: int
    codebook: int
    """of the tokenizer's, those of its quantizers"""
    discriminator: int
    """0 = none"""

    @property
    def networks(self) -> int:
        """The tokenizer's without the codebook's."""
        return self.tokenizer - self.codebook


class Row(NamedTuple):
    """A row, checked: its recipe at every seed."""

    name: str
    note: str
    recipes: dict[int, Recipe]
    parameters: Parameters
    differs: float
    """share by which the weights of its encoder and decoder differ from the first row's (not the codebook's)"""

    @property
    def recipe(self) -> Recipe:
        """The recipe, whatever the seed."""
        return next(iter(self.recipes.values()))

    @property
    def unequal(self) -> bool:
        """Whether its networks are larger or smaller than the comparison allows."""
        return abs(self.differs) > TOLERANCE


class Plan(NamedTuple):
    """A table whose every run is known to be valid."""

    table: TableConfig
    rows: tuple[Row, ...]
    test: DataConfig

    def folder(self, out: Path, row: str, seed: int) -> Path:
        """Where a run stands."""
        return out / row / f"seed-{seed}"


def load_table(path: Path | str, overrides: Sequence[str] = ()) -> TableConfig:
    """The table of a YAML file. Raises one-line errors with near names.

    `overrides`: `data=PATH`, `test=PATH` and other fields of the table; what is no field of it is a field of every
    row's recipe, such as `steps=100`.
    """
    data = read_yaml(path)
    for name in ("data", "test"):
        if isinstance(data.get(name), str):
            data[name] = {"path": data[name]}
    own: list[str] = []
    common: list[str] = []
    for override in overrides:
        field, _, text = override.partition("=")
        if field in ("data", "test") and isinstance(_value(text), str):
            own.append(f"{field}.path={text}")
        else:
            (own if field.split(".")[0] in TableConfig.model_fields else common).append(override)
    data = apply_overrides(data, own)
    if common:
        data["overrides"] = [*(data.get("overrides") or ()), *common]
    for where, listed in _lists(data):
        for item in listed:
            if isinstance(item, Mapping):
                raise ConfigError((), f"{path}: {where}: put quotes around '{_unquoted(item)}': it holds `: `")
    return parse(TableConfig, data, str(path))


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _lists(data: Mapping[str, Any]) -> list[tuple[str, list[Any]]]:
    rows = data.get("rows")
    found = [("overrides", data.get("overrides"))]
    for name, row in rows.items() if isinstance(rows, Mapping) else ():
        found.append((f"rows.{name}", row.get("overrides") if isinstance(row, Mapping) else row))
    return [(where, listed) for where, listed in found if isinstance(listed, list)]


def _unquoted(item: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in item.items())


def make_plan(table: TableConfig, beside: Path | None = None) -> Plan:
    """Check every run of a table. `beside`: the folder of its file, where recipes of its own may stand.

    Raises `ConfigError` naming the row: for a recipe that is none, and for a row that differs from the first in what
    all must share.
    """
    rows: list[Row] = []
    for name, config in table.rows.items():
        try:
            recipes = {seed: _recipe(table, config, seed, beside) for seed in table.seeds}
            recipe = recipes[table.seeds[0]]
            if rows:
                _agree(rows[0], recipe)
                if table.time_against is not None and recipe.precision != rows[0].recipe.precision:
                    raise ValueError(
                        f"steps in {recipe.precision} and in {rows[0].recipe.precision} cannot be timed in turn: give "
                        "all rows one precision, or time_against=null"
                    )
            parameters = count_parameters(recipe)
        except (ValueError, FileNotFoundError) as error:
            raise ConfigError(("rows", name), str(error)) from None
        first = rows[0].parameters.networks if rows else parameters.networks
        rows.append(Row(name, config.note, recipes, parameters, parameters.networks / first - 1))
    return Plan(table, tuple(rows), table.test.resolve(rows[0].recipe.data))


def _recipe(table: TableConfig, row: RowConfig, seed: int, beside: Path | None) -> Recipe:
    name = row.recipe or table.recipe
    if beside is not None and (beside / name).is_file():
        name = str(beside / name)
    overrides = [*table.overrides, *row.overrides, f"seed={seed}"]
    if row.model is not None:
        overrides.append(f"model={row.model}")
    if table.data is not None:
        overrides.append(f"data={json.dumps(table.data.to_dict(defaults=False))}")
    return load_recipe(name, overrides)


def _agree(first: Row, recipe: Recipe) -> None:
    for field in MUST_AGREE:
        expected, found = (_at(which, field) for which in (first.recipe, recipe))
        if expected != found:
            raise ValueError(
                f"differs from row '{first.name}' in {field} ({_shown(found)}, not {_shown(expected)}): rows are "
                "compared at equal steps, batch size and data"
            )


def _at(recipe: Recipe, field: str) -> Any:
    value: Any = recipe
    for part in field.split("."):
        value = getattr(value, part)
    return value.replace(workers=0) if isinstance(value, DataConfig) else value


def _shown(value: Any) -> Any:
    return json.dumps(value.to_dict(defaults=False)) if isinstance(value, Config) else value


def count_parameters(recipe: Recipe) -> Parameters:
    """Counted without making the networks. Raises `ValueError` where the discriminator cannot judge the images."""
    with without_memory():
        tokenizer = recipe.model.build()
        discriminator = None
        if recipe.adversary is not None:
            discriminator = recipe.adversary.discriminator.build(
                channels=recipe.model.channels, image_size=recipe.model.size
            )
    codebook = 0
    for quantizer in tokenizer.quantizers:  # a codebook of moving averages is a buffer
        unread = getattr(quantizer, "training_state", ())
        codebook += sum(tensor.numel() for name, tensor in quantizer.state_dict().items() if name not in unread)
    networks = _count(tokenizer.encoder) + _count(tokenizer.decoder)
    return Parameters(networks + codebook, codebook, 0 if discriminator is None else _count(discriminator))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def choose_rows(plan: Plan, only: Sequence[str]) -> tuple[Row, ...]:
    """The rows named in `only`, all for none. Raises `ValueError` for a name that the table lacks."""
    names = [row.name for row in plan.rows]
    for name in only:
        if name not in names:
            raise ValueError(f"the table has no row '{name}'{nearest(name, names)}")
    return tuple(row for row in plan.rows if not only or row.name in only)
