"""The verbs of `tvq-prior`, joined."""

from __future__ import annotations

from collections.abc import Sequence

from prior.cli.compress import compress, decompress
from prior.cli.convert import convert
from prior.cli.evaluate import evaluate
from prior.cli.export import export
from prior.cli.fields import fields
from prior.cli.info import info
from prior.cli.inpaint import inpaint
from prior.cli.models import models
from prior.cli.plan import plan
from prior.cli.sample import sample
from prior.cli.score import score
from prior.cli.train import train
from tokenizers_vq.cli.common import make_app, run_app
from tokenizers_vq.cli.groups import expanded

app = make_app(
    "Priors over the codes of an image tokenizer: trained, measured, sampled for new images.",
    [
        models,
        info,
        fields,
        plan,
        train,
        score,
        expanded(evaluate),
        sample,
        inpaint,
        compress,
        decompress,
        convert,
        export,
    ],
    open_to=[sample, inpaint],
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run `tvq-prior`; exits with 0, 2 for what the caller can put right, or 128 + the signal that stopped training."""
    run_app(app, "tvq-prior", argv)
