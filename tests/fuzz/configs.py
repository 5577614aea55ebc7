"""Mutated configs of models and recipes, YAML, JSON and code layouts: `python -m tests.fuzz.configs --count 100000`."""

from __future__ import annotations

import copy
import json
import os
import random
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from tests.fuzz import harness
from tests.fuzz.checkpoints import mutated
from tests.fuzz.layouts import change_value, odd, prepare
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.config import read_json, read_yaml
from tokenizers_vq.models import PRESETS, read_tokenizer_config
from tokenizers_vq.training.recipe import RECIPES, load_recipe

DOCUMENTED = (ValueError, FileNotFoundError)
_WORDS = (
    "&a",
    "*a",
    "<<: *a",
    "{",
    "}",
    "[",
    "]",
    "- ",
    ": ",
    "!!int ",
    "!!set ",
    "? ",
    "|\n",
    "1e400",
    ".inf",
    "0x",
    "1:2",
)


class Input(NamedTuple):
    """What is read, and as what."""

    kind: str
    content: Any


@cache
def seeds() -> tuple[Input, ...]:
    """Every preset and recipe, layouts of several grids and levels."""
    prepare()
    presets = [read_yaml(path) for path in sorted(PRESETS.glob("*.yaml"))]
    recipes = [path.read_bytes() for path in sorted(RECIPES.glob("*.yaml"))]
    layouts = [
        CodeLayout(((4, 4),), 1, (16,)),
        CodeLayout(((2, 3), (4, 6)), 2, (8, 8, 16, 16)),
        CodeLayout(((32,),), 1, (1024,)),
    ]
    return (
        *(Input("model", preset) for preset in presets),
        *(Input("json", json.dumps(preset).encode()) for preset in presets[:5]),
        *(Input("recipe", recipe) for recipe in recipes),
        *(Input("parsed recipe", yaml.safe_load(recipe)) for recipe in recipes),
        *(Input("layout", layout.to_dict()) for layout in layouts for _ in range(5)),
    )


def make(number: int) -> Input:
    """A seed with a few values, fields or bytes changed."""
    draw = random.Random(number)
    kind, content = seeds()[number % len(seeds())]
    content = copy.deepcopy(content)
    if isinstance(content, bytes):
        content = mutated(content, draw, [word.encode() for word in _WORDS])
        return Input(kind, content)
    for _ in range(draw.choice((1, 1, 2, 3, 6))):
        if content:
            change_value(content, draw)
        if draw.random() < 0.05:
            content[draw.choice(("kind", "model", "x", "levels", "grids"))] = odd(draw)
    return Input(kind, content)


def call(value: Input) -> None:
    """Read it as the verbs do; what is a model's config is built without memory, and must then say its codes."""
    kind, content = value
    path = Path(tempfile.gettempdir()) / f"config-{os.getpid()}.yaml"
    if kind == "layout":
        layout = CodeLayout.from_dict(content)
        if layout.length < 10_000:
            layout.unflatten(torch.zeros(1, layout.length, dtype=torch.int64))
    elif kind in ("recipe", "parsed recipe"):
        path.write_bytes(content if kind == "recipe" else yaml.safe_dump(content).encode())
        _build(load_recipe(path, ["data=somewhere"]).model)
    else:
        if kind == "json":
            path.write_bytes(content)
            content = read_json(path)
        _build(read_tokenizer_config(content, "config.json"))


def _build(config: Any) -> None:
    with torch.device("meta"):
        tokenizer = config.build()
    tokenizer.code_layout()


if __name__ == "__main__":
    harness.main(make, call, DOCUMENTED, "configs")
