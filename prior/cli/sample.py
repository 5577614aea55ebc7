"""`tvq-prior sample`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from tokenizers_vq.cli import common


def sample(
    model: common.Model,
    out: Annotated[Path, typer.Option(help="folder for PNG files, grid.png, samples.json; or X.png: the grid alone")],
    grid: Annotated[str, typer.Option(metavar="ROWSxCOLUMNS", help="how many, and how grid.png shows them")] = "4x8",
    count: Annotated[int | None, typer.Option(min=1, help="how many images, instead of --grid")] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            "--classes", "--class", help="classes by number or name, such as 0,3,cat; in turn, row by row; unset: all"
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(help="divides the logits; 0 takes the likeliest code")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="keep the k likeliest codes")] = None,
    top_p: Annotated[float | None, typer.Option(help="keep the likeliest codes that together reach p")] = None,
    guidance: Annotated[float, typer.Option(help="classifier-free guidance towards the class; 1 = off")] = 1.0,
    seed: Annotated[int, typer.Option(help="same seed, same images")] = 0,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="RUN|MODEL", help="where the tokenizer is now; must be the prior's own")
    ] = None,
    codes: Annotated[bool, typer.Option("--codes", help="keep the codes in samples.json")] = False,
    batch_size: common.BatchSize = 32,
    device: common.Device = "auto",
) -> None:
    """Draw new images."""
    import json

    import torch

    from prior.decoding import decode, find_classes, open_tokenizer, spread
    from prior.decoding import grid as picture
    from prior.model import load
    from prior.sampling import Sampler
    from tokenizers_vq.devices import resolve_device
    from tokenizers_vq.folders import write_atomically

    columns = 8 if count else _columns(grid)
    alone = out.suffix.lower() == ".png"
    if alone and codes:
        raise ValueError(f"--codes: {out} is a picture, which keeps none: give --out FOLDER")
    total = count or columns * int(re.split("[xX]", grid)[0])
    sampler = Sampler(temperature=temperature, top_k=top_k, top_p=top_p, guidance=guidance, seed=seed)
    place = resolve_device(device)
    prior = load(model).to(place)
    config = prior.config
    name = tokenizer or config.tokenizer
    opened = open_tokenizer(name, config.fingerprint, model, place)
    labels = None
    if classes is not None or config.condition.kind == "class":
        chosen = find_classes(classes, config) if classes else list(range(config.condition.num_classes))  # type: ignore[union-attr]
        labels = spread(chosen, total)

    tokens, images, entries = [], [], []
    for first in range(0, total, batch_size):
        n = min(batch_size, total - first)
        drawn = prior.sample(n, None if labels is None else labels[first : first + n], sampler, first=first)
        tokens.append(drawn.cpu())
        images.append(decode(opened, prior, drawn))
        common.note(f"{first + n} of {total} images")
    together = out if alone else out / "grid.png"
    common.write_png(together, picture(torch.cat(images), min(columns, total)))
    if alone:
        print(f"{total} images: {out}")
        return
    for index, (image, row) in enumerate(zip(torch.cat(images), torch.cat(tokens), strict=True)):
        entry: dict[str, object] = {"file": f"{index:05d}.png"}
        if labels is not None:
            entry["class"] = label = int(labels[index])
            if config.label_names is not None:
                entry["name"] = config.label_names[label]
        if codes:
            entry["codes"] = row.tolist()
        entries.append(entry)
        common.write_png(out / f"{index:05d}.png", image)
    settings = {
        "model": model,
        "tokenizer": name,
        "fingerprint": config.fingerprint,
        "sampler": sampler.to_dict(),
        "batch_size": batch_size,
        "images": entries,
    }
    write_atomically(out / "samples.json", json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
    print(f"{total} images: {out}, together: {together}")


def _columns(grid: str) -> int:
    found = re.fullmatch(r"([1-9]\d*)[xX]([1-9]\d*)", grid)
    if found is None:
        raise ValueError(f"--grid: '{grid}' is not of the form ROWSxCOLUMNS, for example 4x8")
    return int(found[2])
