"""`tvq info`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenizers_vq.cli import common
from tokenizers_vq.text import printable

if TYPE_CHECKING:
    from tokenizers_vq.conversion.catalogue import Published
    from tokenizers_vq.tokenizer import Tokenizer

Rows = list[tuple[Any, ...]]
"""title and text of each fact, and its value where JSON has a better one than the text"""
UNKNOWN = "not known"


def info(
    name: Annotated[
        str, typer.Argument(metavar="MODEL", help="a preset, a shipped or published name, a run or a folder")
    ],
    as_json: common.AsJson = False,
) -> None:
    """Show what is known of a model: size, codes, licences, sources, published figures. Downloads nothing."""
    from tokenizers_vq import folders
    from tokenizers_vq.config import nearest
    from tokenizers_vq.conversion import catalogue
    from tokenizers_vq.models import find, is_prior, list_models
    from tokenizers_vq.tokenizer import WEIGHTS

    folder = folders.local(name)
    if folder is None and name in list_models("shipped"):
        folder = WEIGHTS / name
    if folder is not None:
        print_rows(name, _trained(folder), as_json)
    elif name in list_models("published"):
        print_rows(name, _published(catalogue.entry(name)), as_json)
    elif name in list_models("preset"):
        print_rows(name, _preset(name), as_json)
    elif Path(name).is_dir() or is_prior(name):
        find(name)  # says what it is
    else:
        known = [*list_models(), *list_models("shipped"), *list_models("published")]
        raise ValueError(f"no folder, preset, shipped or published model '{name}'{nearest(name, known)}")


def print_rows(name: str, rows: Iterable[tuple[Any, ...]], as_json: bool = False) -> None:
    """Print facts of a model, each with its title; several of one title are a list in JSON."""
    if as_json:
        found: dict[str, Any] = {"name": name}
        for title, text, *value in rows:
            found.setdefault(title.replace(" ", "_"), []).append(value[0] if value else text)
        common.print_json(
            {key: one[0] if isinstance(one, list) and len(one) == 1 else one for key, one in found.items()}
        )
        return
    print(printable(name))
    for title, text, *_ in rows:
        print(printable(f"  {title:<20}{text}"))


def _described(tokenizer: Tokenizer) -> Rows:
    layout, config = tokenizer.code_layout(), tokenizer.config
    grids = " + ".join("x".join(map(str, grid)) for grid in layout.grids)
    levels = f", {layout.levels} levels" if layout.levels > 1 else ""
    sizes = " / ".join(f"{size:,}" for size in dict.fromkeys(layout.sizes))
    pixels = config.size[0] * config.size[1]
    parameters = sum(parameter.numel() for parameter in tokenizer.parameters())
    size = {"height": config.size[0], "width": config.size[1], "channels": config.channels}
    return [
        ("parameters", f"{parameters:,}", parameters),
        ("images", f"{config.size[0]}x{config.size[1]}, {config.channels} channels", size),
        ("codes", f"{layout.length:,} an image ({grids}{levels}) of {sizes}", layout.to_dict()),
        ("bits", f"{layout.bits:,.0f} an image, {layout.bits / pixels:.4g} a pixel", layout.bits),
        ("quantizer", " + ".join(part.kind for part in config.quantizer_paths.values())),
    ]


def _preset(name: str) -> Rows:
    from tokenizers_vq.models import PRESETS

    first = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    about: Rows = [("about", first.lstrip("# "))] if first.startswith("#") else []
    return [("kind", "preset, untrained: create it, or train it"), *about, *_described(_empty(name))]


def _empty(preset: str) -> Tokenizer:
    from tokenizers_vq.devices import without_memory
    from tokenizers_vq.models import preset_config

    with without_memory():
        return preset_config(preset).build()


def _trained(folder: Path) -> Rows:
    from tokenizers_vq.folders import read_card
    from tokenizers_vq.tokenizer import load_folder

    tokenizer = load_folder(folder)
    card = (read_card(folder) or "").splitlines()
    said = {
        title: line.split(":**", 1)[1].strip()
        for title in ("Training data", "Licence of the data", "Licence of the weights", "Trained by")
        for line in card
        if line.startswith(f"**{title}:**")
    }
    return [
        ("kind", f"trained, in {folder}"),
        *_described(tokenizer),
        ("fingerprint", tokenizer.fingerprint),
        ("data", said.get("Training data", UNKNOWN)),
        ("licence of data", said.get("Licence of the data", UNKNOWN)),
        ("licence of weights", said.get("Licence of the weights", UNKNOWN)),
        ("trained by", said.get("Trained by", UNKNOWN)),
    ]


def _published(published: Published) -> Rows:
    from tokenizers_vq import folders
    from tokenizers_vq.conversion import catalogue
    from tokenizers_vq.tokenizer import load_folder

    folder = catalogue.converted(published.name)
    size = UNKNOWN if published.image_size is None else f"{published.image_size}x{published.image_size}"
    grids = "+".join(catalogue.grid_texts(published)) or f"grid {UNKNOWN}"
    codes = UNKNOWN if published.codes is None else f"{published.codes:,}"
    rows: Rows = [
        ("kind", f"published, converted by source {published.source}"),
        ("about", published.about),
        ("paper", published.paper),
        ("code", f"{published.code}, licence: {published.code_licence or UNKNOWN}"),
        ("licence of weights", published.weights_licence or UNKNOWN),
        ("where", f"Hub, {published.hub}" if published.hub else f"by hand, {published.page}"),
        *(("file", f"{file.name}, sha256: {file.sha256 or UNKNOWN}") for file in published.files),
        ("images", size),
        ("codes", f"{grids}, codebook {codes}, width {published.dim or UNKNOWN}"),
        ("parameters", _parameters(published)),
        *(("rFID", f"{score.value:g}: {score.protocol} [{score.said_by}]") for score in published.rfid),
    ]
    if not published.rfid:
        rows.append(("rFID", UNKNOWN))
    if published.note:
        rows.append(("note", published.note))
    if folders.local(folder) is not None:
        copy = load_folder(folder)
        return [*rows, ("converted copy", str(folder)), *_described(copy), ("fingerprint", copy.fingerprint)]
    load = f"load('{published.name}') downloads and converts it"
    return [*rows, ("to load it", load if published.hub else catalogue.by_hand(published))]


def _parameters(published: Published) -> str:
    if published.preset is None:
        return published.parameters or UNKNOWN
    count = sum(parameter.numel() for parameter in _empty(published.preset).parameters())
    return f"{count:,}, of the preset {published.preset}, which has its architecture"
