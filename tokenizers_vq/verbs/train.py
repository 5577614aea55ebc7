"""Train a tokenizer by a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers_vq.training import runs
from tokenizers_vq.training.recipe import Recipe, make_recipe
from tokenizers_vq.verbs.options import Progress


def train(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    out: Path | str,
    *overrides: str,
    init_from: str | Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Path:
    """Train by a recipe into the folder `out`, going on where it holds a run; returns the folder, which `load` takes.

    `recipe`: a name (`list_recipes`), a YAML file, its fields as a dict, or a `Recipe`. `overrides`: `path=value` as
    the command takes them, such as `"data=photos/"` and `"model.quantizer.num_codes=4096"`. `init_from`: a model whose
    weights a new run begins with. `progress` is called with (steps done, steps of the run) after every step; the
    figures are in `log.jsonl`, and logged every `log_every` steps.

    Raises `ValueError` for what is no recipe, where `out` holds another run or other data, and
    `training.loop.NonFiniteLossError` where the loss does; `training.loop.Interrupted` after Ctrl-C, once the run was
    saved: the same call resumes it.

    ```python
    tvq.load(tvq.train("vqgan-tiny-64", "runs/a", "data=photos/", "steps=2000"))
    ```
    """
    given = {} if progress is None else {"progress": progress}
    out = Path(out)
    runs.train(make_recipe(recipe, overrides), out, device=device, init_from=init_from, **given)
    return out
