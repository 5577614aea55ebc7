"""`tvq report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenizers_vq.cli import common, groups

if TYPE_CHECKING:
    from tokenizers_vq.evaluation.curves import History


def report(
    model: common.Model,
    out: Annotated[Path, typer.Option(help="folder for report.html, report.json and pictures")],
    data: Annotated[str | None, typer.Option(help="images; unset: the test split of the run's data")] = None,
    batch_size: common.BatchSize = 32,
    *,
    judging: groups.Judging,
    reading: groups.Reading,
    computing: groups.Computing,
) -> None:
    """Write one page on a tokenizer: how its codebook is used, what it reconstructs, how well."""
    from tokenizers_vq import evaluation
    from tokenizers_vq.data.loading import evaluation_batches

    options = judging.options()
    config = common.choose_data(data, model, **reading._asdict())
    encoder = common.open_encoder(model, *computing)
    batches = evaluation_batches(
        config, image_size=encoder.image_size, channels=encoder.channels, batch_size=batch_size
    )
    described = common.describe(config, batches)
    page = evaluation.write_report(
        encoder.tokenizer,
        common.told(batches, "evaluated"),
        out,
        title=f"Tokenizer {Path(model).name}",
        data_description=described.get("source", config.path),
        data=described,
        autocast=encoder.autocast,
        history=_history(Path(model)),
        **options,
    )
    common.name_broken(batches.broken)
    print(page)


def _history(run: Path) -> History | None:
    """The log of a run, and what the doctor says of it; None for a model without one."""
    from tokenizers_vq.config import parse, read_yaml
    from tokenizers_vq.evaluation.curves import History
    from tokenizers_vq.training.health import diagnose
    from tokenizers_vq.training.recipe import Recipe
    from tokenizers_vq.training.tracking import read_log

    if not (run / "recipe.yaml").is_file() or not (run / "log.jsonl").is_file():
        return None
    recipe, lines = parse(Recipe, read_yaml(run / "recipe.yaml"), str(run / "recipe.yaml")), read_log(run / "log.jsonl")
    chance = None if recipe.adversary is None else recipe.adversary.objective.chance
    terms = tuple(term.kind for term in recipe.losses)
    return History(run.name, lines, diagnose(recipe, lines) if lines else [], terms, chance)
