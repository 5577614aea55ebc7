"""What a recipe or command says of its data."""

from __future__ import annotations

import math
import os
from typing import Any, Literal

from pydantic import field_validator, model_validator
from typing_extensions import Self

from tokenizers_vq.config import Config, ConfigError

_MOST_WORKERS = 1024


class DataConfig(Config):
    """What images to read, and how a training view is cut from them."""

    path: str
    """folder of images; parquet or webdataset files (folder, file, glob); owner/name of the Hub; or skimage"""
    split: str | None = None
    """name of the split; unset: the only one, else train in training and test in evaluation; all: everything"""
    streaming: bool = False
    """read parquet, webdataset or Hub data as it comes, shuffled in a buffer, without storing it"""
    image_column: str | None = None
    """column of the images; unset: the one that holds images, `image` where several do"""
    range: tuple[float, float] | None = None
    """values of black and white in .npy arrays and 16-bit files; unset: all of uint8 and uint16, [0, 1] of floats"""
    max_pixels: int | None = None
    """larger images are broken, not decoded: a pixel costs each loader 12 bytes and more; unset: 89,478,485 (1 GiB)"""
    label_column: str | None = None
    """column of the classes; unset: the one that holds classes, or a folder's sub-folders; none: no classes"""
    class_columns: tuple[str, ...] = ()
    """further columns of classes of a table, each kept by its name beside the codes"""
    caption_column: str | None = None
    """column of the captions; unset: caption, captions or text where it holds text; none: no captions"""
    crop: Literal["random_resized", "random", "center"] = "random_resized"
    """training view: a window of random size and place, of random place, or the centre"""
    scale: tuple[float, float] = (0.5, 1.0)
    """share of the image's area in a random_resized window"""
    ratio: tuple[float, float] = (0.75, 4 / 3)
    """aspect ratio of a random_resized window, relative to the output's"""
    flip: bool = True
    """mirror every other training view"""
    workers: int | None = None
    """loader processes; 0 loads in the main process; unset: one a core, 8 at most; of a stream 2"""
    on_broken: Literal["skip", "stop"] = "skip"
    """an unreadable image: skip it and name it, or stop the run"""
    limit: int | None = None
    """use this many images, evenly spread over the data (streaming: the first)"""
    shuffle_buffer: int = 1000
    """streaming: images among which the next is drawn"""

    @field_validator("path", mode="before")
    @classmethod
    def _path_to_text(cls, value: Any) -> Any:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(("scale",), f"needs two rising shares within (0, 1], got {list(self.scale)}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ConfigError(("ratio",), f"needs two rising positive ratios, got {list(self.ratio)}")
        if self.range is not None:
            if not all(math.isfinite(bound) for bound in self.range):
                raise ConfigError(("range",), f"needs finite numbers, got {list(self.range)}")
            if not self.range[0] < self.range[1]:
                raise ConfigError(("range",), f"needs black below white, got {list(self.range)}")
        if self.max_pixels is not None and self.max_pixels < 1:
            raise ConfigError(("max_pixels",), f"must be 1 or more, got {self.max_pixels}")
        if self.workers is not None and not 0 <= self.workers <= _MOST_WORKERS:
            raise ConfigError(("workers",), f"must be from 0 to {_MOST_WORKERS}, got {self.workers}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(("limit",), f"must be 1 or more, got {self.limit}")
        if self.shuffle_buffer < 1:
            raise ConfigError(("shuffle_buffer",), f"must be 1 or more, got {self.shuffle_buffer}")
        return self

    @property
    def loaders(self) -> int:
        """`workers`, or their number where it is unset. The order of a stream depends on it: there it is the same
        everywhere.
        """
        if self.workers is not None:
            return self.workers
        if self.streaming:
            return 2
        known = getattr(os, "sched_getaffinity", None)
        cores = len(known(0)) if known else os.cpu_count() or 1
        return max(1, min(8, cores // max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))))
