"""The verbs of `tvq`, joined."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers_vq.cli.ablate import ablate
from tokenizers_vq.cli.common import make_app, run_app
from tokenizers_vq.cli.compare import compare
from tokenizers_vq.cli.convert import convert
from tokenizers_vq.cli.decode import decode
from tokenizers_vq.cli.doctor import doctor
from tokenizers_vq.cli.encode import encode
from tokenizers_vq.cli.evaluate import evaluate
from tokenizers_vq.cli.export import export
from tokenizers_vq.cli.fields import fields
from tokenizers_vq.cli.groups import expanded
from tokenizers_vq.cli.info import info
from tokenizers_vq.cli.models import models
from tokenizers_vq.cli.page import app as page
from tokenizers_vq.cli.plan import plan
from tokenizers_vq.cli.probe import probe
from tokenizers_vq.cli.recipes import recipes
from tokenizers_vq.cli.reconstruct import reconstruct
from tokenizers_vq.cli.report import report
from tokenizers_vq.cli.serve import serve
from tokenizers_vq.cli.train import train

_VERBS = (
    models,
    info,
    recipes,
    fields,
    plan,
    train,
    evaluate,
    reconstruct,
    encode,
    decode,
    report,
    doctor,
    compare,
    probe,
    ablate,
    page,
    convert,
    export,
    serve,
)
app = make_app(
    "Image tokenizers: images to discrete codes and back, trained, measured and modelled.",
    [expanded(verb) for verb in _VERBS],
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run `tvq`; exits with 0, 2 for what the caller can put right, or 128 + the signal that stopped training."""
    run_app(app, "tvq", argv)
