"""One page on a tokenizer."""

from __future__ import annotations

from pathlib import Path

from typing_extensions import Unpack

from tokenizers_vq import evaluation
from tokenizers_vq.config import parse, read_yaml
from tokenizers_vq.data.loading import evaluation_batches
from tokenizers_vq.evaluation.curves import History
from tokenizers_vq.tokenizer import Tokenizer
from tokenizers_vq.training.health import diagnose
from tokenizers_vq.training.recipe import Recipe
from tokenizers_vq.training.tracking import read_log
from tokenizers_vq.verbs.opening import (
    Data,
    Model,
    choose_data,
    counted,
    describe,
    model_name,
    name_broken,
    open_encoder,
)
from tokenizers_vq.verbs.options import Computing, Judging, Measuring, Progress, Reading, choose_judges, split_options


def report(
    model: Model,
    out: Path | str,
    data: Data | None = None,
    *,
    title: str | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
    **options: Unpack[Measuring],
) -> Path:
    """Write one page on a tokenizer into the folder `out`: how its codebook is used, what it reconstructs, how well.

    Beside `report.html`, whose path is returned, stand `report.json` and the pictures. Of a run the page also shows the
    curves and what the doctor found. `title`: of the page; all others as in `evaluate`, whose errors it raises.
    """
    reading, judging, computing = split_options(options, Reading, Judging, Computing)
    judges = choose_judges(**judging)
    config = choose_data(data, model, **reading)
    encoder = open_encoder(model, **computing)
    batches = evaluation_batches(
        config, image_size=encoder.image_size, channels=encoder.channels, batch_size=batch_size
    )
    described = describe(config, batches)
    page = evaluation.write_report(
        encoder.tokenizer,
        counted(batches, progress),
        out,
        title=title or f"Tokenizer {Path(model_name(model)).name}",
        data_description=described["source"],
        data=described,
        autocast=encoder.autocast,
        history=None if isinstance(model, Tokenizer) else _history(Path(model)),
        **judges,
    )
    name_broken(batches.broken)
    return page


def _history(run: Path) -> History | None:
    """The log of a run, and what the doctor says of it; None for a model without one."""
    if not (run / "recipe.yaml").is_file() or not (run / "log.jsonl").is_file():
        return None
    recipe, lines = parse(Recipe, read_yaml(run / "recipe.yaml"), str(run / "recipe.yaml")), read_log(run / "log.jsonl")
    chance = None if recipe.adversary is None else recipe.adversary.objective.chance
    terms = tuple(term.kind for term in recipe.losses)
    return History(run.name, lines, diagnose(recipe, lines) if lines else [], terms, chance)
