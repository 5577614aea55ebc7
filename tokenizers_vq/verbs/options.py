"""Keyword options that the functions share: how images are read, who judges, where it is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch

from tokenizers_vq.config import nearest

Progress = Callable[[int, int | None], None]
"""called with (done, total); the total is None where nobody knows it yet"""


class Computing(TypedDict, total=False):
    """Where and how a model computes."""

    device: str | torch.device
    """auto, cpu, cuda or mps"""
    precision: str
    """auto, fp32 or bf16; auto is bf16 where the device has it in hardware"""


class Reading(TypedDict, total=False):
    """How images are read: fields of `DataConfig`, by their names."""

    split: str | None
    """split to read"""
    image_column: str | None
    """column of the images"""
    range: tuple[float, float] | None
    """values of black and white in arrays and 16-bit files; None: all of the dtype"""
    max_pixels: int | None
    """larger images are skipped"""
    streaming: bool
    """read without storing or indexing the data"""
    limit: int | None
    """use this many images, evenly spread"""
    workers: int | None
    """threads that load ahead; None: by the number of cores"""
    on_broken: Literal["skip", "stop"]
    """what to do about an unreadable image: skip it and name it, or stop"""


class Judging(TypedDict, total=False):
    """Which networks judge reconstructions."""

    lpips: str | None
    """squeeze, alex or vgg; auto (as by default): one whose trunk is at hand; none or None: no LPIPS"""
    lpips_trunk: Path | str | None
    """file with torchvision's weights of the LPIPS trunk"""
    backbone: str | None
    """timm backbone of the feature distance; none or None: no feature distance"""
    layer: str
    """its layer"""


class Measuring(Computing, Reading, Judging, total=False):
    """Options of `evaluate`, `report` and `compare`."""


class Probing(Computing, Reading, total=False):
    """Options of `probe`."""


class Columns(Reading, total=False):
    """How images are read with what stands beside them: fields of `DataConfig`, by their names."""

    label_column: str | None
    """column of the classes; none: no classes"""
    class_columns: tuple[str, ...]
    """further columns of classes, each kept by its name"""
    caption_column: str | None
    """column of the captions; none: no captions"""


class Encoding(Computing, Columns, total=False):
    """Options of `encode_folder`."""


def split_options(options: Mapping[str, Any], *groups: type) -> list[dict[str, Any]]:
    """`options` as one dict for each group (a class above). Raises `TypeError` for one that none of them has."""
    known = {name for group in groups for name in group.__annotations__}
    for name in options:
        if name not in known:
            raise TypeError(f"no option '{name}'{nearest(name, sorted(known))}")
    return [{name: options[name] for name in group.__annotations__ if name in options} for group in groups]


def choose_judges(
    lpips: str | None = "auto",
    lpips_trunk: Path | str | None = None,
    backbone: str | None = "tf_efficientnet_lite0",
    layer: str = "head",
) -> dict[str, Any]:
    """`Judging` as `evaluation.evaluate` takes it. Raises `ValueError` for an unknown network, or one without weights.

    A network that was asked for by name has to be there; `auto` does without.
    """
    from tokenizers_vq.losses.perceptual import find_trunk, load_trunk

    nets = ("squeeze", "alex", "vgg")
    if lpips not in (*nets, "auto", "none", None):
        raise ValueError(f"--lpips: no network '{lpips}'{nearest(str(lpips), (*nets, 'auto', 'none'))}")
    if lpips == "auto" and lpips_trunk is not None:
        raise ValueError("--lpips-trunk: say of which network, for example --lpips squeeze")
    net: Any = None if lpips == "none" else lpips
    trunk = None if lpips_trunk is None else Path(lpips_trunk)
    if lpips == "auto":
        net = next((net for net in nets if find_trunk(net)), None)  # type: ignore[arg-type]
    elif net is not None and find_trunk(net, trunk) is None:
        load_trunk(net)  # a download; says what to do where it is not available
    return {
        "lpips": net,
        "lpips_trunk": trunk,
        "backbone": None if backbone == "none" else backbone,
        "layer": layer,
    }
