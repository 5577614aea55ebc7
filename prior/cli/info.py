"""`tvq-prior info`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenizers_vq.cli import common

if TYPE_CHECKING:
    from prior.conversion.catalogue import Published
    from prior.model import Prior

Rows = list[tuple[str, str]]
UNKNOWN = "not known"


def info(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]", help="a shipped or published name, a run or a folder; unset: list all published ones"
        ),
    ] = None,
    as_json: common.AsJson = False,
) -> None:
    """Show what is known of a prior: codes, tokenizer, licences, published figures and settings. Downloads nothing."""
    from prior.conversion import catalogue
    from prior.model import WEIGHTS
    from prior.models import find_model, list_models
    from tokenizers_vq import folders
    from tokenizers_vq.cli.info import print_rows
    from tokenizers_vq.config import nearest

    if name is None:
        if as_json:
            common.print_json(
                [{title: _cell(one, title) for title in _COLUMNS} for one in catalogue.entries().values()]
            )
        else:
            _table()
        return
    folder = WEIGHTS / name if name in list_models("shipped") else folders.local(name)
    if folder is not None:
        print_rows(name, _trained(folder), as_json)
    elif name in catalogue.entries():
        print_rows(name, _published(catalogue.entry(name)), as_json)
    elif Path(name).is_dir() or name in list_models():
        find_model(name)  # says what it is
    else:
        known = [*list_models("shipped"), *list_models("published")]
        raise ValueError(f"no folder, shipped or published prior '{name}'{nearest(name, known)}")


def _table() -> None:
    from prior.conversion import catalogue
    from tokenizers_vq.text import printable

    entries = catalogue.entries()
    wide = {title: max(len(_cell(one, title)) for one in entries.values()) for title in _COLUMNS}
    for one in entries.values():
        print(printable("  ".join(f"{_cell(one, title):{wide[title]}}" for title in _COLUMNS).rstrip()))
    print("gFID is the first that its publisher states; `tvq-prior info NAME` says its protocol and the settings")


_COLUMNS = ("name", "parameters", "gFID", "told", "tokenizer", "licence")


def _cell(published: Published, title: str) -> str:
    if title == "gFID":
        return f"gFID {published.gfid[0].value:g}" if published.gfid else "gFID ?"
    if title == "told":
        return f"told {published.told.split(',')[0]}"
    if title == "licence":
        return f"weights: {_licence(published)}"
    if title == "tokenizer":
        return f"over {published.tokenizer or 'a tokenizer of its own'}"
    if title == "parameters" and published.parameters is None:
        return "not stated" if published.trained else "code alone"
    return getattr(published, title).split(",")[0]


def _licence(published: Published) -> str:
    return published.weights_licence or UNKNOWN if published.trained else "none published"


def _described(prior: Prior) -> Rows:
    layout, config = prior.layout, prior.config
    grids = " + ".join("x".join(map(str, grid)) for grid in layout.grids)
    levels = f", {layout.levels} levels" if layout.levels > 1 else ""
    sizes = " / ".join(f"{size:,}" for size in dict.fromkeys(layout.sizes))
    likelihood = "exact" if prior.exact else "a bound"
    return [
        ("network", f"{config.network.kind}, likelihood {likelihood}"),
        ("parameters", f"{sum(parameter.numel() for parameter in prior.parameters()):,}"),
        ("codes", f"{layout.length:,} an image ({grids}{levels}) of {sizes}"),
        ("told", f"{prior.condition.noun or 'nothing'}{'' if prior.condition.guidable else ', no guidance'}"),
        ("tokenizer", f"{config.tokenizer or UNKNOWN}, fingerprint {config.fingerprint or UNKNOWN}"),
    ]


def _trained(folder: Path) -> Rows:
    from prior.model import load_folder

    return [("kind", f"trained, in {folder}"), *_described(load_folder(folder))]


def outline(published: Published) -> Prior | None:
    """An empty prior of its architecture, which takes no memory; None where preset, codes or classes are not known."""
    from prior.models import create
    from tokenizers_vq.codes import CodeLayout
    from tokenizers_vq.conversion import catalogue as tokenizers
    from tokenizers_vq.devices import without_memory
    from tokenizers_vq.models import preset_config

    made = tokenizers.entries().get(published.tokenizer or "")
    if made is None or made.grids is None or made.codes is None or published.preset is None or not published.classes:
        return None
    larger = (published.image_size or 1) / (made.image_size or 1)
    grids = tuple(tuple(round(side * larger) for side in grid) for grid in made.grids)
    layout = CodeLayout(grids, made.levels, (made.codes,) * (len(grids) * made.levels))
    condition = {"kind": "class", "num_classes": 1000}
    with without_memory():
        try:
            return create(published.preset, layout, condition)
        except ValueError:  # fed with the vectors of codes
            if made.preset is None:
                return None
            book = preset_config(made.preset).to_dict()["quantizer"]
            return create(published.preset, layout, condition, book=book)


def _parameters(published: Published) -> str:
    empty = outline(published)
    if empty is None:
        return published.parameters or UNKNOWN
    count = sum(parameter.numel() for parameter in empty.parameters() if parameter.requires_grad)
    return f"{count:,}, of the preset {published.preset}, which has its architecture"


def _where(published: Published) -> str:
    if published.hub is None:
        return f"by hand, {published.page}"
    return f"Hub, {published.hub}, {published.revision or 'newest revision'}"


def _published(published: Published) -> Rows:
    import json
    import shlex

    from prior.conversion import catalogue
    from prior.model import load_folder
    from tokenizers_vq import folders

    folder = catalogue.converted(published.name)
    size = UNKNOWN if published.image_size is None else f"{published.image_size}x{published.image_size}"
    rows = [
        ("kind", f"{'published' if published.trained else 'code alone is published'}, source {published.source}"),
        ("about", published.about),
        ("told", published.told),
        ("tokenizer", published.tokenizer or UNKNOWN),
        ("paper", published.paper),
        ("code", f"{published.code}, licence: {published.code_licence or UNKNOWN}"),
        ("licence of weights", _licence(published)),
        ("where", _where(published)),
        *(("file", f"{file.name}, sha256: {file.sha256 or UNKNOWN}") for file in published.files),
        ("images", size),
        ("parameters", _parameters(published)),
        ("settings", published.sampling or UNKNOWN),
        *(("gFID", f"{score.value:g}: {score.protocol} [{score.said_by}]") for score in published.gfid),
    ]
    if not published.gfid:
        rows.append(("gFID", UNKNOWN))
    if published.sampler:
        given = [
            f"{name}={value if isinstance(value, str) else json.dumps(value)}"
            for name, value in published.sampler.items()
        ]
        fields = " ".join(map(shlex.quote, given))
        rows.append(("to draw so", f"tvq-prior sample {published.name} {fields} --out samples/"))
    if published.note:
        rows.append(("note", published.note))
    if folders.local(folder) is not None:
        return [*rows, ("converted copy", str(folder)), *_described(load_folder(folder))]
    load = f"load('{published.name}') downloads it and its tokenizer, and converts both"
    return [*rows, ("to load it", load if published.hub else catalogue.by_hand(published))]
