"""What losses at the features do to what a linear classifier reads in them.

python examples/ablations/probes.py PHOTOS TEST OUT [PATH=VALUE ...]

PHOTOS and TEST hold classes. Each photograph of PHOTOS is used twice, as it is and with Gaussian noise of deviation
10/255; which of the two, its domain, is the label that `attribute_reversal` unlearns. Three tokenizers of one recipe:
without such a loss, with `attribute_reversal`, with `feature_alignment`. Printed: accuracy of domain and class in TEST
by linear probes, and the PSNR. Stopped and started again, it goes on where it was.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import torch

import tokenizers_vq as tvq
from tokenizers_vq.data import DataConfig
from tokenizers_vq.data.loading import evaluation_batches
from tokenizers_vq.evaluation import evaluate, probe
from tokenizers_vq.training.recipe import load_recipe
from tokenizers_vq.training.runs import train

RECIPE = ["model.encoder.width=32", "model.decoder.width=32", "steps=600", "data.crop=center", "image_every=0"]
ROWS = {
    "without": "losses=[{kind: l2}]",
    "attribute_reversal": "losses=[{kind: l2}, {kind: attribute_reversal, num_classes: 2, weight: 0.1}]",
    "feature_alignment": "losses=[{kind: l2}, {kind: feature_alignment, weight: 0.1}]",
}
SIZE: dict[str, Any] = {"image_size": 64, "channels": 3, "batch_size": 50}


def rows(path: str, limit: int, both: bool) -> Iterator[dict[str, Any]]:
    """Each photograph as PNG, with its class: plain and noisy, or every second one noisy.

    Probes need photographs of which only one is there: what is learned of one would be wrong of its held-out twin.
    """
    noise = torch.Generator().manual_seed(0)
    for batch in evaluation_batches(DataConfig(path=path, limit=limit), **SIZE):
        for place, (image, label) in enumerate(zip(batch["images"], batch["labels"].tolist(), strict=True)):
            for domain in (0, 1) if both else (place % 2,):
                buffer, level = io.BytesIO(), domain * 2 * 10 / 255  # of images in [-1, 1]
                noisy = image + level * torch.randn(image.shape, generator=noise)
                tvq.images.to_pil(noisy.clamp(-1, 1)).save(buffer, format="PNG")
                yield {"image": {"bytes": buffer.getvalue(), "path": None}, "label": label, "domain": domain}


def write(table: Path, *what: Any) -> None:
    """The rows as a table, once."""
    if not table.exists():
        table.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(list(rows(*what))).to_parquet(table.with_suffix(".partial"))
        table.with_suffix(".partial").rename(table)


def main(photos: str, test: str, out: str, *overrides: str) -> None:
    learned, held = Path(out, "train.parquet"), Path(out, "test.parquet")
    write(learned, photos, 4000, True)
    write(held, test, 2000, False)
    for row, losses in ROWS.items():
        data = [f"data.path={learned}", "data.label_column=domain"]
        train(load_recipe("vqvae-tiny-64", [*RECIPE, *data, losses, *overrides]), Path(out, row))
        tokenizer = tvq.load(Path(out, row))
        shares = []
        for column, path in (("domain", str(held)), (None, test)):
            config = DataConfig(path=path, label_column=column, limit=2000)
            found = probe(tokenizer, evaluation_batches(config, **SIZE))
            shares.append(f"{column or 'class'} by chance {found.chance.value:.1%}")
            for name in ("encoder_features", "code_vectors", "code_histogram"):
                low, high = found.rows[name].trained.interval
                shares.append(f"{name.replace('_', ' ')} {found.rows[name].trained.value:.1%} [{low:.1%}, {high:.1%}]")
        quality = evaluate(tokenizer, evaluation_batches(DataConfig(path=test, limit=1000), **SIZE), backbone=None)
        print(f"{row}: PSNR {quality.metrics['psnr'].value:.2f} dB; {'; '.join(shares)}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
