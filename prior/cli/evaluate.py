"""`tvq-prior evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenizers_vq.cli import common, groups

MEASURES = "What is measured"


def evaluate(
    model: common.Model,
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FIELD=VALUE]...", help="fields of the sampler, such as top_p=0.9 guidance=3"),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="real images with their classes or captions; half are measured as if they were samples"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder for evaluation.json and evaluation.html")] = None,
    count: Annotated[
        int,
        typer.Option(
            min=6, help="how many samples at most; twice as many real images are read", rich_help_panel=MEASURES
        ),
    ] = 500,
    backbone: Annotated[
        str, typer.Option(help="timm backbone whose features are compared", rich_help_panel=MEASURES)
    ] = "tf_efficientnet_lite0",
    layer: Annotated[
        str, typer.Option(help="layer of that backbone, such as blocks.4", rich_help_panel=MEASURES)
    ] = "head",
    curves: Annotated[
        bool,
        typer.Option(
            "--curves",
            help="also measure samples with other temperatures, top-p and guidance",
            rich_help_panel=MEASURES,
        ),
    ] = False,
    training: Annotated[
        str | None,
        typer.Option(
            help="images that the prior was trained on, to look for copies; unset: those of the run's codes",
            rich_help_panel=MEASURES,
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="RUN|MODEL", help="the tokenizer, if it has moved; only the one of the prior itself fits"),
    ] = None,
    batch_size: common.BatchSize = 32,
    device: common.Device = "auto",
    *,
    reading: groups.Reading,
) -> None:
    """Compare samples of a prior with as many real images. (`score` measures how well it predicts codes.)"""
    from rich.console import Console
    from rich.table import Table

    from tokenizers_vq.config import apply_overrides

    for given in settings or ():
        if "=" not in given:
            raise ValueError(f"'{given}' is not FIELD=VALUE: codes are measured by `tvq-prior score {model} {given}`")
    if data is None:
        raise ValueError(f"give real images to judge by, --data PATH; for bits a code, `tvq-prior score {model}`")
    from prior.evaluation import evaluate as judge
    from prior.evaluation_page import rows, write_evaluation
    from tokenizers_vq.data import DataConfig
    from tokenizers_vq.text import cell

    found = judge(
        model,
        DataConfig(path=data, **reading._asdict()),
        count=count,
        sampler=apply_overrides({}, settings or []),
        backbone=backbone,
        layer=layer,
        curve=None if curves else (),
        training=None if training is None else DataConfig(path=training),
        tokenizer=tokenizer,
        device=device,
        batch_size=batch_size,
    )
    title = f"{model}, {found.definition['samples']:,} samples"
    table = Table("measure", "samples", "real images", "", title=cell(title), title_justify="left")
    for name, value, real, better, _ in rows(found):
        table.add_row(name, value, real, better)
    Console().print(table)
    for point in found.curve:
        quality = f"precision {point.precision:.3f}, recall {point.recall:.3f}"
        print(f"{point.setting}: distance {point.distance:.4g}, {quality}")
    for text in (*found.notes, *(f"{name} left out: {why}" for name, why in found.skipped.items())):
        common.note(text)
    if out is not None:
        page = write_evaluation(found, out, title=title)
        common.note(f"wrote {page}")
