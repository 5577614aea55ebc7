"""`tvq-prior evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenizers_vq.cli import common


def evaluate(
    model: common.Model,
    codes: Annotated[
        str | None, typer.Argument(help="folder of codes; unset, or the run's own: the codes that it held out")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write")] = None,
    batch_size: common.BatchSize = 32,
    device: common.Device = "auto",
    as_json: common.AsJson = False,
) -> None:
    """Measure a prior on held-out codes, in bits per token, beside the entropy of the codes."""
    import json

    from rich.console import Console
    from rich.table import Table

    from prior.evaluation import evaluate as measure
    from tokenizers_vq.folders import write_atomically
    from tokenizers_vq.text import cell

    found = measure(model, codes, device=device, batch_size=batch_size)
    per_image = found.tokens // found.images
    result = {"model": model, "codes": codes, **found._asdict(), "bits_per_image": found.bits_per_token * per_image}
    what = "cross-entropy" if found.exact else "at most: a bound of the cross-entropy"
    rows = [
        ("Prior", found.bits_per_token, f"{what}, bits per token"),
        ("Prior, an image", found.bits_per_token * per_image, f"bits, {per_image} tokens"),
    ]
    if found.unigram is not None:
        rows.append(("Unigram", found.unigram, "bits per token, by the frequencies of the training codes"))
    for stream, entropy in enumerate(found.entropies):
        which = f", stream {stream}" if len(found.entropies) > 1 else ""
        rows.append((f"Entropy{which}", entropy, "bits per token, by the frequencies of these codes"))
    table = Table("what", "value", "how", title=cell(f"{model}, {found.images:,} images"), title_justify="left")
    for name, value, how in rows:
        table.add_row(name, f"{value:.3f}", how)
    if as_json:
        common.print_json(result)
    else:
        Console().print(table)
        print(found.words())
    if out is not None:
        write_atomically(out, json.dumps(result, indent=2) + "\n")
        common.note(f"wrote {out}")
