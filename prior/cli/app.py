"""The verbs of `tvq-prior`, joined."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from prior.cli.evaluate import evaluate
from prior.cli.fields import fields
from prior.cli.models import models
from prior.cli.sample import sample
from prior.cli.train import train
from tokenizers_vq.cli.common import print_version, run_app

app = typer.Typer(
    help="Priors over the codes of an image tokenizer: trained, measured, sampled for new images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (models, fields, train, evaluate, sample):
    app.command()(verb)


@app.callback()
def _options(
    debug: bool = typer.Option(False, "--debug", help="show the traceback of an error"),
    version: bool = typer.Option(False, "--version", help="print the version", is_eager=True, callback=print_version),
) -> None:
    pass  # `run_app` reads --debug wherever it stands


def main(argv: Sequence[str] | None = None) -> None:
    """Run `tvq-prior`; exits with 0, 2 for what the caller can put right, or 128 + the signal that stopped training."""
    run_app(app, "tvq-prior", argv)
