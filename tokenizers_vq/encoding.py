"""Encoding at scale: a callable of column batches that owns device and precision."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tokenizers_vq import checks, images
from tokenizers_vq.codes import CodeLayout, Codes
from tokenizers_vq.devices import channels_last, computing, resolve_device, resolve_precision
from tokenizers_vq.folders import lasting_name
from tokenizers_vq.images import check
from tokenizers_vq.models import load
from tokenizers_vq.pixels import check_range, is_numbers
from tokenizers_vq.tiling import Tile, auto_tile, decode_tiled, encode_tiled
from tokenizers_vq.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class BatchEncoder:
    """A tokenizer on a device, in a precision, as a function from columns to columns.

    Takes what `datasets.Dataset.map(batched=True)` and Ray Data's `map_batches` pass, and returns the same columns with
    `codes` (int64 `(n, N)`, flat as `CodeLayout.flatten` orders them) and `fingerprint` (n times the tokenizer's).
    """

    def __init__(
        self,
        tokenizer: Tokenizer | str | Path,
        *,
        device: str | torch.device = "auto",
        precision: str = "auto",
        image_column: str = "image",
        image_size: int | tuple[int, int] | None = None,
        on_broken: Literal["skip", "stop"] = "stop",
        range: images.Range | None = None,
        max_pixels: int = images.MAX_PIXELS,
        tile: Tile = None,
        keep: int | None = None,
    ) -> None:
        """`tokenizer`: a module (moved to the device and to channels_last as it is), or what `load` takes. `precision`:
        `fp32` computes as `Tokenizer.encode` does, on CUDA without TF32; `bf16` puts the networks under autocast, the
        quantizer stays float32; `auto` is bf16 where the device has it in hardware. `image_size`: of the images, unset
        the tokenizer's. `on_broken="skip"` drops the rows of unreadable images and counts them in `broken`. `range`:
        values of black and white in arrays, `max_pixels`: a bound on files, see `images.read` for both. `tile`: side in
        pixels of the overlapping tiles in which larger images are computed, see `tiling` for what that costs in
        exactness; `auto`: where it pays, as `tiling.auto_tile` says. `keep`: of each image the first codes alone, as
        `CodeLayout.prefix` counts them.

        Raises `ValueError` for unknown or absent devices and precisions, for `keep` where the tokenizer decodes no such
        prefix, and what `load` raises.
        """
        self.device = resolve_device(device)
        self.precision = resolve_precision(precision, self.device)
        self.tokenizer = (tokenizer if isinstance(tokenizer, Tokenizer) else load(tokenizer)).to(self.device).eval()
        channels_last(self.tokenizer)  # the layout of the fast convolutions, on a CPU and in float32 too
        self.name = None if isinstance(tokenizer, Tokenizer) else lasting_name(tokenizer)
        self.image_column, self.on_broken, self.tile = image_column, on_broken, tile
        self.range, self.max_pixels = range, max_pixels
        if range is not None:
            check_range(range)
        if isinstance(tile, str) and tile != "auto":
            raise ValueError(f"tile {tile!r}: give a side in pixels, auto, or None")
        self.image_size = self.tokenizer.config.image_size if image_size is None else image_size
        size = _pair(self.image_size)
        if tile is None and (better := auto_tile(self.tokenizer, *size)):
            logger.info(
                "images of %dx%d cost less memory, and mostly time, in tiles: tile='auto' takes %d", *size, better
            )
        self.keep = None if keep is None else check_keep(self.tokenizer, keep)
        self.layout: CodeLayout = self._kept(self.tokenizer.code_layout(*size))
        self.fingerprint = self.tokenizer.fingerprint
        self.broken: dict[str, str] = {}

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.tokenizer.config.channels

    @property
    def autocast(self) -> torch.dtype | None:
        """dtype that the networks compute in, None where it is the parameters' own."""
        return torch.bfloat16 if self.precision == "bf16" else None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Columns with images (paths, bytes, PIL, arrays, or dicts of `bytes` and `path`) -> columns with codes.

        Every image: shorter side to `image_size`, antialiased, centre crop, small ones enlarged. Raises
        `images.BrokenImage` naming the row's path or number where `on_broken` is stop, `ValueError` without the column.
        """
        if self.image_column not in batch:
            raise ValueError(f"no column '{self.image_column}'; set image_column to one of: {', '.join(batch)}")
        views, kept = [], []
        for row, source in enumerate(_sources(batch, self.image_column, self.range)):
            try:
                views.append(self._view(source, f"row {row}"))
            except images.BrokenImage as error:
                if self.on_broken == "stop":
                    raise
                self.broken[error.name] = error.reason
            else:
                kept.append(row)
        result = {name: _rows(column, kept) for name, column in batch.items()}
        codes = self.encode(torch.stack(views)) if views else torch.empty(0, self.layout.length, dtype=torch.int64)
        return {**result, "codes": codes.numpy(), "fingerprint": [self.fingerprint] * len(kept)}

    def _view(self, source: Any, name: str) -> Tensor:
        from tokenizers_vq.resizing import resize_center_crop

        if isinstance(source, (str, os.PathLike)):
            name = str(source)
        elif isinstance(source, Mapping):
            name = str(source.get("path") or name)
        try:
            image = images.decode(source, self.channels, name, self.range, self.max_pixels)
        except OSError as error:
            raise images.BrokenImage(name, str(error)) from None
        view = resize_center_crop(image, self.image_size)
        return view if view.is_floating_point() else images.from_uint8(view)

    def encode(self, images: Tensor) -> Tensor:
        """`(B, C, H, W)` in [-1, 1] on any device -> int64 `(B, N)` on the CPU. Raises as `Tokenizer.encode`."""
        if not isinstance(images, Tensor) or not len(images):
            check(images, self.channels)
            layout = self._kept(self.tokenizer.code_layout(*images.shape[-2:]))
            return torch.empty(0, layout.length, dtype=torch.int64)
        moved = images.to(self.device, non_blocking=True)
        height, width = images.shape[-2:]
        with checks.together(), computing(self.device, self.autocast):  # of several tiles too
            codes: Codes
            if tile := self._tile(height, width):
                codes = encode_tiled(self.tokenizer, moved, tile)
            else:
                codes = self.tokenizer.encode(moved)
        layout = self.tokenizer.code_layout(height, width)
        codes = codes if self.keep is None else layout.cut(codes, self.keep)
        return self._kept(layout).flatten(codes).cpu()

    def _kept(self, layout: CodeLayout) -> CodeLayout:
        return layout if self.keep is None else layout.prefix(self.keep)

    def _tile(self, height: int, width: int) -> int | None:
        """The tile for images of this size; None where they are computed whole."""
        if self.tile == "auto":
            return auto_tile(self.tokenizer, height, width)
        return self.tile if self.tile is not None and max(height, width) > self.tile else None

    def decode(self, tokens: Tensor | np.ndarray | Sequence[Sequence[int]]) -> Tensor:
        """Whole numbers `(B, N)` of the encoder's image size -> float32 images `(B, C, H, W)` in [-1, 1] on the CPU.

        Raises `ValueError` for another shape, for floats and booleans, and for codes out of range.
        """
        rows = torch.as_tensor(tokens)
        if rows.ndim and not len(rows):
            return torch.empty(0, self.channels, *_pair(self.image_size))
        codes = self.layout.unflatten(rows.to(self.device))
        with computing(self.device, self.autocast):
            if tile := self._tile(*_pair(self.image_size)):
                assert isinstance(codes, Tensor)
                decoded = decode_tiled(self.tokenizer, codes, tile)
            else:
                decoded = self.tokenizer.decode(codes)
        return decoded.float().clamp(-1, 1).cpu()


def check_keep(tokenizer: Tokenizer, keep: int) -> int:
    """`keep`. Raises `ValueError` where the tokenizer does not decode so many first codes by themselves."""
    if not tokenizer.prefixes:
        raise ValueError(
            f"keep={keep}: this tokenizer's codes stand for an image only together; those of residual and multi-scale "
            "quantizers, and rows trained with tails dropped (one-d-piece), have first ones that decode by themselves"
        )
    if not 1 <= keep <= tokenizer.prefixes:
        raise ValueError(f"keep={keep}: give 1 to {tokenizer.prefixes} for this tokenizer")
    return keep


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _sources(batch: Mapping[str, Any], column: str, range: images.Range | None) -> Any:
    """Rows of a column of images; nested lists of numbers, which `datasets` makes of arrays, as arrays again.

    Of the type that their table states, else of one type for all: a dark uint16 picture could pass for a bright uint8.
    """
    rows = batch[column]
    if not any(isinstance(row, list) and is_numbers(row) for row in rows):
        return rows
    dtype = _stated_type(batch, column)
    arrays = []
    for row in rows:
        try:
            arrays.append(np.asarray(row, dtype) if isinstance(row, list) and row else row)
        except (ValueError, TypeError, OverflowError):  # of unequal lengths, or with nulls: `decode` names it
            arrays.append(row)
    whole = [array for array in arrays if isinstance(array, np.ndarray) and array.dtype == np.int64 and array.size]
    if dtype is None and range is None and whole and min(array.min() for array in whole) >= 0:
        highest = max(array.max() for array in whole)
        guess = np.uint8 if highest <= 255 else np.uint16 if highest <= 65535 else np.int64
        return [row.astype(guess) if any(row is array for array in whole) else row for row in arrays]
    return arrays


def _stated_type(batch: Any, column: str) -> Any:
    """numpy type of the numbers in a column of lists, where `batch` is one of `datasets`, which keeps its table."""
    table = getattr(batch, "pa_table", None)
    if table is None or column not in table.column_names:
        return None
    kind = table.schema.field(column).type
    kind = getattr(kind, "storage_type", kind)
    while hasattr(kind, "value_type"):
        kind = kind.value_type
    return kind.to_pandas_dtype()


def _rows(column: Any, kept: Sequence[int]) -> Any:
    if len(kept) == len(column):
        return column
    return column[list(kept)] if isinstance(column, np.ndarray) else [column[row] for row in kept]
