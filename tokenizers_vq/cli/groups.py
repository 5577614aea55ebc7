"""Options that several verbs share, as groups: a verb names a group, and gets its options as one value.

A verb takes a group as a keyword-only parameter, `reading: groups.Reading`; `expanded` gives Typer a function with the
group's fields as options of their own.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

import typer


class Reading(NamedTuple):
    """How images are read: fields of `DataConfig`, by their names."""

    split: Annotated[str | None, typer.Option(help="which split of the data to read")] = None
    image_column: Annotated[str | None, typer.Option(help="column of the images")] = None
    range: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="LOW HIGH",
            help="values of black and white in arrays and 16-bit files; unset: the dtype's whole range",
        ),
    ] = None
    max_pixels: Annotated[
        int | None,
        typer.Option(help="skip larger images; each loader needs 12 bytes a pixel; unset: 89,478,485 (1 GiB)"),
    ] = None
    streaming: Annotated[
        bool, typer.Option("--streaming", help="read the data as they come, without storing or indexing them")
    ] = False
    limit: Annotated[int | None, typer.Option(help="use only this many images, evenly spread over the data")] = None
    workers: Annotated[
        int | None, typer.Option(help="how many threads load images ahead; unset: by the number of cores")
    ] = None
    on_broken: Annotated[
        str, typer.Option(metavar="skip|stop", help="what to do with unreadable images: skip and name them, or stop")
    ] = "skip"


class Judging(NamedTuple):
    """Which networks judge reconstructions."""

    lpips: Annotated[
        str,
        typer.Option(
            metavar="auto|none|squeeze|alex|vgg", help="LPIPS network; auto: one whose weights are on this machine"
        ),
    ] = "auto"
    lpips_trunk: Annotated[Path | None, typer.Option(help="file with torchvision's weights for the LPIPS network")] = (
        None
    )
    backbone: Annotated[str, typer.Option(help="timm backbone of the feature distance, or none")] = (
        "tf_efficientnet_lite0"
    )
    layer: Annotated[str, typer.Option(help="layer of that backbone")] = "head"


class Computing(NamedTuple):
    """Where and how a model computes."""

    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda|mps", help="which device to compute on")] = "auto"
    precision: Annotated[
        str, typer.Option(metavar="auto|fp32|bf16", help="auto: bf16 where the hardware has it, else fp32")
    ] = "auto"


GROUPS = (Reading, Judging, Computing)


def expanded(verb: Callable[..., None]) -> Callable[..., None]:
    """`verb` as Typer reads it: every group among its parameters is the options that its fields are."""
    hints = get_type_hints(verb, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if hint in GROUPS}
    if not groups:
        return verb

    @functools.wraps(verb)
    def call(**given: Any) -> None:
        values = {name: group(**{field: given.pop(field) for field in group._fields}) for name, group in groups.items()}
        verb(**given, **values)

    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(verb).parameters.items():
        if name not in groups:
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(parameter.replace(kind=kind, annotation=hints[name]))
            continue
        fields = get_type_hints(groups[name], include_extras=True)
        for field, annotation in fields.items():
            default = groups[name]._field_defaults[field]
            parameters.append(
                inspect.Parameter(field, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            )
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call
