"""`tvq-prior compress` and `tvq-prior decompress`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenizers_vq.cli import common

if TYPE_CHECKING:
    from prior.model import Prior
    from tokenizers_vq.data.shards import CodeShards


def compress(
    model: common.Model,
    source: Annotated[
        str, typer.Argument(metavar="CODES|IMAGES", help="folder of codes, or of images, which are encoded")
    ],
    out: Annotated[Path, typer.Option(help="file to write")] = ...,  # type: ignore[assignment]
    limit: Annotated[
        int | None, typer.Option(min=1, help="use only this many images, evenly spread (of images, not of codes)")
    ] = None,
    batch_size: common.BatchSize = 32,
    device: common.Device = "auto",
) -> None:
    """Compress codes by arithmetic coding under a prior: into about as many bits as its cross-entropy."""
    import tempfile

    import numpy as np

    from prior import compression
    from prior.data import read_rows
    from prior.models import load
    from prior.scoring import open_codes
    from tokenizers_vq.devices import resolve_device
    from tokenizers_vq.folders import write_atomically

    prior = load(model).to(resolve_device(device))
    compression.check_exact(prior)
    if prior.config.grids is not None:
        raise ValueError(
            f"{model} models grids {list(prior.config.grids)} of its tokenizer's codes alone: compress with a prior of "
            "all of them"
        )
    with tempfile.TemporaryDirectory() as scratch:
        shards = open_codes(prior, source, Path(scratch), model, (device, batch_size, limit))
        prior.condition.prepare({str(shards.folder): shards})
        batch = read_rows(shards, np.arange(len(shards)))
        told, about = prior.condition.take(batch), _about(shards, batch)
        data = compression.compress(prior, batch["tokens"], told, batch_size=batch_size, about=about)
        write_atomically(out, data)
        print(_report(prior, shards, data, batch_size))
    print(f"{len(data):,} bytes: {out}")


def decompress(
    model: common.Model,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="file that `tvq-prior compress` wrote")],
    out: Annotated[Path, typer.Option(help="folder for the codes, as `tvq encode` writes them")] = ...,  # type: ignore[assignment]
    device: common.Device = "auto",
) -> None:
    """Decompress a file of `compress` into the same codes; `tvq decode` turns these into images."""
    import torch

    from prior import compression
    from prior.models import load
    from tokenizers_vq.config import parse
    from tokenizers_vq.data.shards import CodesInfo, write_rows
    from tokenizers_vq.data.transforms import VIEWS
    from tokenizers_vq.devices import resolve_device

    data = file.read_bytes()
    about = compression.read(data, str(file))[0].about
    prior = load(model).to(resolve_device(device))
    opened = compression.decompress(prior, data, str(file))
    if "info" not in about:
        raise ValueError(f"{file} was packed in Python, without the names of images: unpack it by prior.compression")
    info = parse(CodesInfo, about["info"], str(file))
    step = VIEWS[info.views].rows
    batch: dict[str, Any] = {
        "keys": about["keys"][::step],
        "labels": torch.tensor(about["labels"])[::step],
        "classes": list(zip(*(about["classes"][name][::step] for name in info.class_names), strict=True)),
        "captions": None if about["captions"] is None else about["captions"][::step],
    }
    write_rows(out, info, opened.codes.numpy(), batch)
    print(f"codes of {len(opened.codes):,} images: {out}")


def _about(shards: CodeShards, batch: dict[str, Any]) -> dict[str, Any]:
    """What a folder of codes has beside them."""
    about = {name: batch[name] for name in ("keys", "captions")}
    about["labels"] = batch["labels"].tolist()
    about["classes"] = {name: shards.classes(name).labels.tolist() for name in shards.label_columns}
    # Which files they were read from is of use to nobody where they are unpacked.
    info = {
        key: value
        for key, value in shards.info.items()
        if key not in ("data", "record", "folder", "source", "rows", "labels")
    }
    return {**about, "info": info}


def _report(prior: Prior, shards: CodeShards, data: bytes, batch_size: int) -> str:
    """The bits of the file beside cross-entropy, plain codes and codes by their frequencies."""
    import numpy as np

    from prior import compression
    from prior.data import frequencies
    from prior.scoring import bits_per_token, entropies

    rows = np.arange(len(shards))
    codes = len(rows) * prior.layout.length
    packed = compression.payload_bits(data) / codes
    wanted = bits_per_token(prior, shards, rows, batch_size)
    plain = prior.layout.bits / prior.layout.length
    shares = [len(prior.layout.streams()[prior.layout.streams() == s]) for s in range(len(prior.layout.sizes))]
    entropy = np.average(entropies(frequencies(shards, rows)), weights=shares)
    return (
        f"{len(rows):,} images, {codes:,} codes: {packed:.3f} bits a code; the prior's cross-entropy is {wanted:.3f} "
        f"({packed / wanted - 1:+.2%}), codes by their frequencies {entropy:.3f}, plain codes {plain:.3f}"
    )
