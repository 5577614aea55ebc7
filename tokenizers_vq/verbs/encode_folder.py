"""Encode images to shards of codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from typing_extensions import Unpack

from tokenizers_vq.data import DataConfig
from tokenizers_vq.data.shards import recorded_precision, write_codes
from tokenizers_vq.data.transforms import check_views
from tokenizers_vq.devices import processes
from tokenizers_vq.tokenizer import Tokenizer
from tokenizers_vq.verbs.on_ray import check_ray, write_on_ray
from tokenizers_vq.verbs.opening import Data, Model, name_broken, open_encoder
from tokenizers_vq.verbs.options import Columns, Computing, Encoding, Progress, split_options


class Encoded(NamedTuple):
    """A folder of codes."""

    out: Path
    """the folder, for `data.shards.read_codes`"""
    images: int | None
    """images encoded; None where other processes are still at it"""
    shards: int
    """parquet files"""
    broken: dict[str, str]
    """images that were skipped, with the reason"""
    fingerprint: str
    """the tokenizer's"""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {**self._asdict(), "out": str(self.out)}


def encode_folder(
    model: Model,
    data: Data,
    out: Path | str,
    *,
    shards: int | None = None,
    views: str = "center",
    keep: int | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
    on: str | None = None,
    **options: Unpack[Encoding],
) -> Encoded:
    """Encode images to parquet shards of codes in the folder `out`, one row a view; called again it goes on.

    `shards`: number of files; None: one for 8,192 images. `views`: center, flip or ten-crop, the rows of an image.
    `keep`: of each image only the first codes, as `CodeLayout.prefix` counts them.
    `progress` is called with (images encoded by this call, None). `options`: of `verbs.options.Encoding`, such as
    `split="train"`, `caption_column="text"`, `device="cpu"`. Under several processes (RANK and WORLD_SIZE, as launchers
    set them) each writes its share of the shards. `on="ray"`: the workers of a Ray cluster write them, the same files.

    Raises `ValueError` where `out` holds codes made otherwise or no image can be read, and `TypeError` for an unknown
    option.
    """
    check_views(views)
    if on not in (None, "ray"):
        raise ValueError(f"on={on}: nothing but ray is known")
    if on == "ray":
        _check_for_ray(model)
    reading, computing = split_options(options, Columns, Computing)
    config = data.replace(**reading) if isinstance(data, DataConfig) else DataConfig(path=str(data), **reading)
    if computing.get("precision", "auto") == "auto":
        computing["precision"] = recorded_precision(out) or "auto"
    encoder = open_encoder(model, keep=keep, **computing)
    done = 0

    def count(images: int) -> None:
        nonlocal done
        done += images
        if progress is not None:
            progress(done, None)

    rank, world = processes()
    info = write_codes(
        encoder,
        config,
        out,
        batch_size=batch_size,
        shards=shards,
        views=views,
        rank=rank,
        world=world,
        progress=count,
        elsewhere=None if on is None else write_on_ray,
    )
    broken = info["broken"] or {}
    if info["images"] is not None:
        name_broken(broken)
    if broken and not info["images"]:
        raise ValueError(f"{config.path}: none of its {len(broken)} images can be read, so {out} holds no codes")
    return Encoded(Path(out), info["images"], info["shards"], dict(broken), info["fingerprint"])


def _check_for_ray(model: Model) -> None:
    """Raises `ValueError` where Ray is not there, or its workers could not open the model."""
    check_ray()
    if isinstance(model, Tokenizer):
        raise ValueError("workers of Ray open the model by its name: save it, and give the folder")
    if processes().world > 1:
        raise ValueError("--on ray shares the work out itself: start one process alone")
